"""The Flower ServerApp around the round loop."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedward_server.loop import Coordinator
from fedward_server.state import State

__all__ = ["server_app"]


def server_app(coordinator: Coordinator, state: State, *, done: Callable[[State], None]) -> ServerApp:
    """Build the ServerApp of one run.

    Args:
      coordinator: the bundle, keys and rims of the run.
      state: the initial state, or a checkpoint's.
      done: receives the last state.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        done(coordinator.run(grid, state))

    return app

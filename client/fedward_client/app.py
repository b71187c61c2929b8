"""The Flower ClientApp: message -> Door -> message. It reads nothing of what passes, and holds no data and no torch.

Example:
    >>> class Echo:
    ...     def answer(self, data: bytes) -> bytes:
    ...         return data
    >>> app = client_app(lambda site: Echo())
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedward_client.door import Door
from fedward_common.wire import pack, unpack

__all__ = ["client_app"]

SITE = "site"  # the key of the site's name in Flower's node config


def client_app(door_of: Callable[[str], Door]) -> ClientApp:
    """Build the ClientApp.

    Args:
      door_of: from the site's name in the node config to its Door; a deployment has exactly one.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        door = door_of(str(context.node_config[SITE]))
        return Message(pack(door.answer(unpack(message.content))), reply_to=message)

    return app

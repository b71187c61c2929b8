from __future__ import annotations

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedward_client.app import client_app
from fedward_common.wire import pack, unpack
from fedward_simulations.grid import InProcessGrid, node_ids


class Door:
    def __init__(self, name: str, served: list[str]) -> None:
        self.name, self.served = name, served

    def answer(self, data: bytes) -> bytes:
        self.served.append(self.name)
        if data == b"crash":
            raise RuntimeError("Jane Roe")
        return self.name.encode() + data


@pytest.fixture
def served() -> list[str]:
    return []


@pytest.fixture
def grid(served: list[str]) -> InProcessGrid:
    app: ClientApp = client_app(lambda site: Door(site, served))
    return InProcessGrid(app, node_ids(["a", "b", "c"]))


def messages(grid: InProcessGrid, data: bytes) -> list[Message]:
    return [Message(pack(data), node, "train", group_id="1") for node in grid.get_node_ids()]


def test_nothing_runs_before_it_is_pulled_and_answers_come_one_at_a_time(
    grid: InProcessGrid, served: list[str]
) -> None:
    identifiers = grid.push_messages(messages(grid, b"!"))
    assert served == []
    assert len(grid.pull_messages(identifiers)) == 1
    assert served == ["a"]


def test_every_answer_names_the_message_it_answers(grid: InProcessGrid) -> None:
    identifiers = grid.push_messages(messages(grid, b"!"))
    replies = [reply for identifier in identifiers for reply in grid.pull_messages([identifier])]
    assert [reply.metadata.reply_to_message_id for reply in replies] == identifiers
    assert [unpack(reply.content) for reply in replies] == [b"a!", b"b!", b"c!"]
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()


def test_a_message_is_delivered_once(grid: InProcessGrid) -> None:
    identifiers = grid.push_messages(messages(grid, b"!")[:1])
    assert len(grid.pull_messages(identifiers)) == 1
    assert grid.pull_messages(identifiers) == []
    assert grid.pull_messages(["unknown"]) == []


def test_messages_of_an_earlier_round_are_forgotten(grid: InProcessGrid, served: list[str]) -> None:
    first, second, *_ = grid.push_messages(messages(grid, b"!"))
    assert len(grid.pull_messages([first])) == 1
    later = Message(pack(b"?"), grid.get_node_ids()[0], "train", group_id="2")
    grid.push_messages([later])
    assert grid.pull_messages([second]) == []
    assert served == ["a"]


def test_a_site_that_raises_gives_an_error_without_its_text(grid: InProcessGrid) -> None:
    replies = grid.send_and_receive(messages(grid, b"crash"))
    assert all(reply.has_error() for reply in replies)
    assert {reply.error.reason for reply in replies} == {"RuntimeError"}


def test_a_server_app_runs_over_it(grid: InProcessGrid) -> None:
    app = ServerApp()
    heard: list[bytes] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        heard.extend(unpack(r.content) for r in grid.send_and_receive(messages(grid, b"?")))  # type: ignore[arg-type]

    grid.drive(app)
    assert heard == [b"a?", b"b?", b"c?"]


def test_no_site_has_a_node_id_of_flowers_own() -> None:
    assert min(node_ids(["a", "b"])) > 1

"""The story that the deployment's tests read: one federation, one run, one fault after the other, all for real.

Told once; each test looks at one claim. What happened is kept as plain values and as the folders on disk.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.deployed import Deployed, Hospital, call, wait_until

STAGES: tuple[dict[str, Any], ...] = (
    {"name": "head", "train": ["head"], "rounds": 14, "sampling_rate": 1.0, "evaluate_every": 1},
    # forward and backward through the whole model: long enough to be killed in the middle of it
    {"name": "adapter", "train": ["adapter"], "rounds": 28, "sampling_rate": 0.5, "server_learning_rate": 0.0002},
)
ROUNDS = 42  # enough for rounds that two of three sites do in seconds while the third is cut off
SLOT_S = 2
CUT_S = 90.0


@dataclass(kw_only=True, eq=False)
class Story:
    """What happened, and where to look."""

    federation: Deployed
    interfaces: dict[str, list[str]] = field(default_factory=dict)
    killed: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By process: the round in which it was killed, and the rounds finished when it was over."""
    memory_mb: dict[str, float] = field(default_factory=dict)
    reconnected_s: float = 0.0
    held_run_site: str = "gard"
    answered_again: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def site(self, name: str) -> Hospital:
        """One of the three."""
        return self.federation.sites[name]


def tell(federation: Deployed) -> Story:
    """Let it all happen."""
    began = time.monotonic()
    story = Story(federation=federation)
    federation.start()
    _look_inside(story)
    federation.run()
    federation.wait_for_round(3, seconds=150)
    _measure(story)
    _kill(story, "gateway", lambda: federation.pid("gateway"))
    _kill(story, "superlink", lambda: federation.pid("superlink"))
    _kill(story, "conductor", lambda: conductor_of(federation))
    _kill_the_whole_server(story)
    _kill_mid_upload(story, "ghr")
    _cut_the_network(story, "ninds")
    _kill_mid_step(story, story.held_run_site)
    wait_until("the run is finished", lambda: federation.status().get("state") == "finished", seconds=200)
    story.seconds = time.monotonic() - began
    return story


def _look_inside(story: Story) -> None:
    for site in story.federation.sites.values():
        text = Path(f"/proc/{site.pid('trainer')}/net/dev").read_text()
        story.interfaces[site.name] = re.findall(r"^\s*([^\s:|]+):", text, re.M)


def _measure(story: Story) -> None:
    for site in story.federation.sites.values():
        status = Path(f"/proc/{site.pid('courier')}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match
        story.memory_mb[site.name] = int(match[1]) / 1024


def _kill(story: Story, process: str, pid: Callable[[], int]) -> None:
    """Kill -9 in the middle of a round, while all sites still work on it; then wait for that round and one more."""
    federation = story.federation
    number = _mid_round(federation)
    victim = pid()
    os.kill(victim, signal.SIGKILL)
    wait_until(f"another {process}", lambda: pid() != victim, seconds=60)
    federation.wait_for_round(number, seconds=120)
    story.killed[process] = (number, federation.finished())


def _kill_the_whole_server(story: Story) -> None:
    """Kill -9 of ``fedward-server start`` within a round: all its processes go with it. Then it is typed again."""
    federation = story.federation
    number, children = _mid_round(federation), [federation.pid(name) for name in ("superlink", "desk", "gateway")]
    children.append(conductor_of(federation))
    process = federation.commands["server"].process
    process.kill()
    process.wait()
    wait_until("none of its processes is left", lambda: not any(map(_runs, children)), seconds=30)
    federation.start_server()
    federation.wait_for_round(number, seconds=120)
    story.killed["server"] = (number, federation.finished())


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _mid_round(federation: Deployed) -> int:
    """Wait until every site has marked a round started and none has answered yet; the round's number."""
    finished = federation.finished()
    federation.wait_for_round(finished + 1)
    lines = {site.name: site.ledger_lines() for site in federation.sites.values()}
    wait_until(
        "all sites train",
        lambda: all(site.ledger_lines() > lines[site.name] for site in federation.sites.values()),
        seconds=60,
    )
    return federation.finished() + 1


def conductor_of(federation: Deployed) -> int:
    """The ServerApp's process."""

    def running() -> int | None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            here = str(federation.operator).encode()
            if b"fedward_server.deployment.conductor" in words and here in words:
                return int(entry.parent.name)
        return None

    return int(wait_until("a conductor", running, seconds=60))


def _kill_mid_upload(story: Story, name: str) -> None:
    """The courier has a finished reply and talks to a network that swallows it: then it is killed."""
    federation, site = story.federation, story.site(name)
    federation.wait_for_round(federation.finished() + 1)
    released = len(site.audit("release"))
    wait_until(f"{name} has released an update", lambda: len(site.audit("release")) > released, seconds=60)
    site.tap.cut()
    time.sleep(SLOT_S + 0.5)  # its slot is over: the courier has the bytes and pushes
    number, victim = federation.finished() + 1, site.pid("courier")
    os.kill(victim, signal.SIGKILL)
    site.tap.mend()
    wait_until("another courier", lambda: site.pid("courier") != victim, seconds=60)
    federation.wait_for_round(number, seconds=120)
    _answers_again(story, name)
    story.killed["courier"] = (number, federation.finished())


def _cut_the_network(story: Story, name: str) -> None:
    site = story.site(name)
    site.tap.cut()
    time.sleep(CUT_S)
    site.tap.mend()
    began = time.monotonic()
    wait_until(f"{name} is back", lambda: site.link().get("state") == "connected", seconds=120)
    story.reconnected_s = time.monotonic() - began
    _answers_again(story, name)


def _answers_again(story: Story, name: str) -> None:
    """A round in which all three answer, this one among them."""
    federation = story.federation
    seen = len(federation.rounds())

    def whole() -> int | None:
        return next((row["round"] for row in federation.rounds()[seen:] if row["replied"] == 3), None)

    story.answered_again[name] = int(wait_until(f"{name} takes part again", whole, seconds=150))


def _kill_mid_step(story: Story, name: str) -> None:
    """Between the line that marks a round started and the one that settles it."""
    federation, site = story.federation, story.site(name)
    wait_until("the whole model is trained", lambda: federation.status().get("stage") == "adapter", seconds=150)
    federation.wait_for_round(federation.finished() + 1)
    victim = site.pid("trainer")
    wait_until(f"{name} is in the middle of a step", lambda: _in_a_step(site), seconds=60, every=0.001)
    os.kill(victim, signal.SIGKILL)
    story.killed["trainer"] = (federation.finished() + 1, federation.finished())
    wait_until("another trainer", lambda: site.pid("trainer") != victim, seconds=60)


def _in_a_step(site: Hospital) -> bool:
    """Whether the ledger's last line marks a round started."""
    with (site.root / "books" / "ledger.jsonl").open("rb") as file:
        file.seek(-min(4096, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return b'"entry":"start"' in file.read().splitlines()[-1]


def facts(*argv: str, code: int = 0) -> dict[str, Any]:
    """What a command says with --json."""
    return json.loads(call(*argv, "--json", code=code).stdout.splitlines()[-1])  # type: ignore[no-any-return]

"""``make soak``: a real federation for half an hour, something killed or cut at random every few seconds.

Not collected by the suite. It prints its seed; ``SOAK_SEED`` repeats the order of faults, ``SOAK_MINUTES`` their time.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from support.deployed import NAMES, Deployed, call, wait_until
from support.story import conductor_of

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SEED = int(os.environ.get("SOAK_SEED", str(random.SystemRandom().randrange(10**6))))
STAGES = [{"name": "head", "train": ["head"], "rounds": 5000, "sampling_rate": 1.0}]


def test_a_federation_outlives_half_an_hour_of_faults(tmp_path: Path) -> None:
    print(f"SOAK_SEED={SEED}")
    chance = random.Random(SEED)  # noqa: S311 - of faults, not of secrets
    with Deployed.make(tmp_path, stages=STAGES, slot_s=1) as federation:
        federation.start()
        federation.run()
        federation.wait_for_round(2, seconds=200)
        end = time.monotonic() + 60 * MINUTES
        while time.monotonic() < end:
            chance.choice(faults(federation, chance))()
            time.sleep(chance.uniform(2, 20))
        wait_until("all are back", lambda: federation.connected() == len(NAMES), seconds=200)
        federation.wait_for_round(federation.finished() + 2, seconds=200)
        call("fedward_server", "stop", federation.run_name, str(federation.operator))
        wait_until("the run is stopped", lambda: federation.status().get("state") == "stopped", seconds=60)
        finished = [row["round"] for row in federation.rounds() if not row["abandoned"]]
        assert finished == list(range(1, len(finished) + 1))
        for site in federation.sites.values():
            call("fedward_client", "ledger", "verify", str(site.root))
            call("fedward_client", "audit", "verify", str(site.root))


def faults(federation: Deployed, chance: random.Random) -> list[Callable[[], None]]:
    """What may happen; a killed trainer is left out, because it holds the run at its site until somebody clears it."""
    site = federation.sites[chance.choice(NAMES)]

    def cut() -> None:
        site.tap.cut()
        time.sleep(chance.uniform(1, 100))
        site.tap.mend()

    return [
        lambda: os.kill(federation.pid("gateway"), signal.SIGKILL),
        lambda: os.kill(federation.pid("superlink"), signal.SIGKILL),
        lambda: os.kill(federation.pid("desk"), signal.SIGKILL),
        lambda: os.kill(conductor_of(federation), signal.SIGKILL),
        lambda: os.kill(site.pid("courier"), signal.SIGKILL),
        cut,
    ]

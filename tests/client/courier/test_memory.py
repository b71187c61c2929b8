"""How much memory the courier takes at its worst, with a plan and a reply of 64 MB: a process of its own, measured."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_common.adapter import Adapter
from fedward_common.codec import PlanParts, PlanWriter
from fedward_common.wire import pack, unpack
from support.fleet_api import Authority, FleetApi
from support.nouns import KEY, SPEC, plan_from
from support.trainer import serving, short_folder

pytestmark = pytest.mark.slow
UPDATE = 64 << 20
MOST = (300 << 20) + 3 * UPDATE


def test_the_courier_takes_at_most_300_mb_and_three_updates(api: FleetApi, authority: Authority) -> None:
    plan, reply = large_plan(), os.urandom(1 << 20) * (UPDATE >> 20)
    with short_folder() as path, serving(path / "door", answer=lambda _: reply) as served:
        keys = {"schema": 1, "name": "north", "server": api.address, "door": str(served.place.socket)}
        folder = CourierFolder.create(path / "courier", CourierFile.model_validate(keys), ca_pem=authority.pem)
        descriptor = served.pair.courier.to_fd()
        argv = [sys.executable, "-P", "-m", "fedward_client.courier.main", str(folder.path)]
        argv += ["--credentials-fd", str(descriptor)]
        process = subprocess.Popen(argv, pass_fds=[descriptor])
        os.close(descriptor)
        try:
            until(lambda: "pull-messages" in api.asked)
            asked = api.send(pack(plan))
            until(api.replies)
            peak = peak_bytes(process.pid)
        finally:
            process.kill()
            process.wait()
    assert unpack(api.replies()[asked].content) == reply
    assert peak < MOST


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def large_plan() -> PlanParts:
    spec = replace(SPEC, tensors={**SPEC.tensors, "layer.lora_B": (UPDATE // 4, 1)})
    vector = np.zeros(sum(math.prod(shape) for shape in spec.tensors.values()), np.float32)
    start = Adapter(spec=spec, vector=vector)
    return PlanWriter(start, key=KEY).parts(plan_from(start))


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

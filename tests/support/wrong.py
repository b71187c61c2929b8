"""A gateway before a stock SuperLink, and couriers with a stand-in for the trainer: what one thing wrong looks like.

Nothing here trains: what a person sees when something between a site and the operator is wrong needs no data.

Example:
    with Country.make(folder) as country, country.site("north") as site, site.courier():
        site.waits_for(State.CONNECTED)
        print(site.status())
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward_client.courier.faults import State
from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_client.courier.status import Status
from fedward_client.door.place import SERVING
from fedward_common.enrolment import Enrolment
from fedward_common.files import rewrite
from fedward_common.machine.holding import hold
from fedward_server.deployment.flower import Control
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.superlink import Upstream, healthy
from support.deployed import QUIET, free_port, wait_until
from support.fronting import Front, gateway, operator
from support.hostile import ended, superlink
from support.operating import signing_key
from support.sites import open_site_folder
from support.trainer import Served, serving, short_folder

NAME = "127.0.0.1"
SHIFTED = """\
import datetime, os, time
_shift = float(os.environ.get("SHIFT_S", "0"))
_time = time.time
time.time = lambda: _time() + _shift
class _Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=_shift)
datetime.datetime = _Shifted
"""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command printed, with every run of blanks as one."""

    code: int
    out: str
    err: str

    def has(self, *texts: str) -> bool:
        """Whether all of these were said."""
        return all(text in self.out + self.err for text in texts)


def say(*argv: str, before: Sequence[str] = (), cwd: Path | None = None) -> Said:
    """A fedward command as a person types it, run to its end."""
    done = subprocess.run(
        [*before, sys.executable, "-m", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | QUIET | {"COLUMNS": "400", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        check=False,
    )
    out, err = (re.sub(r"\s+", " ", text) for text in (done.stdout, done.stderr))
    return Said(code=done.returncode, out=out, err=err)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site's folder with a courier's folder in it, and whoever answers at its Door."""

    root: Path
    folder: CourierFolder
    served: Served

    @property
    def said(self) -> Path:
        """What the last courier wrote to its terminal."""
        return self.root / "said"

    @contextmanager
    def courier(self, path: Path | None = None, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A courier's process, from this site's folder or from a copy of it."""
        half = self.served.pair.courier.to_fd()
        program = [sys.executable, "-P", "-m", "fedward_client.courier.main", str(path or self.folder.path)]
        with self.said.open("wb") as errors:
            process = subprocess.Popen(
                [*program, "--credentials-fd", str(half)],
                pass_fds=[half],
                stderr=errors,
                env=os.environ | QUIET | environment,
            )
        os.close(half)
        with ended(process):
            yield process

    def waits_for(self, state: State, path: Path | None = None, *, reason: str = "") -> Status:
        """Until the courier says that it is so, and why."""

        def so() -> Status | None:
            now = CourierFolder.status(path or self.folder.path)
            return now if now and now.state is state and reason in now.reason else None

        found = wait_until(f"{self.folder.file.name} is {state.value} {reason}", so, seconds=120)
        assert isinstance(found, Status)
        return found

    def status(self, path: Path | None = None) -> Said:
        """``fedward-client status``."""
        return say("fedward_client", "status", str(self.root), *(("--courier", str(path)) if path else ()))


@dataclass(frozen=True, kw_only=True)
class Country:
    """One operator, its SuperLink and its gateway."""

    operator: OperatorFolder
    upstream: Upstream
    front: Front
    control: Control

    @classmethod
    @contextmanager
    def make(cls, folder: Path) -> Iterator[Country]:
        """Start both; end them at the end of the block."""
        with ExitStack() as stack:
            made = operator(folder / "op")
            port = free_port()
            stack.enter_context(ended(superlink(made, port)))
            upstream = Upstream.of(made, port=port)
            wait_until("the SuperLink answers", lambda: healthy(upstream), seconds=90)
            front = stack.enter_context(gateway(made, port, folder / "gateway.log"))
            control = Control(upstream)
            stack.callback(control.close)
            yield cls(operator=made, upstream=upstream, front=front, control=control)

    @contextmanager
    def site(self, name: str, *, number: int, ca: Path | None = None, port: int | None = None) -> Iterator[Site]:
        """A site that has what the operator hands out, and that nobody enrolled yet."""
        with short_folder() as folder:
            root = open_site_folder(folder / name).root
            with serving(root / "door") as served, hold(root / SERVING):  # both as a trainer does
                file = CourierFile.model_validate(
                    {
                        "schema": 1,
                        "name": name,
                        "server": f"{NAME}:{port or self.front.port}",
                        "door": str(served.place.socket),
                    }
                )
                pem = (ca or self.operator.keys / "ca.pem").read_bytes()
                carrier = CourierFolder.create(root / "courier", file, ca_pem=pem)
                signed = Enrolment.sign(name, node=carrier.node_public_key, signing=signing_key(number))
                rewrite(root / f"{name}.pub", signed.to_text().encode())
                yield Site(root=root, folder=carrier, served=served)

    def let_in(self, site: Site) -> None:
        """``fedward-server enrol``, and what the desk does then."""
        name = site.folder.file.name
        said = say("fedward_server", "enrol", str(site.root / f"{name}.pub"), str(self.operator.root), "--yes")
        assert said.code == 0, said
        self.control.register_node(site.folder.node_public_key, name=name)

    def says(self, *words: str) -> Said:
        """A command of the operator."""
        return say("fedward_server", *words, str(self.operator.root))


def second_copy(site: Site, path: Path) -> Path:
    """The courier's folder once more, key and all, as from a backup on another machine."""
    path.mkdir(mode=0o700)
    (path / "state").mkdir(mode=0o700)
    for name in ("courier.toml", "ca.pem", "node.key"):
        shutil.copy2(site.folder.path / name, path / name)
    return path


def clock_folder(folder: Path) -> Path:
    """A folder for PYTHONPATH that moves the clock of a Python process by SHIFT_S."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED)
    return folder


def told(site: Site, process: subprocess.Popen[bytes], seconds: float = 30) -> tuple[int, dict[str, Any]]:
    """The exit code of a courier that ends by itself, and the last line that it wrote to its terminal."""
    code = process.wait(seconds)
    return code, json.loads(site.said.read_bytes().splitlines()[-1])

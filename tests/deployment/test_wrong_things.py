"""What a person sees when one thing between a site and its operator is wrong: the fault, and a hint where the fix is.

A real gateway before a real SuperLink, real couriers; behind their Doors a stand-in for the trainer, since nothing here
comes as far as data.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_client.courier.faults import State
from fedward_client.courier.folder import CourierFolder
from support.deployed import free_port
from support.fronting import gateway, operator
from support.operating import new_operator
from support.sites import open_site_folder
from support.trainer import short_folder
from support.wrong import NAME, Country, Site, clock_folder, say, second_copy, told

pytestmark = pytest.mark.slow
STRANGER = 61250
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Country]:
    with Country.make(tmp_path_factory.mktemp("country")) as country:
        yield country


@pytest.fixture(scope="module")
def north(country: Country) -> Iterator[Site]:
    """A site for which everything is right."""
    with country.site("north", number=1) as site:
        country.let_in(site)
        yield site


# ---- whom to believe --------------------------------------------------------------------
def test_the_wrong_ca_is_seen_at_the_site(country: Country, tmp_path: Path) -> None:
    other = operator(tmp_path / "other")
    with country.site("south", number=2, ca=other.keys / "ca.pem") as site, site.courier():
        site.waits_for(State.WRONG_CERTIFICATE)
        said = site.status()
    assert said.code == 2
    assert said.has(
        f"{NAME}:{country.front.port} has no certificate that the CA file vouches for: another CA signed it",
        "hint: compare ca.pem with the operator's; or a proxy opens TLS: exempt this server there",
    )


def test_an_expired_certificate_is_seen_on_both_sides(country: Country, tmp_path: Path) -> None:
    late = operator(tmp_path / "late")
    late.authority().renew(("127.0.0.1",), days=-2)
    with gateway(late, country.upstream.port, tmp_path / "log") as front:
        ca = late.keys / "ca.pem"
        with country.site("west", number=3, ca=ca, port=front.port) as site, site.courier():
            site.waits_for(State.WRONG_CERTIFICATE)
            said = site.status()
    assert said.code == 2
    assert said.has("has no certificate that the CA file vouches for: it has expired")
    assert said.has("hint: check this machine's clock; if it is right, ask the operator to renew the certificate")
    started = say("fedward_server", "start", str(late.root))
    assert started.code != 0
    assert started.has("error: the server certificate expired on", "hint: run `fedward-server renew`")
    assert say("fedward_server", "status", str(late.root)).has(
        "EXPIRED on", "no site can connect; run `fedward-server renew`"
    )


# ---- who may come in ---------------------------------------------------------------------
def test_a_key_that_nobody_enrolled_is_seen_at_the_site_and_let_in_by_the_operator(country: Country) -> None:
    with country.site("east", number=4) as site:
        assert "east" not in country.says("sites").out
        with site.courier():
            site.waits_for(State.REFUSED)
            said = site.status()
            assert said.code == 2
            assert said.has(
                f"{NAME}:{country.front.port} does not know this site's node key",
                "hint: send the enrolment (NAME.pub) to the operator; or ask whether the site was revoked",
            )
            country.let_in(site)
            site.waits_for(State.CONNECTED)
        assert "east" in country.says("sites").out


def test_a_revoked_site_is_told_at_its_next_question(country: Country) -> None:
    with country.site("leaver", number=5) as site:
        country.let_in(site)
        with site.courier():
            site.waits_for(State.CONNECTED)
            done = say("fedward_server", "revoke", "leaver", str(country.operator.root))
            assert done.has("revoked leaver; its enrolment is kept in")
            site.waits_for(State.REFUSED)
            said = site.status()
        assert said.has("does not know this site's node key", "or ask whether the site was revoked")
        assert "leaver" not in country.says("sites").out
        again = say("fedward_server", "enrol", str(site.root / "leaver.pub"), str(country.operator.root), "--yes")
        assert again.code == 2
        assert again.has("revoked", "hint: ")


def test_two_sites_with_one_key(country: Country, north: Site, tmp_path: Path) -> None:
    """The second is not let online, and both sides are told: the site by status, the operator when it enrols."""
    with north.courier():
        north.waits_for(State.CONNECTED)
        copy = second_copy(north, tmp_path / "copy")
        with north.courier(copy):
            north.waits_for(State.REFUSED, copy)
            said = north.status(copy)
            assert said.has(
                "does not let this node key come online",
                "it goes by itself within a minute after a crash; else another courier runs with a copy of this key",
            )
            status = CourierFolder.status(north.folder.path)
            assert status is not None and status.state is State.CONNECTED
    pub = str(north.root / "north.pub")
    twice = say("fedward_server", "enrol", pub, str(country.operator.root), "--name", "other", "--yes")
    assert twice.code == 2
    assert twice.has("north", "hint: ")


# ---- the time of day ------------------------------------------------------------------------
@pytest.mark.parametrize(("shift", "way"), [(600, "ahead of"), (-600, "behind")])
def test_a_wrong_clock_is_seen_at_the_site(country: Country, north: Site, tmp_path: Path, shift: int, way: str) -> None:
    moved = clock_folder(tmp_path / "clock")
    with north.courier(PYTHONPATH=str(moved), SHIFT_S=str(shift)):
        status = north.waits_for(State.CLOCK)
        said = north.status()
    assert f"s {way} that of {NAME}:{country.front.port}, which refuses such signatures" in status.reason
    assert abs(int(status.reason.split(" s ")[0].rpartition(" ")[2]) - 600) < 10
    assert said.code == 2
    assert said.has(status.reason, "hint: set the clock, best by NTP (timedatectl set-ntp true); if it is right, ask")


# ---- this machine ----------------------------------------------------------------------------
def test_a_port_in_use_is_an_error_of_start(tmp_path: Path) -> None:
    folder = tmp_path / "op"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        say("fedward_server", "init", str(folder), "--host", "127.0.0.1", "--port", str(port), "--name", "localhost")
        said = say("fedward_server", "start", str(folder))
    assert said.code == 2
    assert said.has(
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use",
        f"hint: end the process that has it (`ss -ltnp 'sport = :{port}'`), or change gateway.port in server.toml",
    )
    assert say("fedward_server", "status", str(folder)).has("down: fedward-server start")


def test_a_courier_that_is_started_twice_says_who_runs(north: Site) -> None:
    with north.courier() as first:
        north.waits_for(State.CONNECTED)
        with north.courier() as second:
            code, line = told(north, second)
    assert code == 2
    assert str(first.pid) in line["message"]
    assert "; hint: " in line["message"]


def test_a_site_that_is_started_twice_says_who_runs() -> None:
    from fedward_common.machine.holding import hold

    with short_folder() as folder:
        site = ready_site(folder / "north")
        with hold(site / "start.lock"):
            said = say("fedward_client", "start", str(site))
    assert said.code == 2
    assert said.has(str(os.getpid()), "hint: ")


def ready_site(root: Path) -> Path:
    """A site with a courier's folder; its operator is nowhere."""
    site = open_site_folder(root)
    keys = new_operator(root.parent / "op").keys
    text = site.load_site().coordinator.public_key
    argv = ("--server", f"127.0.0.1:{free_port()}", "--ca", str(keys / "ca.pem"), "--operator-key", text)
    assert say("fedward_client", "init", str(root), *argv).code == 0
    return root


def test_a_path_that_is_too_long_for_a_socket_is_an_error_of_start_and_of_init(tmp_path: Path) -> None:
    with short_folder() as folder:
        site = ready_site(folder / "north")
        long = folder / ("x" * (105 - len(str(folder))))
        for file, key in ((site / "site.toml", long), (site / "courier" / "courier.toml", long / "door.sock")):
            file.write_text(re.sub(r'(?m)^door = ".*"', f'door = "{key}"', file.read_text()))
        said = say("fedward_client", "start", str(site))
        assert said.code == 2
        assert said.has("courier.toml", "is longer than 107 bytes, which no Unix socket can be; choose a shorter")
        service = say("fedward_client.trainer.main", str(site), "--publish-credentials")
        assert service.code == 2
        assert service.has(
            f"the socket {long}/door.sock has a path of {len(os.fsencode(long / 'door.sock'))} bytes",
            "the system takes 107 (set [network].door in site.toml to a folder with a shorter path)",
        )
        keys = new_operator(folder / "op2").keys
        argv = ("--server", "127.0.0.1:1", "--ca", str(keys / "ca.pem"), "--operator-key", str(keys / "plan.pub"))
        deep = say("fedward_client", "init", str(tmp_path / ("y" * 100)), *argv)
        assert deep.code == 2
        assert deep.has("107 bytes", "hint: ")


@needs_root
def test_no_right_to_the_disk_is_an_error_with_the_folder_s_name(tmp_path: Path) -> None:
    account = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups")
    with short_folder() as folder:
        folder.chmod(0o755)
        site = ready_site(folder / "north")
        for argv in (("fedward_client", "start", str(site)), ("fedward_server", "start", str(folder / "op"))):
            said = say(*argv, before=account, cwd=Path("/"))
            assert said.code != 0
            assert said.has("error: ", "hint: ", argv[-1]), said
            assert not said.has("Traceback")
        made = say("fedward_client", "init", str(folder / "new"), before=account, cwd=Path("/"))
        assert made.has("error: ", "hint: ", "Permission denied") and not made.has("Traceback")

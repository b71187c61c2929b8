from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest

from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.superlink import flower_environment, superlink_arguments
from fedward_server.gateway.versions import read_versions
from support.doors import CASES, OBJECT, PULL, PUSH, Case, body_for, check, check_smuggling, reply
from support.fronting import (
    FLEET,
    NAME,
    Front,
    Site,
    StandIn,
    answer_of,
    gateway,
    operator,
    request_bytes,
    stand_in,
    statuses_at_once,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> OperatorFolder:
    folder = operator(tmp_path_factory.mktemp("operator") / "op")
    text = folder.server_file.read_text()
    text = text.replace("max_body_bytes = 285_212_672", f"max_body_bytes = {6 * MIB}")
    folder.server_file.write_text(text.replace("burst = 500", "burst = 1000"))
    return folder


@pytest.fixture(scope="module")
def shared(
    folder: OperatorFolder, site: Site, upstream: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    with gateway(folder, upstream.port, tmp_path_factory.mktemp("log") / "log") as front:
        yield front


# ---- what passes ---------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_the_table_passes(case: Case, front: Front, upstream: StandIn, site: Site) -> None:
    for _ in range(20):
        try:
            check(case, front, upstream, site)
            return
        except AssertionError as error:
            if "429" not in str(error):
                raise
            time.sleep(0.5)  # the strangers' bucket
    pytest.fail("429 for ever")


def test_what_is_hidden_in_a_body_stays_a_body(front: Front, upstream: StandIn, site: Site) -> None:
    check_smuggling(front, upstream, site)


def test_answers_pass_with_few_headers(front: Front, upstream: StandIn, site: Site) -> None:
    upstream.status, upstream.answer = 404, b'{"code": 2001, "detail": "no"}'
    upstream.headers = {"x-secret": "1", "content-type": "application/json", "set-cookie": "a=b", "location": "/x"}
    headers = site.headers() | {"cookie": "a=b", "x-forwarded-for": "192.0.2.1", "accept-encoding": "gzip"}
    status, body, answered = front.ask(request_bytes(PULL, headers, b"body"))
    assert (status, body) == (404, upstream.answer)
    assert set(answered) == {"content-type", "content-length", "date"}
    heard = set(upstream.heard[0].headers)
    assert heard == {"host", "content-length", *site.headers()}


def test_the_version_that_a_site_says_is_written_within_seconds(
    front: Front, site: Site, folder: OperatorFolder
) -> None:
    headers = site.headers() | {"user-agent": "fedward-courier/7.8.9"}
    assert front.ask(request_bytes(PULL, headers, b"body"))[0] == 200
    end = time.monotonic() + 20
    while read_versions(folder.state).get("st-elsewhere") != "7.8.9":
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 599, 301, 307])
def test_no_answer_has_the_status_500(status: int, front: Front, upstream: StandIn, site: Site) -> None:
    upstream.status, upstream.answer = status, b"patient John Doe"
    answered, body, headers = front.ask(request_bytes(PULL, site.headers(), b"body"))
    assert (answered, json.loads(body)) == (503, {"detail": "away"})
    assert "retry-after" in headers


def test_half_an_answer_does_not_look_whole(front: Front, upstream: StandIn, site: Site) -> None:
    upstream.breaks = True
    assert front.ask(request_bytes(PULL, site.headers(), b"body"))[0] == 0


def test_a_connection_carries_many_requests(front: Front, upstream: StandIn, site: Site) -> None:
    with front.connect() as connection:
        for number in range(5):
            body = b"x" * number * 100_000
            assert answer_of(connection, request_bytes(OBJECT, site.headers(), body))[0] == 200
            assert upstream.heard[-1].body == body


def test_pipelined_requests_are_answered_in_order(front: Front, upstream: StandIn, site: Site) -> None:
    with front.connect() as connection:
        connection.sendall(
            b"".join(request_bytes(path, site.headers(), path.encode()) for path in FLEET[:3])
            + request_bytes("/v1/control/list-runs", site.headers(), b"")
        )
        data = b""
        while b"no_such_route" not in data:
            data += connection.recv(65536)
    assert data.count(b"HTTP/1.1 200") == 3
    assert [heard.body.decode() for heard in upstream.heard] == list(FLEET[:3])


def test_a_large_answer_streams(front: Front, upstream: StandIn, site: Site) -> None:
    upstream.answer = os.urandom(20 * MIB)
    status, body, _ = front.ask(request_bytes(PULL, site.headers(), b"body"))
    assert status == 200
    assert body == upstream.answer


def test_a_node_that_waits_for_100_continue_is_told(front: Front, upstream: StandIn, site: Site) -> None:
    head = request_bytes(PULL, site.headers() | {"content-length": "4", "expect": "100-continue"})
    with front.connect() as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        assert answer_of(connection, b"body")[0] == 200
    assert upstream.heard[0].body == b"body"


# ---- who passes ----------------------------------------------------------------------
@pytest.mark.parametrize("late_s", [400.0, -60.0])
def test_a_wrong_clock_is_told_so_with_the_right_time(
    late_s: float, front: Front, upstream: StandIn, site: Site
) -> None:
    status, body, headers = front.ask(request_bytes(PULL, site.headers(late_s=late_s), b"body"))
    assert (status, json.loads(body)) == (403, {"detail": "clock"})
    assert headers["date"].endswith("GMT")
    assert not upstream.paths


def test_another_keys_signature_is_refused(front: Front, upstream: StandIn, site: Site) -> None:
    headers = Site.stranger().headers() | {"flwr-public-key": site.headers()["flwr-public-key"]}
    status, body, _ = front.ask(request_bytes(PULL, headers, b"body"))
    assert (status, json.loads(body)) == (403, {"detail": "bad_signature"})
    assert not upstream.paths


def test_a_key_twice_is_refused(front: Front, upstream: StandIn, site: Site) -> None:
    head, _, body = request_bytes(PULL, site.headers(), b"body").partition(b"\r\n\r\n")
    key = Site.stranger().headers()["flwr-public-key"].encode()
    assert front.ask(head + b"\r\nflwr-public-key: " + key + b"\r\n\r\n" + body)[0] in (400, 403)
    assert not upstream.paths


def test_a_revoked_site_is_refused_at_its_next_request(front: Front, upstream: StandIn, folder: OperatorFolder) -> None:
    leaving = Site.enrolled(folder, "leaving")
    file = folder.sites_folder / "leaving.pub"
    with front.connect() as connection:
        assert answer_of(connection, request_bytes(PULL, leaving.headers(), b"body"))[0] == 200
        file.rename(folder.revoked / "leaving-1.pub")
        status, body, _ = answer_of(connection, request_bytes(PULL, leaving.headers(), b"body"))
    assert (status, json.loads(body)) == (403, {"detail": "not_enrolled"})
    assert len(upstream.paths) == 1


# ---- how much ------------------------------------------------------------------------
def test_a_chunked_body_is_cut_off_at_the_limit(front: Front, upstream: StandIn, site: Site) -> None:
    chunk = b"%x\r\n%s\r\n" % (MIB, bytes(MIB))
    for path, mib in ((PULL, 1), (PUSH, 1), (OBJECT, 8)):
        head = request_bytes(path, site.headers() | {"content-length": "", "transfer-encoding": "chunked"})
        status, body, _ = front.ask(head + chunk * mib + b"0\r\n\r\n")
        assert (status, json.loads(body)) == (413, {"detail": "too_large"})
    assert all(len(heard.body) <= 6 * MIB for heard in upstream.heard)


def test_a_body_declared_too_large_is_refused_before_it_is_sent(front: Front, upstream: StandIn, site: Site) -> None:
    assert front.ask(request_bytes(OBJECT, site.headers() | {"content-length": str(7 * MIB)}, bytes(7 * MIB)))[0] == 413
    assert not upstream.heard


def test_what_is_no_reply_of_its_sender_does_not_pass(front: Front, upstream: StandIn, site: Site) -> None:
    forged = PushMessagesRequest.FromString(reply())
    forged.messages_list[0].metadata.src_node_id = 1
    forged.messages_list[0].metadata.reply_to_message_id = ""
    for sent in (forged.SerializeToString(), b"", b"body", reply() + reply()):
        status, body, _ = front.ask(request_bytes(PUSH, site.headers(), sent))
        assert (status, json.loads(body)) == (400, {"detail": "no_reply"})
    assert not upstream.heard


def test_a_reply_in_chunks_passes_as_it_is(front: Front, upstream: StandIn, site: Site) -> None:
    head = request_bytes(PUSH, site.headers() | {"content-length": "", "transfer-encoding": "chunked"})
    halves = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (reply()[:100], reply()[100:]))
    assert front.ask(head + halves + b"0\r\n\r\n")[0] == 200
    assert upstream.heard[-1].body == reply()


def test_one_object_and_four_requests_at_once(front: Front, upstream: StandIn, site: Site) -> None:
    upstream.delay_s = 1.0
    assert statuses_at_once(front, [request_bytes(OBJECT, site.headers(), b"x")] * 2) == [200, 503]
    assert statuses_at_once(front, [request_bytes(PULL, site.headers(), b"x")] * 5) == [200] * 4 + [503]


def test_each_node_has_a_rate_of_its_own(tmp_path: Path, folder: OperatorFolder, upstream: StandIn, site: Site) -> None:
    upstream.reset()
    other = Site.enrolled(folder, "other")
    root = tmp_path / "op"
    shutil.copytree(folder.root, root)
    file = root / "server.toml"
    text = file.read_text().replace("burst = 1000", "burst = 10")
    file.write_text(text.replace("requests_per_s = 100.0", "requests_per_s = 1.0"))
    with gateway(OperatorFolder(root), upstream.port, tmp_path / "log") as slow:
        with slow.connect() as connection:
            statuses = [answer_of(connection, request_bytes(PULL, site.headers(), b""))[0] for _ in range(11)]
        assert statuses[:10] == [200] * 10
        assert statuses[10] == 503  # which Flower's nodes repeat, unlike 429
        assert slow.ask(request_bytes(PULL, other.headers(), b""))[0] == 200
        strangers = {slow.ask(request_bytes(PULL, {}, b""))[0] for _ in range(40)}
        assert strangers == {403, 429}
        assert slow.ask(request_bytes(PULL, other.headers(), b""))[0] == 200


def test_strangers_of_an_address_leave_room_for_its_sites(
    tmp_path: Path, folder: OperatorFolder, upstream: StandIn, site: Site
) -> None:
    with gateway(folder, upstream.port, tmp_path / "log") as front:
        known = [front.connect() for _ in range(8)]
        for connection in known:
            assert answer_of(connection, request_bytes(PULL, site.headers(), b""))[0] == 200
        held = [socket.create_connection(("127.0.0.1", front.port)) for _ in range(100)]  # without a handshake
        try:
            with front.connect() as newcomer:
                assert answer_of(newcomer, request_bytes(PULL, site.headers(), b""))[0] == 200
            assert sum(_ended(connection) for connection in held) == 100 - 55
            assert [answer_of(one, request_bytes(PULL, site.headers(), b""))[0] for one in known[1:]] == [200] * 7
            assert answer_of(known[0], request_bytes(PULL, site.headers(), b""))[0] == 0  # a ninth of this site came
        finally:
            for one in (*known, *held):
                one.close()


def _ended(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return not connection.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.slow
def test_a_head_that_never_ends_is_cut_off(front: Front, upstream: StandIn, site: Site) -> None:
    with front.connect() as connection:
        connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")
        began = time.monotonic()
        status, _, _ = _drip(connection, b"x", seconds=20)
    assert status == 408
    assert 8 < time.monotonic() - began < 15


def _drip(connection: ssl.SSLSocket, byte: bytes, *, seconds: float) -> tuple[int, bytes, dict[str, str]]:
    ended = threading.Event()

    def send() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ended.wait(0.5):
            try:
                connection.sendall(byte)
            except OSError:
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return answer_of(connection, b"")
    finally:
        ended.set()
        thread.join()


# ---- when the SuperLink is away ------------------------------------------------------
def test_away_is_503_and_health_says_so(tmp_path: Path, folder: OperatorFolder, site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with gateway(folder, unused.getsockname()[1], tmp_path / "log") as front:
            for path in FLEET:
                status, body, _ = front.ask(request_bytes(path, site.headers(), body_for(path)))
                assert (status, json.loads(body)) == (503, {"detail": "away"})
            assert front.ask(request_bytes("/health", {}, method="GET"))[0] == 503


def test_health_is_the_gateways_own_answer(front: Front, upstream: StandIn) -> None:
    upstream.answer = b"version 1.41.0"
    time.sleep(1.1)  # an answer holds for a second
    status, body, _ = front.ask(request_bytes("/health", {}, method="GET"))
    assert (status, body) == (200, b"ok")


def test_a_superlink_of_another_authority_gets_nothing(tmp_path: Path, folder: OperatorFolder, site: Site) -> None:
    with stand_in(operator(tmp_path / "other")) as other, gateway(folder, other.port, tmp_path / "log") as front:
        assert front.ask(request_bytes(PULL, site.headers(), b"body"))[0] == 503
        assert not other.heard


def test_it_comes_back_by_itself(tmp_path: Path, folder: OperatorFolder, site: Site) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    with gateway(folder, port, tmp_path / "log") as front:
        assert front.ask(request_bytes(PULL, site.headers(), b""))[0] == 503
        with stand_in(folder, port=port):
            assert front.ask(request_bytes(PULL, site.headers(), b""))[0] == 200
        assert front.ask(request_bytes(PULL, site.headers(), b""))[0] == 503
        with stand_in(folder, port=port):
            assert front.ask(request_bytes(PULL, site.headers(), b""))[0] == 200


# ---- the process ---------------------------------------------------------------------
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_nothing_below_tls_1_3(version: ssl.TLSVersion, front: Front) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        front.connect(version=version)


def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path, site: Site) -> None:
    folder = operator(tmp_path / "op")
    new = Site.enrolled(folder, "new")
    with stand_in(folder) as upstream, gateway(folder, upstream.port, tmp_path / "log") as front:
        before = _shown(front)
        assert front.ask(request_bytes(PULL, new.headers(), b""))[0] == 200
        renewed = folder.authority().renew((NAME, "127.0.0.1")).fingerprint
        time.sleep(1.1)
        assert _shown(front) != before
        assert renewed
        assert front.ask(request_bytes(PULL, new.headers(), b""))[0] == 200


def _shown(front: Front) -> bytes:
    with front.connect() as connection:
        return connection.getpeercert(binary_form=True) or b""


def test_the_log_has_a_line_for_each_request_and_no_value(
    tmp_path: Path, folder: OperatorFolder, upstream: StandIn, site: Site
) -> None:
    upstream.reset()
    headers = site.headers()
    with gateway(folder, upstream.port, tmp_path / "log") as front:
        front.ask(request_bytes(PULL, headers, b"canary-body"))
        front.ask(request_bytes("/v1/canary-path", headers | {"x-canary": "canary-value"}, b"canary-body"))
        front.ask(request_bytes(PULL, {}, b"canary-body"))
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["node"], line["route"], line["status"]) for line in lines] == [
        ("st-elsewhere", "pull-messages", 200),
        ("st-elsewhere", "other", 404),
        ("", "pull-messages", 403),
    ]
    assert set(lines[0]) == {"time", "process", "node", "route", "status", "bytes_in", "bytes_out", "ms"}
    assert lines[0]["bytes_in"] == len(b"canary-body")
    assert "canary" not in text
    assert headers["flwr-signature"] not in text


def test_it_serves_ipv6(tmp_path: Path, folder: OperatorFolder, upstream: StandIn, site: Site) -> None:
    upstream.reset()
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with gateway(folder, upstream.port, tmp_path / "log", host="::1") as front, front.connect(host="::1") as connection:
        assert answer_of(connection, request_bytes(PULL, site.headers(), b""))[0] == 200


def test_a_request_under_way_is_finished_before_the_end(
    tmp_path: Path, folder: OperatorFolder, upstream: StandIn, site: Site
) -> None:
    upstream.reset()
    upstream.delay_s = 1.0
    with gateway(folder, upstream.port, tmp_path / "log") as front, ThreadPoolExecutor() as pool:
        under_way = pool.submit(front.ask, request_bytes(PULL, site.headers() | {"connection": "close"}, b""))
        time.sleep(0.4)
        front.process.terminate()
        assert under_way.result()[0] == 200
        assert front.process.wait(timeout=10) == 0


def test_it_imports_nothing_of_flower() -> None:
    code = "import sys, fedward_server.gateway.__main__ as _; sys.exit('flwr' in sys.modules)"
    assert subprocess.run((sys.executable, "-c", code), check=False).returncode == 0


def test_a_folder_without_keys_is_two_lines(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        command = (
            sys.executable,
            "-m",
            "fedward_server.gateway",
            str(tmp_path),
            "--fd",
            str(bound.fileno()),
        )
        done = subprocess.run(
            (*command, "--upstream", "127.0.0.1:1"), pass_fds=(bound.fileno(),), capture_output=True, check=False
        )
    assert done.returncode == 2
    assert [line.split(b":")[0] for line in done.stderr.splitlines()] == [b"fedward-server", b"hint"]


@pytest.mark.slow
def test_a_hundred_uploads_at_once_stay_bounded(tmp_path: Path, upstream: StandIn, folder: OperatorFolder) -> None:
    upstream.reset()
    upstream.delay_s = 0.5
    sites = [Site.enrolled(folder, f"site-{number}") for number in range(100)]
    with gateway(folder, upstream.port, tmp_path / "log") as front, ThreadPoolExecutor(100) as pool:
        front.ask(request_bytes(PULL, sites[0].headers(), b""))
        before = _resident(front.process.pid)
        sent = [
            pool.submit(front.ask, request_bytes(OBJECT, site.headers(), bytes(5 * MIB)), source=f"127.0.0.{2 + n % 2}")
            for n, site in enumerate(sites)
        ]
        most = before
        while not all(one.done() for one in sent):
            most = max(most, _resident(front.process.pid))
            time.sleep(0.02)
        assert {one.result()[0] for one in sent} == {200}
    print(f"{before >> 20} MiB before, {(most - before) >> 20} MiB more")
    assert most - before < 250 * MIB  # the bodies alone are 500


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the real SuperLink --------------------------------------------------------------
@pytest.mark.slow
def test_of_the_superlinks_own_paths_only_the_listed_pass(tmp_path: Path) -> None:
    folder = operator(tmp_path / "op")
    site = Site.enrolled(folder, "asker")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    environment = os.environ | flower_environment(folder)
    folder.superlink.mkdir(exist_ok=True)
    with (tmp_path / "superlink").open("wb") as out:
        process = subprocess.Popen(
            superlink_arguments(folder, port=port), env=environment, stdout=out, stderr=out, cwd=tmp_path
        )
    try:
        straight = Front("straight", port, folder, tmp_path / "none", process)
        pages = _openapi(straight)
        assert len(pages) > 70
        with gateway(folder, port, tmp_path / "log") as front:
            for method, path in pages:
                sent = reply() if path == PUSH else b""
                status, body, _ = front.ask(request_bytes(path, site.headers(), sent, method=method), method=method)
                if path in FLEET:
                    assert status == 401, (path, status)  # the SuperLink's own answer: it does not know the node
                elif (method, path) == ("GET", "/health"):
                    assert (status, body) == (200, b"ok")
                else:
                    assert status == (405 if path == "/health" else 404), (method, path, status)
                    assert b"Flower" not in body
    finally:
        process.terminate()
        process.wait(timeout=20)


def _openapi(straight: Front) -> list[tuple[str, str]]:
    end = time.monotonic() + 60
    while True:
        try:
            status, body, _ = straight.ask(request_bytes("/openapi.json", {}, method="GET"), method="GET")
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.3)
    assert status == 200
    paths = json.loads(body)["paths"]
    pages = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [*pages, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/docs/oauth2-redirect")]

"""docs/nginx/fedward.conf does the same job: the same table of requests, and what else both doors share."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_server.deployment.folder import OperatorFolder
from support.doors import CASES, OBJECT, PULL, Case, body_for, check, check_smuggling
from support.fronting import (
    FLEET,
    NGINX,
    Front,
    Site,
    StandIn,
    nginx,
    operator,
    request_bytes,
    stand_in,
    statuses_at_once,
    write_nodes_map,
)

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: its configuration is not tested")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> OperatorFolder:
    return operator(tmp_path_factory.mktemp("operator") / "op")


@pytest.fixture(scope="module")
def shared(
    folder: OperatorFolder, site: Site, upstream: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    with nginx(folder, upstream.port, tmp_path_factory.mktemp("nginx")) as front:
        yield front


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_only_the_table_passes(case: Case, front: Front, upstream: StandIn, site: Site) -> None:
    check(case, front, upstream, site)


def test_what_is_hidden_in_a_body_stays_a_body(front: Front, upstream: StandIn, site: Site) -> None:
    check_smuggling(front, upstream, site)


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 301, 307])
def test_no_answer_has_the_status_500(status: int, front: Front, upstream: StandIn, site: Site) -> None:
    upstream.status, upstream.answer = status, b"patient John Doe"
    answered, body, _ = front.ask(request_bytes(PULL, site.headers(), b"body"))
    assert answered == 503
    assert b"John" not in body


def test_answers_and_requests_pass_with_few_headers(front: Front, upstream: StandIn, site: Site) -> None:
    upstream.status, upstream.answer = 404, b'{"code": 2001, "detail": "no"}'
    headers = site.headers() | {"cookie": "a=b", "x-forwarded-for": "192.0.2.1", "accept-encoding": "gzip"}
    status, body, _ = front.ask(request_bytes(PULL, headers, b"body"))
    assert (status, body) == (404, upstream.answer)
    assert set(upstream.heard[0].headers) == {"host", "content-length", *site.headers()}


def test_a_chunked_body_is_cut_off_at_the_limit(front: Front, upstream: StandIn, site: Site) -> None:
    chunk = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
    for path, mib in ((PULL, 1), (OBJECT, 280)):
        head = request_bytes(path, site.headers() | {"content-length": "", "transfer-encoding": "chunked"})
        assert front.ask(head + chunk * mib + b"0\r\n\r\n")[0] == 413


def test_a_plan_of_256_mib_passes_both_ways(front: Front, upstream: StandIn, site: Site) -> None:
    assert front.ask(request_bytes(OBJECT, site.headers(), bytes(256 << 20)))[0] == 200
    assert len(upstream.heard[-1].body) == 256 << 20
    upstream.reset()
    upstream.answer = bytes(256 << 20)
    status, body, _ = front.ask(request_bytes("/v1/fleet/pull-object", site.headers(), b"body"))
    assert (status, len(body)) == (200, 256 << 20)


def test_one_object_and_four_requests_at_once(front: Front, upstream: StandIn, site: Site) -> None:
    upstream.delay_s = 1.0
    assert statuses_at_once(front, [request_bytes(OBJECT, site.headers(), b"x")] * 2) == [200, 503]
    assert statuses_at_once(front, [request_bytes(PULL, site.headers(), b"x")] * 5) == [200] * 4 + [503]


def test_away_is_503(tmp_path: Path, folder: OperatorFolder, site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with nginx(folder, unused.getsockname()[1], tmp_path / "nginx") as front:
            for path in FLEET:
                status, body, headers = front.ask(request_bytes(path, site.headers(), body_for(path)))
                assert (status, json.loads(body)) == (503, {"detail": "away"})
                assert headers["retry-after"] == "2"
            assert front.ask(request_bytes("/health", {}, method="GET"))[0] == 503


def test_a_superlink_of_another_authority_gets_nothing(tmp_path: Path, folder: OperatorFolder, site: Site) -> None:
    with stand_in(operator(tmp_path / "other")) as other, nginx(folder, other.port, tmp_path / "nginx") as front:
        assert front.ask(request_bytes(PULL, site.headers(), b"body"))[0] == 503
        assert not other.heard


def test_a_revoked_site_is_refused_after_a_reload(tmp_path: Path, folder: OperatorFolder, upstream: StandIn) -> None:
    upstream.reset()
    leaving = Site.enrolled(folder, "leaving")
    home = tmp_path / "nginx"
    with nginx(folder, upstream.port, home) as front:
        assert front.ask(request_bytes(PULL, leaving.headers(), b""))[0] == 200
        (folder.sites_folder / "leaving.pub").rename(folder.revoked / "leaving-1.pub")
        write_nodes_map(folder, home)
        subprocess.run([str(NGINX), "-p", str(home), "-c", str(home / "nginx.conf"), "-s", "reload"], check=True)
        for _ in range(50):
            time.sleep(0.1)
            if (status := front.ask(request_bytes(PULL, leaving.headers(), b""))[0]) == 403:
                break
    assert status == 403


def test_the_log_has_no_value(front: Front, upstream: StandIn, site: Site) -> None:
    headers = site.headers() | {"x-canary": "canary-value"}
    front.ask(request_bytes(PULL, headers, b"canary-body"))
    front.ask(request_bytes("/v1/canary-path?canary", headers, b"canary-body"))
    for _ in range(50):  # a line is written after its answer
        if (text := front.log.read_text()).count("st-elsewhere") and '"route":"other"' in text.splitlines()[-1]:
            break
        time.sleep(0.1)
    last = [json.loads(line) for line in text.splitlines()[-2:]]
    assert [(line["node"], line["route"], line["status"]) for line in last] == [
        ("st-elsewhere", PULL, 200),
        ("st-elsewhere", "other", 404),
    ]
    assert "canary" not in text
    assert headers["flwr-signature"] not in text

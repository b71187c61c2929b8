from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedward_client.courier import link
from fedward_client.courier.faults import Away, WrongCertificate
from fedward_client.courier.fleet import Fleet
from fedward_client.courier.link import Watch, certificate_error, open_link, tls_context
from support.fleet_api import NODE, Authority, FleetApi, Handler, courier_folder, serving, status
from support.proxies import proxying


def fleet_through(proxy: str, api: FleetApi, authority: Authority, path: Path) -> Fleet:
    fleet = Fleet(courier_folder(path, api.address, authority.pem, proxy=proxy), Watch(largest=1 << 20))
    fleet.node_id = NODE
    return fleet


@pytest.fixture
def client(api: FleetApi, authority: Authority) -> Iterator[httpx.Client]:
    with open_link(tls_context(authority.pem), proxy="", watch=Watch(largest=1 << 20)) as client:
        yield client


def test_a_connect_proxy_works_and_sees_only_the_address(api: FleetApi, authority: Authority, tmp_path: Path) -> None:
    with proxying() as proxy:
        fleet = fleet_through(proxy.address, api, authority, tmp_path)
        fleet.heartbeat()
        fleet.heartbeat()
        fleet.close()
    assert [asked.split("\r\n")[0] for asked in proxy.asked] == [f"CONNECT {api.address} HTTP/1.1"]
    assert "flwr" not in proxy.asked[0].lower()
    assert api.asked == ["send-node-heartbeat"] * 2


def test_a_proxy_may_want_a_password(api: FleetApi, authority: Authority, tmp_path: Path) -> None:
    with proxying() as proxy:
        with_password = proxy.address.replace("http://", "http://north:secret@")
        fleet = fleet_through(with_password, api, authority, tmp_path)
        fleet.heartbeat()
        fleet.close()
    assert "Proxy-Authorization: Basic" in proxy.asked[0]


def test_a_proxy_that_opens_tls_is_refused(api: FleetApi, authority: Authority, tmp_path: Path) -> None:
    with proxying(opens_tls=Authority.make().serve(tmp_path)) as proxy:
        fleet = fleet_through(proxy.address, api, authority, tmp_path)
        with pytest.raises(WrongCertificate) as caught:
            fleet.heartbeat()
        fleet.close()
    assert "a proxy opens TLS" in caught.value.hint
    assert b"POST" not in b"".join(proxy.inside)
    assert api.asked == []


def test_a_proxy_that_refuses_is_named(api: FleetApi, authority: Authority, tmp_path: Path) -> None:
    with proxying(status=b"403 Forbidden") as proxy:
        fleet = fleet_through(proxy.address, api, authority, tmp_path)
        with pytest.raises(Away, match="proxy") as caught:
            fleet.heartbeat()
        fleet.close()
    assert "CONNECT" in caught.value.hint


def test_proxies_of_the_environment_change_nothing(
    api: FleetApi, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    fleet = fleet_through("", api, authority, tmp_path)
    fleet.heartbeat()
    fleet.close()


def test_the_system_s_cas_are_not_believed(
    api: FleetApi, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.pem"
    system.write_bytes(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    fleet = fleet_through("", api, Authority.make(), tmp_path)
    with pytest.raises(WrongCertificate):
        fleet.heartbeat()
    fleet.close()


def test_older_tls_is_refused(authority: Authority, tmp_path: Path) -> None:
    with serving(authority.serve(tmp_path), oldest=ssl.TLSVersion.TLSv1_2) as api:
        fleet = fleet_through("", api, authority, tmp_path)
        with pytest.raises(Away):
            fleet.heartbeat()
        fleet.close()


def test_no_redirect_is_followed(api: FleetApi, client: httpx.Client) -> None:
    api.trouble("pull-messages", status(307, headers={"location": f"https://{api.address}/v1/fleet/push-messages"}))
    assert client.post(f"https://{api.address}/v1/fleet/pull-messages", content=b"").status_code == 307
    assert api.asked == ["pull-messages"]


def test_a_long_body_goes_out_whole_and_shows_progress(api: FleetApi, authority: Authority) -> None:
    marks: list[float] = []
    api.always["pull-messages"] = lambda handler: (200, b"y" * 300_000)
    watch = Watch(largest=1 << 20, progress=lambda: marks.append(0))
    with open_link(tls_context(authority.pem), proxy="", watch=watch) as client:
        answer = client.post(f"https://{api.address}/v1/fleet/pull-messages", content=b"x" * 1_000_000)
    assert len(answer.content) == 300_000
    assert api.headers[0]["content-length"] == "1000000"
    assert len(marks) > 1_000_000 // link.CHUNK


def test_an_answer_over_the_limit_ends(api: FleetApi, client: httpx.Client) -> None:
    api.always["pull-messages"] = status(200, bytes(2 << 20))
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(f"https://{api.address}/v1/fleet/pull-messages")


def test_an_answer_drop_by_drop_ends(api: FleetApi, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GRACE_S", 0.2)

    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b".")
            handler.wfile.flush()
            time.sleep(0.05)

    api.always["pull-messages"] = drip
    before = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        client.post(f"https://{api.address}/v1/fleet/pull-messages")
    assert time.monotonic() - before < 3


def test_a_loop_of_causes_has_an_end() -> None:
    error = ssl.SSLCertVerificationError("x")
    try:
        try:
            raise error
        except ssl.SSLError as inner:
            raise httpx.ConnectError("y") from inner
    except httpx.ConnectError as outer:
        assert certificate_error(outer) is error
    assert certificate_error(ValueError()) is None

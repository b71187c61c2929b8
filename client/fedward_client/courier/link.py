"""HTTPS to one server: TLS 1.3, one CA, one name, perhaps a CONNECT proxy; bounded in bytes and in time.

Nothing of the machine's environment counts: no system CAs, no proxy variables, no redirects. A proxy that opens TLS
cannot show a certificate of our CA, so it is refused before anything is sent. This module knows nothing of Flower.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime

import httpx

from fedward_client.courier.status import our_version

__all__ = ["OverLimit", "Watch", "certificate_error", "certificate_words", "open_link", "tls_context"]

CHUNK = 1 << 16
TIMEOUT = httpx.Timeout(connect=10.0, read=30.0, write=30.0, pool=10.0)
SLOWEST_BYTES_PER_S, GRACE_S = 4096, 60.0
HEADERS = {"accept-encoding": "identity", "user-agent": f"fedward-courier/{our_version()}"}
LIMITS = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30.0)
EXPIRED, NOT_YET_VALID, WRONG_HOST, WRONG_IP = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_*


class OverLimit(httpx.RemoteProtocolError):
    """An answer is larger than ``Watch.largest``."""


class Watch:
    """What the link observes: that bytes move, and how far this clock is ahead of the server's."""

    def __init__(self, *, largest: int, progress: Callable[[], None] = lambda: None) -> None:
        """Nothing observed yet.

        Args:
          largest: bytes of the largest answer.
          progress: called for every 64 KiB that went either way.
        """
        self.largest, self.progress = largest, progress
        self.ahead_s: float | None = None

    def compare_clocks(self, date: str | None) -> None:
        """Note how far this clock is ahead of the time in an answer; negative when behind, None when it says none."""
        try:
            self.ahead_s = time.time() - parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            self.ahead_s = None


def tls_context(ca_pem: bytes) -> ssl.SSLContext:
    """Believes one CA, for the right name, from TLS 1.3 on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the name and demands a certificate
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    return context


def open_link(context: ssl.SSLContext, *, proxy: str, watch: Watch) -> httpx.Client:
    """A client for requests to that one server.

    Guarantees:
      - No certificate of another CA, of another name, or out of its time is accepted.
      - HTTPS_PROXY and the like in the environment change nothing; only ``proxy`` is used.
      - No redirect is followed, no compressed answer is opened.
      - An answer ends at ``watch.largest`` bytes, and an exchange slower than 4 KiB/s after its first minute ends too.
    """
    through = httpx.Proxy(proxy) if proxy else None
    inner = httpx.HTTPTransport(verify=context, proxy=through, trust_env=False, limits=LIMITS)
    return httpx.Client(
        transport=Bounded(inner, watch), timeout=TIMEOUT, headers=HEADERS, trust_env=False, follow_redirects=False
    )


def certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """The failed check of a certificate that lies under an error of the link, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def certificate_words(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """Why a certificate was refused, and what to do: our words for OpenSSL's code, nothing that the other side sent."""
    known = {EXPIRED: "it has expired", NOT_YET_VALID: "it is not valid yet"}
    named = {WRONG_HOST: "it is for another name", WRONG_IP: "it is for another address"}
    why = (known | named).get(error.verify_code, "another CA signed it")
    if error.verify_code in known:
        return why, "check this machine's clock; if it is right, ask the operator to renew the certificate"
    if error.verify_code in named:
        return why, "write the server as the operator names it; or ask the operator to add this name to the certificate"
    return (
        why,
        "compare ca.pem with the operator's; or a proxy opens TLS: exempt this server there, it must pass unopened",
    )


class Bounded(httpx.BaseTransport):
    """A transport whose requests and answers are bounded, and whose progress is seen."""

    def __init__(self, inner: httpx.BaseTransport, watch: Watch) -> None:
        """Wrap another transport."""
        self._inner, self._watch = inner, watch

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send in slices, and hand the answer on in slices."""
        pace = _Pace(self._watch.progress)
        request.stream = _Body(request.read(), pace)
        response = self._inner.handle_request(request)
        self._watch.compare_clocks(response.headers.get("date"))
        if not isinstance(response.stream, httpx.SyncByteStream):
            raise httpx.RemoteProtocolError("no stream", request=request)
        response.stream = _Answer(response.stream, pace, self._watch.largest)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise httpx.RemoteProtocolError("a compressed answer", request=request)
        return response

    def close(self) -> None:
        """Close the wrapped transport."""
        self._inner.close()


class _Pace:
    """Ends an exchange that is kept alive drop by drop."""

    def __init__(self, progress: Callable[[], None]) -> None:
        self._progress, self._start, self._bytes = progress, time.monotonic(), 0

    def moved(self, count: int) -> None:
        self._bytes += count
        self._progress()
        if time.monotonic() - self._start > GRACE_S + self._bytes / SLOWEST_BYTES_PER_S:
            raise httpx.ReadTimeout("too slow")


class _Body(httpx.SyncByteStream):
    def __init__(self, content: bytes, pace: _Pace) -> None:
        self._content, self._pace = content, pace

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), CHUNK):
            part = self._content[start : start + CHUNK]
            yield part
            self._pace.moved(len(part))


class _Answer(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, pace: _Pace, largest: int) -> None:
        self._inner, self._pace, self._largest = inner, pace, largest

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for part in self._inner:
            count += len(part)
            if count > self._largest:
                raise OverLimit("an answer over the limit")
            self._pace.moved(len(part))
            yield part

    def close(self) -> None:
        self._inner.close()

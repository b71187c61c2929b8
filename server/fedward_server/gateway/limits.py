"""How much of the gateway one peer may use: rates, bytes, things at once, and how slow a body may be.

Pure: the clock is given, nothing here knows of sockets, HTTP or nodes. All of it is bounded in memory, because keys
come from strangers.

Example:
    >>> now = [0.0]
    >>> bucket = Buckets(per_s=1.0, burst=2, clock=lambda: now[0])
    >>> [bucket.take("a") for _ in range(3)]
    [True, True, False]
    >>> now[0] = 1.0
    >>> bucket.take("a")
    True
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from fedward_common.errors import ConfigError

__all__ = ["Buckets", "Limits", "Pace", "Together", "neighbourhood"]

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the gateway allows; times in seconds."""

    max_body_bytes: int = 64 << 20  # of an object
    max_small_bytes: int = 64 << 10  # of every other request
    max_reply_bytes: int = 8 << 10  # of a reply without its objects: fedward's have about 400
    requests_per_s: float = 20.0
    burst: int = 100
    requests_at_once: int = 4  # of one node
    objects_at_once: int = 1  # of one node: the SuperLink holds each whole
    replies_per_s: float = 5.0  # each costs the SuperLink milliseconds under a lock
    replies_burst: int = 50
    bytes_per_s: float = 32 << 20  # of a node's bodies, after a burst of two of the largest
    strangers_per_s: float = 2.0
    strangers_burst: int = 20
    connections: int = 1024
    connections_per_address: int = 64
    connections_per_node: int = 8
    head_bytes: int = 16 << 10
    head_s: float = 10.0
    idle_s: float = 120.0
    grace_s: float = 30.0  # of waiting for bytes, before the slowest rate counts
    slowest_bytes_per_s: float = 4096.0
    upstream_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what would close the gateway or open it wide."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"gateway.{name} is {value}", hint="give a positive number")

    @property
    def burst_bytes(self) -> int:
        """What a node may send without being slowed down: its update, and that once again."""
        return 2 * self.max_body_bytes


@dataclass(kw_only=True, eq=False)
class Buckets:
    """A token bucket for each key.

    Guarantees:
      - In any time t a key takes at most ``burst + per_s * t``.
      - At most ``most`` keys are remembered; a key that is forgotten starts with a full bucket.
    """

    per_s: float
    burst: int
    clock: Clock = time.monotonic
    most: int = 16384
    _levels: OrderedDict[Hashable, tuple[float, float]] = field(default_factory=OrderedDict, init=False)

    def take(self, key: Hashable) -> bool:
        """Take one token, if there is one."""
        level = self._level(key)
        taken = level >= 1.0
        self._set(key, level - taken)
        return taken

    def owe(self, key: Hashable, amount: float) -> float:
        """Take as many as were used up already, and say for how many seconds to wait before more are."""
        level = self._level(key) - amount
        self._set(key, level)
        return max(0.0, -level / self.per_s)

    def _level(self, key: Hashable) -> float:
        now = self.clock()
        level, at = self._levels.pop(key, (float(self.burst), now))
        return min(float(self.burst), level + max(0.0, now - at) * self.per_s)

    def _set(self, key: Hashable, level: float) -> None:
        self._levels[key] = (level, self.clock())
        if len(self._levels) > self.most:
            self._levels.popitem(last=False)


@dataclass(kw_only=True, eq=False)
class Together:
    """How many things each key does at once.

    Guarantees:
      - A key never holds more than ``most``; all keys together never more than ``total``.
    """

    most: int
    total: int
    _held: Counter[Hashable] = field(default_factory=Counter, init=False)
    _sum: int = field(default=0, init=False)

    def enter(self, key: Hashable) -> bool:
        """Hold one more, if that is allowed; then `leave` must follow."""
        if self._held[key] >= self.most or self._sum >= self.total:
            return False
        self._held[key] += 1
        self._sum += 1
        return True

    def leave(self, key: Hashable) -> None:
        """Let go of one that `enter` allowed."""
        self._held[key] -= 1
        self._sum -= 1
        if not self._held[key]:
            del self._held[key]


@dataclass(kw_only=True, eq=False)
class Pace:
    """How long one body may keep us waiting: a grace, plus its bytes at the slowest rate.

    Guarantees:
      - The waiting for n bytes is at most ``grace_s + n / slowest``, and no single wait longer than ``grace_s``.
    """

    grace_s: float
    slowest: float
    waited_s: float = 0.0
    received: int = 0

    def left(self) -> float:
        """Seconds that the next wait may take."""
        return min(self.grace_s, max(0.0, self.grace_s + self.received / self.slowest - self.waited_s))

    def note(self, *, waited_s: float, received: int) -> None:
        """Count a wait and what it brought."""
        self.waited_s += waited_s
        self.received += received


def neighbourhood(host: str) -> str:
    """The key under which strangers share a bucket: an IPv4 address, or the /64 of an IPv6 address.

    Example:
        >>> neighbourhood("::ffff:192.0.2.7"), neighbourhood("2001:db8::1:2:3:4%eth0")
        ('192.0.2.7', '2001:db8::/64')
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))

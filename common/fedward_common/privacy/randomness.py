"""Randomness: one keystream for each (round, step, purpose), secure at a site and reproducible in simulation.

A real site takes ``SecureRandom`` and nothing else; ``SeededRandom`` exists so that a simulated run can be repeated and
resumed bit for bit. There is no global state. This module does not know what the numbers are used for.

Example:
    >>> random = SeededRandom(seed=7, site="ward-3")
    >>> stream = random.stream(round=0, step=0, purpose=Purpose.SAMPLING)
    >>> int(stream.bernoulli(1000, probability=0.5).sum())
    499
    >>> public_gaussian(7, "layer.0.lora_A", (2, 3)).shape
    (2, 3)
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from fedward_common.errors import PrivacyError
from fedward_common.privacy import checks

__all__ = ["Purpose", "Randomness", "SecureRandom", "SeededRandom", "Stream", "chunks", "public_gaussian"]

KEY_BYTES = 32
STREAM_CONTEXT = b"fedward.stream.1"
PUBLIC_CONTEXT = b"fedward.public.1"
SECURE_CONTEXT = b"fedward.secure.1"
LARGEST_SEED = 2**63
CHUNK = 2**13  # numbers at a time: 64 KiB, so that a chunk stays in the cache from keystream to finished value
ZEROS = memoryview(bytes(8 * CHUNK))  # a keystream is the encryption of zeros


class Purpose(StrEnum):
    """What a stream is drawn for; two purposes never share a keystream."""

    SAMPLING = "sampling"  # which units enter a step
    RECORDS = "records"  # which records of a drawn unit are used
    NOISE = "noise"  # the Gaussian noise on a sum of gradients
    METRIC_RECORDS = "metric_records"  # which records of a validation unit are used
    METRICS = "metrics"  # the Gaussian noise on a sum of metrics


class _Process:
    """Which process this is, by a mark that ``fork`` replaces in the child.

    A process number alone is not enough: the first process of a container and the first of a namespace below it are
    both number 1. The number is there for a fork below Python, which calls no hook.
    """

    def __init__(self) -> None:
        self._mark = object()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._mark = object()

    def here(self) -> tuple[object, int]:
        """Equal for two calls in one process, unequal across a fork."""
        return self._mark, os.getpid()


_PROCESS = _Process()


class Stream:
    """Numbers from the ChaCha20 keystream of one 256-bit key.

    Guarantees:
      - Equal keys give equal numbers; each call continues where the last one stopped.
      - A stream draws in the process that made it and in no other: after ``fork`` the child is refused, so parent and
        child never draw the same numbers.
      - A stream cannot be pickled or copied, so it does not reach another process by way of a queue.

    Raises:
      PrivacyError: at a draw, if the stream was made before a fork.

    Source: RFC 8439 (ChaCha20).
    """

    def __init__(self, key: bytes) -> None:
        """Start the keystream of a 32-byte key."""
        if len(key) != KEY_BYTES:
            raise PrivacyError(f"a key of {len(key)} bytes", hint="a stream takes 32 bytes, for example os.urandom(32)")
        # One key serves one stream, so a constant nonce repeats nothing.
        self._keystream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._home = _PROCESS.here()

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse pickling and copying: two copies of a stream would draw the same noise."""
        raise PrivacyError("a random stream was about to be copied", hint="draw a new stream in the other process")

    def uint64(self, n: int) -> NDArray[np.uint64]:
        """``n`` uniform 64-bit integers."""
        checks.at_least("n", n, 0)
        if self._home != _PROCESS.here():
            raise PrivacyError("a random stream was used after a fork", hint="draw a new stream in the new process")
        numbers = np.empty(n, dtype="<u8")
        for part in chunks(n):
            chunk = numbers[part]
            self._keystream.update_into(ZEROS[: chunk.nbytes], chunk.view(np.uint8).data)
        return numbers.astype(np.uint64, copy=False)

    def bernoulli(self, n: int, *, probability: float) -> NDArray[np.bool_]:
        """``n`` independent coins.

        Args:
          n: how many.
          probability: of True, in (0, 1].

        Guarantees:
          - True has probability ``floor(probability * 2^64) / 2^64``: never above what was asked, so that accounting
            for ``probability`` never counts on more amplification than there is.
          - ``probability = 1`` gives True always.
        """
        checks.rate("probability", probability)
        threshold = int(probability * 2.0**64)
        draws = self.uint64(n)
        return np.ones(n, dtype=np.bool_) if threshold >= 2**64 else draws < np.uint64(threshold)

    def gaussian(self, n: int) -> NDArray[np.float64]:
        """``n`` independent standard normal numbers (Box and Muller 1958, in constant time).

        Two 53-bit uniforms in (0, 1] give two numbers, so no number lies beyond 8.58 standard deviations; a true
        Gaussian does so with probability 1e-17. The trigonometric form has no rejection loop whose length would tell
        an observer about the numbers.
        """
        checks.at_least("n", n, 0)
        pairs = (n + 1) // 2
        values = np.empty((2, pairs), dtype=np.float64)
        for part in chunks(pairs):
            values[0, part] = np.sqrt(-2.0 * np.log(self._uniform(part.stop - part.start)))
        for part in chunks(pairs):
            # of the half angle: cos = 2 / (1 + tan^2) - 1 and sin = 2 tan / (1 + tan^2), exact to 4e-16 everywhere
            tangent = np.tan(math.pi * self._uniform(part.stop - part.start))
            twice = 2.0 / (1.0 + tangent * tangent)
            np.multiply(values[0, part], tangent * twice, out=values[1, part])
            values[0, part] *= twice - 1.0
        return values.reshape(-1)[:n]

    def choose(self, n: int, *, size: int) -> NDArray[np.int64]:
        """A uniform subset of ``range(n)`` with ``min(n, size)`` members, sorted."""
        checks.at_least("size", size, 1)
        if size >= n:
            return np.arange(n, dtype=np.int64)
        # The smallest of independent uniform keys; two keys of 64 bits are equal with probability below n^2 / 2^65.
        return np.sort(np.argpartition(self.uint64(n), size)[:size]).astype(np.int64)

    def _uniform(self, n: int) -> NDArray[np.float64]:
        """Uniforms on (0, 1] in steps of 2^-53: never 0, whose logarithm would be infinite."""
        # 53 bits fit a signed integer too, whose cast to a double is four times as fast
        values = (self.uint64(n) >> np.uint64(11)).view(np.int64).astype(np.float64)
        values += 1.0
        values *= 2.0**-53
        return values


def chunks(n: int) -> Iterator[slice]:
    """Of ``n`` numbers in a row, parts that stay in a processor's cache."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureRandom:
    """The operating system's generator: the only source that a real site accepts.

    Guarantees:
      - Every call takes a fresh 256-bit key from the operating system, and nothing is derived from an earlier one: a
        fork does not repeat a stream it asks for afterwards.
      - Nor does a machine that is rolled back to a snapshot, even if its generator is rolled back with it: the time
        and the process are hashed into the key. They add no secrecy, which is the operating system's to give.

    What this cannot cover: a machine copied while a stream is in use goes on with that stream in both copies. A stream
    serves one step, whose data and plan are the same in both; the ledger's witness answers for the rest.

    Source: RFC 7693 (BLAKE2b); Ristenpart and Yilek 2010, "When Good Randomness Goes Bad", for the hedge.
    """

    def stream(self, *, round: int, step: int, purpose: Purpose) -> Stream:
        """A fresh stream; the arguments only mirror ``SeededRandom``."""
        moment = b"".join(part.to_bytes(16, "big", signed=True) for part in (time.time_ns(), os.getpid()))
        fresh = hashlib.blake2b(os.urandom(KEY_BYTES) + moment, digest_size=KEY_BYTES, person=SECURE_CONTEXT)
        return Stream(fresh.digest())


@dataclass(frozen=True, kw_only=True, slots=True)
class SeededRandom:
    """Reproducible streams, for simulation only: whoever knows the seed can subtract the noise.

    Guarantees:
      - Stateless: the key is a hash of seed, site, round, step and purpose, so a resumed run draws the same numbers.
      - Different seeds, sites, rounds, steps or purposes give unrelated streams.

    Source: RFC 7693 (BLAKE2b) as the key derivation.
    """

    seed: int
    site: str

    def __post_init__(self) -> None:
        """Check the seed's range."""
        _check_seed(self.seed)

    def stream(self, *, round: int, step: int, purpose: Purpose) -> Stream:
        """The stream of this seed and site for one round, step and purpose."""
        checks.at_least("round", round, 0)
        checks.at_least("step", step, 0)
        return Stream(_derive(STREAM_CONTEXT, self.seed, self.site, str(round), str(step), purpose.value))


Randomness: TypeAlias = SecureRandom | SeededRandom


def public_gaussian(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers for public initialisation, the same on every machine.

    Args:
      seed: the plan's public seed; known to everybody, so never a source of noise.
      name: the tensor's name.
      shape: the tensor's shape.

    Returns:
      float32 of this shape.

    Guarantees:
      - Bit-identical wherever IEEE 754 holds: only operations that IEEE rounds exactly are used, and neither a
        logarithm nor a cosine of the platform's library.

    Source: Marsaglia and Bray 1964 (the polar form of Box and Muller), which may reject because nothing is secret.
    """
    _check_seed(seed)
    stream = Stream(_derive(PUBLIC_CONTEXT, seed, name))
    count = math.prod(shape)
    values = np.empty(0, dtype=np.float64)
    while values.size < count:
        values = np.concatenate([values, _polar(stream, pairs=count - values.size + 8)])
    return values[:count].astype(np.float32).reshape(shape)


def _polar(stream: Stream, *, pairs: int) -> NDArray[np.float64]:
    # Points (2k + 1) / 2^53 - 1 of a grid without 0, so that s > 0.
    points = ((stream.uint64(2 * pairs) >> np.uint64(12)).astype(np.float64) * 2.0 + 1.0) * 2.0**-52 - 1.0
    u, v = points.reshape(2, pairs)
    s = u * u + v * v
    u, v, s = u[s < 1.0], v[s < 1.0], s[s < 1.0]
    factor = np.sqrt(-2.0 * _logarithm(s) / s)
    return np.stack([u * factor, v * factor], axis=1).reshape(-1)


def _logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(x) to about 1e-15 from +, -, * and / alone: ln(m 2^e) = e ln 2 + 2 artanh((m - 1) / (m + 1))."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(small, mantissa * 2.0, mantissa), np.where(small, exponent - 1, exponent)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    series = np.zeros_like(z)
    for power in range(21, 0, -2):
        series = series * (z * z) + 1.0 / power
    return exponent * math.log(2.0) + 2.0 * z * series


def _derive(context: bytes, seed: int, *parts: str) -> bytes:
    digest = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=KEY_BYTES, person=context)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)  # the length keeps ("ab", "c") apart from ("a", "bc")
    return digest.digest()


def _check_seed(seed: int) -> None:
    checks.at_least("seed", seed, 0)
    if seed >= LARGEST_SEED:
        raise PrivacyError(f"seed is {seed}", hint="give a seed below 2^63")

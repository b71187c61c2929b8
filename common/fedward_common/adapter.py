"""The adapter: the trained tensors, as one element of a vector space with a name.

Adding adapters of unlike specs raises, so an update can never be folded into a model it was not made for. This module
knows shapes and numbers, never a model library: the server uses it without torch.

Example:
    >>> spec = AdapterSpec(base_fingerprint="0" * 64, method="lora", rank=1, alpha=1.0, target_modules=("q",),
    ...                    groups={"head": ("head.bias",)}, tensors={"head.bias": (2,)})
    >>> ones = Adapter(spec=spec, vector=np.ones(2, np.float32))
    >>> (ones + ones.scaled(0.5)).tensors["head.bias"].tolist()
    [1.5, 1.5]
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedward_common.checks import at_least, hex_digest, positive
from fedward_common.errors import InputError, MalformedMessage, NonFiniteUpdate, OutputError, SpecMismatch

__all__ = ["Adapter", "AdapterSpec", "Vector"]

Vector = NDArray[np.float32]

_BLOCK = 2**16  # numbers at a time where float64 of a whole adapter would double its memory


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What the trained tensors are: names, shapes, groups, and the base model they belong to.

    ``tensors`` maps a name to its shape; ``groups`` maps a group ('head', 'adapter') to the names in it. Every tensor
    lies in exactly one group. The canonical order of tensors is by name.
    """

    base_fingerprint: str
    method: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: Literal["float32"] = "float32"

    def __post_init__(self) -> None:
        """Check that groups partition the tensors and that every shape is positive."""
        hex_digest("base_fingerprint", self.base_fingerprint)
        at_least("rank", self.rank, 1)
        positive("alpha", self.alpha)
        grouped = [name for names in self.groups.values() for name in names]
        if sorted(grouped) != sorted(self.tensors):
            raise InputError("the groups of an adapter do not partition its tensors", hint="list each name once")
        for name, shape in self.tensors.items():
            for extent in shape:
                at_least(f"extent of {name}", extent, 1)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        content = {
            "base_fingerprint": self.base_fingerprint,
            "method": self.method,
            "rank": self.rank,
            "alpha": float(self.alpha),  # 2 and 2.0 are one number, also after a trip over the wire
            "target_modules": list(self.target_modules),
            "groups": {group: sorted(names) for group, names in self.groups.items()},
            "tensors": {name: list(shape) for name, shape in self.tensors.items()},
            "dtype": self.dtype,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the flat vector, in canonical order."""
        slices, start = {}, 0
        for name in sorted(self.tensors):
            end = start + math.prod(self.tensors[name])
            slices[name], start = slice(start, end), end
        return slices

    @property
    def size(self) -> int:
        """Number of trained numbers."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    def blocks(self) -> Iterator[slice]:
        """The whole flat vector in pieces, for work whose intermediate results must stay small."""
        size = self.size
        return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))

    def subset(self, groups: Iterable[str]) -> AdapterSpec:
        """The spec of the named groups alone, as trained and sent in one stage.

        Raises:
          SpecMismatch: a group is unknown or named twice.
        """
        chosen = tuple(groups)
        return self._subsets.get(chosen) or self._subsets.setdefault(chosen, self._subset(chosen))

    @cached_property
    def _subsets(self) -> dict[tuple[str, ...], AdapterSpec]:
        return {}  # each is made once

    def _subset(self, chosen: tuple[str, ...]) -> AdapterSpec:
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(self.groups):
            raise SpecMismatch("a stage trains groups that the adapter lacks", hint=f"known: {sorted(self.groups)}")
        kept = {group: self.groups[group] for group in chosen}
        names = {name for members in kept.values() for name in members}
        return replace(self, groups=kept, tensors={n: s for n, s in self.tensors.items() if n in names})


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A point, or a difference of points, in the space that ``spec`` names.

    ``vector`` is flat float32 of length ``spec.size`` in canonical order; it is made read-only.
    """

    spec: AdapterSpec
    vector: Vector

    def __post_init__(self) -> None:
        """Check length and type, and freeze the numbers."""
        if self.vector.dtype != np.float32 or self.vector.shape != (self.spec.size,):
            raise SpecMismatch(
                f"a vector of shape {self.vector.shape} and type {self.vector.dtype} is no adapter of this spec",
                hint=f"expected float32 of shape ({self.spec.size},)",
            )
        self.vector.setflags(write=False)

    @classmethod
    def zeros(cls, spec: AdapterSpec) -> Adapter:
        """The origin of the space."""
        return cls(spec=spec, vector=np.zeros(spec.size, np.float32))

    @classmethod
    def from_tensors(cls, spec: AdapterSpec, tensors: Mapping[str, NDArray[np.floating]]) -> Adapter:
        """Lay tensors out in canonical order.

        Raises:
          SpecMismatch: names or shapes differ from the spec.
        """
        if {name: tuple(value.shape) for name, value in tensors.items()} != dict(spec.tensors):
            raise SpecMismatch("tensor names or shapes differ from the spec", hint="compare both sides' adapter tables")
        flat = [np.asarray(tensors[name], np.float32).ravel() for name in spec.slices]
        return cls(spec=spec, vector=np.concatenate(flat) if flat else np.zeros(0, np.float32))

    @cached_property
    def tensors(self) -> dict[str, Vector]:
        """Read-only views by name, shaped."""
        return {name: self.vector[part].reshape(self.spec.tensors[name]) for name, part in self.spec.slices.items()}

    @cached_property
    def body_digest(self) -> bytes:
        """SHA-256 of ``to_bytes``: computed once, for the digest and for every signature over these bytes."""
        return hashlib.sha256(self.vector.astype("<f4", copy=False).data).digest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the spec's digest and the bytes' digest."""
        return hashlib.sha256(bytes.fromhex(self.spec.digest) + self.body_digest).hexdigest()

    def __add__(self, other: Adapter) -> Adapter:
        """Sum of two adapters of one spec."""
        self._same_space(other)
        return Adapter(spec=self.spec, vector=self.vector + other.vector)

    def __sub__(self, other: Adapter) -> Adapter:
        """Difference of two adapters of one spec."""
        self._same_space(other)
        return Adapter(spec=self.spec, vector=self.vector - other.vector)

    def scaled(self, factor: float) -> Adapter:
        """Every number times ``factor``."""
        return Adapter(spec=self.spec, vector=(self.vector * np.float32(factor)).astype(np.float32))

    def l2_norm(self) -> float:
        """Euclidean norm over all tensors jointly, accumulated in float64."""
        squares = (np.square(self.vector[part], dtype=np.float64).sum() for part in self.spec.blocks())
        return math.sqrt(math.fsum(squares))

    def subset(self, groups: Iterable[str]) -> Adapter:
        """The named groups alone, as an element of ``spec.subset(groups)``."""
        spec = self.spec.subset(groups)
        return Adapter.from_tensors(spec, {name: self.tensors[name] for name in spec.tensors})

    def replaced(self, part: Adapter) -> Adapter:
        """This adapter with the tensors of ``part``, an element of one of its subsets, put in place.

        Raises:
          SpecMismatch: ``part`` is no subset of this adapter.
        """
        if self.spec.subset(part.spec.groups).digest != part.spec.digest:
            raise SpecMismatch("the part belongs to another adapter", hint="compare both spec digests")
        return Adapter.from_tensors(self.spec, {**self.tensors, **part.tensors})

    def check_finite(self, *, largest: float = math.inf) -> None:
        """Refuse NaN, infinity and magnitudes above ``largest``.

        Raises:
          NonFiniteUpdate: an entry is out of range. The text names no value.
        """
        lowest, highest = self._range
        if not (highest <= min(largest, 3.4e38) and lowest >= -min(largest, 3.4e38)):
            raise NonFiniteUpdate(
                "an adapter holds NaN, infinity or too large a number", hint="lower the learning rate"
            )

    @cached_property
    def _range(self) -> tuple[float, float]:
        # both are NaN where any number is, and every comparison with NaN is false
        return (float(self.vector.min()), float(self.vector.max())) if self.vector.size else (0.0, 0.0)

    def to_bytes(self) -> bytes:
        """Little-endian float32 in canonical order: 4 bytes a number."""
        return self.vector.astype("<f4", copy=False).tobytes()

    @classmethod
    def from_bytes(cls, spec: AdapterSpec, data: bytes | memoryview, *, body_digest: bytes | None = None) -> Adapter:
        """Read ``to_bytes`` back, into memory of its own.

        Args:
          spec: names and shapes.
          data: four bytes a number.
          body_digest: SHA-256 of ``data``, where the caller has just computed it.

        Raises:
          MalformedMessage: the length is not four bytes a number.
        """
        return cls._of(spec, _numbers(spec, data).astype(np.float32), body_digest)

    @classmethod
    def view(cls, spec: AdapterSpec, data: bytes | memoryview, *, body_digest: bytes | None = None) -> Adapter:
        """Read ``to_bytes`` back without a copy: the numbers lie in ``data``, at an address that may be odd.

        NumPy reads such numbers; libraries of models may not. Arguments and errors are those of ``from_bytes``.
        """
        return cls._of(spec, _numbers(spec, data).astype(np.float32, copy=False), body_digest)

    @classmethod
    def _of(cls, spec: AdapterSpec, vector: Vector, body_digest: bytes | None) -> Adapter:
        adapter = cls(spec=spec, vector=vector)
        if body_digest is not None:
            adapter.__dict__["body_digest"] = body_digest  # where cached_property keeps it
        return adapter

    def save(self, path: Path) -> None:
        """Write the tensors as safetensors; a full disk is an ``OSError``."""
        from safetensors.numpy import save

        path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in self.tensors.items()}))

    @classmethod
    def load(cls, spec: AdapterSpec, path: Path) -> Adapter:
        """Read ``save`` back.

        Raises:
          OutputError: the file is missing or corrupt.
          SpecMismatch: it holds other tensors.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (OSError, SafetensorError):
            raise OutputError(
                f"cannot read {path}", hint="the file is missing or corrupt; use an earlier one"
            ) from None
        return cls.from_tensors(spec, tensors)

    def _same_space(self, other: Adapter) -> None:
        if self.spec.digest != other.spec.digest:
            raise SpecMismatch("two adapters of unlike specs do not add", hint="compare both spec digests")


def _numbers(spec: AdapterSpec, data: bytes | memoryview) -> NDArray[np.float32]:
    if len(data) != 4 * spec.size:
        raise MalformedMessage("tensor bytes have the wrong length", hint="sender and receiver disagree on shapes")
    return np.frombuffer(data, "<f4")

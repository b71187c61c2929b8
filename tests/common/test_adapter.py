from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.errors import InputError, MalformedMessage, NonFiniteUpdate, OutputError, SpecMismatch
from support.nouns import HEAD, SPEC, START, adapter_of

OTHER = replace(SPEC, base_fingerprint="ef" * 32)
moderate = st.floats(min_value=-1e6, max_value=1e6, width=32)
vectors = npst.arrays(np.float32, SPEC.size, elements=moderate)
anything = npst.arrays(np.float32, SPEC.size, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
adapters = vectors.map(lambda vector: Adapter(spec=SPEC, vector=vector))


def same(left: Adapter, right: Adapter, *, scale: float = 1.0) -> bool:
    return bool(np.allclose(left.vector, right.vector, rtol=1e-5, atol=1e-5 * max(scale, 1.0)))


# ---- the space -------------------------------------------------------------------------------------------------------


@given(adapters, adapters, adapters)
@settings(deadline=None, max_examples=50)
def test_addition_is_that_of_a_vector_space(a: Adapter, b: Adapter, c: Adapter) -> None:
    largest = float(max(np.abs(x.vector).max() for x in (a, b, c)))
    assert (a + b).digest == (b + a).digest
    assert same((a + b) + c, a + (b + c), scale=largest)
    assert np.array_equal((a + Adapter.zeros(SPEC)).vector, a.vector)
    assert not (a - a).vector.any()
    assert np.array_equal((a - b).vector, (a + b.scaled(-1)).vector)


@given(adapters, adapters, st.floats(-100, 100, width=32), st.floats(-100, 100, width=32))
@settings(deadline=None, max_examples=50)
def test_scaling_is_that_of_a_vector_space(a: Adapter, b: Adapter, x: float, y: float) -> None:
    largest = float(max(np.abs(a.vector).max(), np.abs(b.vector).max())) * 10_000
    assert np.array_equal(a.scaled(1).vector, a.vector)
    assert same((a + b).scaled(x), a.scaled(x) + b.scaled(x), scale=largest)
    assert same(a.scaled(x).scaled(y), a.scaled(y).scaled(x), scale=largest)
    assert same(a.scaled(x + y), a.scaled(x) + a.scaled(y), scale=largest)


@given(adapters, st.floats(-100, 100, width=32))
@settings(deadline=None, max_examples=50)
def test_the_norm_is_joint_over_all_tensors(a: Adapter, x: float) -> None:
    assert a.l2_norm() == pytest.approx(math.hypot(*map(float, a.vector)), rel=1e-9)
    assert a.scaled(x).l2_norm() == pytest.approx(abs(x) * a.l2_norm(), rel=1e-5, abs=1e-30)


def test_the_norm_does_not_overflow() -> None:
    assert adapter_of([3e38] * SPEC.size).l2_norm() == pytest.approx(3e38 * 3, rel=1e-6)


@pytest.mark.parametrize("other", [OTHER, HEAD, replace(SPEC, alpha=3.0)], ids=["base", "subset", "alpha"])
def test_adapters_of_unlike_specs_do_not_add(other: AdapterSpec) -> None:
    zero = Adapter.zeros(other)
    with pytest.raises(SpecMismatch):
        START + zero
    with pytest.raises(SpecMismatch):
        zero - START


# ---- the spec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"base_fingerprint": "ab" * 31 + "ac"},
        {"method": "core"},
        {"rank": 2},
        {"alpha": 2.0000000000000004},
        {"target_modules": ("value",)},
        {"groups": {"head": ("head.bias",), "adapter": ("layer.lora_B", "head.weight")}},
        {"groups": {"top": ("head.bias", "head.weight"), "adapter": ("layer.lora_B",)}},
        {"tensors": {**SPEC.tensors, "layer.lora_B": (1, 3)}},
    ],
    ids=str,
)
def test_the_spec_digest_changes_with_every_field(change: dict[str, Any]) -> None:
    assert replace(SPEC, **change).digest != SPEC.digest


def test_the_spec_digest_does_not_depend_on_order_nor_on_the_kind_of_a_number() -> None:
    turned = replace(
        SPEC,
        tensors=dict(reversed(list(SPEC.tensors.items()))),
        groups={"adapter": ("layer.lora_B",), "head": ("head.weight", "head.bias")},
        alpha=2,
    )
    assert turned.digest == SPEC.digest
    assert list(turned.slices) == list(SPEC.slices) == sorted(SPEC.tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"base_fingerprint": "minilm"},
        {"rank": 0},
        {"alpha": math.nan},
        {"alpha": 0.0},
        {"tensors": {**SPEC.tensors, "layer.lora_B": (3, 0)}},
        {"tensors": {**SPEC.tensors, "layer.lora_B": (-3, -1)}},
        {"groups": {"head": ("head.bias", "head.weight")}},
        {"groups": {**SPEC.groups, "more": ("head.bias",)}},
        {"groups": {**SPEC.groups, "more": ("unknown",)}},
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(SPEC, **change)


@pytest.mark.parametrize("groups", [(), ("nose",), ("head", "head"), ("head", "nose")])
def test_a_subset_of_unknown_or_repeated_groups_is_refused(groups: tuple[str, ...]) -> None:
    with pytest.raises(SpecMismatch) as caught:
        SPEC.subset(groups)
    assert "adapter" in caught.value.hint


def test_the_slices_cover_the_vector_once() -> None:
    covered = np.zeros(SPEC.size, int)
    for part in SPEC.slices.values():
        covered[part] += 1
    assert (covered == 1).all()
    assert SPEC.subset(("adapter", "head")).digest == SPEC.digest


# ---- parts -----------------------------------------------------------------------------------------------------------


@given(adapters, adapters, st.sampled_from([("head",), ("adapter",), ("head", "adapter")]))
@settings(deadline=None, max_examples=30)
def test_a_part_put_in_place_is_read_back_and_moves_nothing_else(a: Adapter, b: Adapter, groups: tuple[str]) -> None:
    moved = a.replaced(b.subset(groups))
    inside = {name for group in groups for name in SPEC.groups[group]}
    for name in SPEC.tensors:
        assert np.array_equal(moved.tensors[name], (b if name in inside else a).tensors[name])
    assert a.replaced(a.subset(groups)).digest == a.digest


def test_a_part_of_another_adapter_is_refused() -> None:
    for part in (Adapter.zeros(OTHER.subset(("head",))), Adapter.zeros(OTHER)):
        with pytest.raises(SpecMismatch):
            START.replaced(part)
    with pytest.raises(SpecMismatch):
        START.subset(("head",)).replaced(START)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@given(vectors, st.integers(0, SPEC.size - 1))
@settings(deadline=None, max_examples=30)
def test_the_digest_changes_with_any_number(vector: np.ndarray[Any, np.dtype[np.float32]], index: int) -> None:
    changed = vector.copy()
    changed[index] = np.nextafter(changed[index], np.float32(np.inf))
    assert Adapter(spec=SPEC, vector=vector).digest != Adapter(spec=SPEC, vector=changed).digest
    assert Adapter(spec=SPEC, vector=vector.copy()).digest == Adapter(spec=SPEC, vector=vector).digest


def test_the_digest_tells_the_zeros_apart_and_the_specs() -> None:
    assert adapter_of([0.0] * SPEC.size).digest != adapter_of([-0.0] * SPEC.size).digest
    assert Adapter.zeros(SPEC).digest != Adapter.zeros(OTHER).digest


def test_an_adapter_is_read_only() -> None:
    for array in (START.vector, *START.tensors.values(), START.subset(("head",)).vector, START.scaled(2).vector):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1.0


@pytest.mark.parametrize(
    "vector", [np.zeros(SPEC.size), np.zeros(SPEC.size + 1, np.float32), np.zeros((1, SPEC.size), np.float32)]
)
def test_a_vector_of_another_shape_or_type_is_refused(vector: Any) -> None:
    with pytest.raises(SpecMismatch):
        Adapter(spec=SPEC, vector=vector)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", range(SPEC.size))
def test_a_single_entry_that_is_not_finite_is_found(value: float, index: int) -> None:
    values = [0.0] * SPEC.size
    values[index] = value
    with pytest.raises(NonFiniteUpdate) as caught:
        adapter_of(values).check_finite()
    assert "nan" not in str(caught.value)  # the text names no value


def test_magnitude_is_checked_on_both_sides() -> None:
    START.check_finite(largest=4.0)
    with pytest.raises(NonFiniteUpdate):
        START.check_finite(largest=3.9)
    with pytest.raises(NonFiniteUpdate):
        START.scaled(-1).check_finite(largest=3.9)


# ---- in and out ------------------------------------------------------------------------------------------------------


@given(anything)
@settings(deadline=None, max_examples=30)
def test_bytes_and_tensors_round_trip(vector: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    adapter = Adapter(spec=SPEC, vector=vector)
    assert Adapter.from_bytes(SPEC, adapter.to_bytes()).digest == adapter.digest
    assert Adapter.from_tensors(SPEC, adapter.tensors).digest == adapter.digest


@given(anything)
@settings(deadline=None, max_examples=30)
def test_a_view_reads_the_same_numbers_at_an_odd_address_without_a_copy(
    vector: np.ndarray[Any, np.dtype[np.float32]],
) -> None:
    adapter = Adapter(spec=SPEC, vector=vector)
    data = b"x" + adapter.to_bytes()
    view = Adapter.view(SPEC, memoryview(data)[1:])
    assert np.shares_memory(view.vector, np.frombuffer(data, np.uint8))
    assert view.digest == adapter.digest
    assert view.l2_norm() == pytest.approx(adapter.l2_norm(), nan_ok=True)
    assert view.to_bytes() == adapter.to_bytes()
    with pytest.raises(MalformedMessage):
        Adapter.view(SPEC, data)


def test_blocks_are_the_whole_vector_in_order_and_the_norm_over_many_is_the_norm() -> None:
    spec = replace(HEAD, tensors={"head.weight": (1000, 600), "head.bias": (7,)})
    numbers = np.random.default_rng(1).normal(size=spec.size).astype(np.float32)
    blocks = list(spec.blocks())
    assert len(blocks) > 3
    assert np.concatenate([numbers[part] for part in blocks]).tobytes() == numbers.tobytes()
    norm = math.sqrt(math.fsum(np.square(numbers.astype(np.float64)).tolist()))
    assert Adapter(spec=spec, vector=numbers).l2_norm() == pytest.approx(norm, rel=1e-14)


def test_bytes_are_little_endian_in_the_order_of_names() -> None:
    assert adapter_of([1.0] + [0.0] * 8).to_bytes()[:4] == b"\x00\x00\x80\x3f"
    assert START.tensors["head.bias"].tolist() == [0.5, -0.5]
    assert START.tensors["head.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("length", [0, 4 * SPEC.size - 1, 4 * SPEC.size + 1, 4 * SPEC.size + 4])
def test_bytes_of_the_wrong_length_are_refused(length: int) -> None:
    with pytest.raises(MalformedMessage):
        Adapter.from_bytes(SPEC, bytes(length))


def test_tensors_of_other_names_or_shapes_are_refused() -> None:
    tensors = dict(START.tensors)
    for wrong in (
        {**tensors, "more": tensors["head.bias"]},
        {name: value for name, value in tensors.items() if name != "head.bias"},
        {**tensors, "layer.lora_B": tensors["layer.lora_B"].T},
    ):
        with pytest.raises(SpecMismatch):
            Adapter.from_tensors(SPEC, wrong)


@given(anything)
@settings(deadline=None, max_examples=15)
def test_safetensors_round_trip(
    tmp_path_factory: pytest.TempPathFactory, vector: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    adapter = Adapter(spec=SPEC, vector=vector)
    adapter.save(path)
    assert Adapter.load(SPEC, path).digest == adapter.digest


def test_a_file_that_is_missing_cut_off_or_of_another_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    START.save(path)
    whole = path.read_bytes()
    with pytest.raises(SpecMismatch):
        Adapter.load(HEAD, path)
    for content in (b"", whole[:-1], whole[:20], b"\xff" * 8 + whole[8:], json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(OutputError) as caught:
            Adapter.load(SPEC, path)
        assert caught.value.hint
    with pytest.raises(OutputError):
        Adapter.load(SPEC, tmp_path / "absent")


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        START.save(tmp_path / "absent" / "a.safetensors")

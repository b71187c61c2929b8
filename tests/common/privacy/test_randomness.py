from __future__ import annotations

import hashlib
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.errors import PrivacyError
from fedward_common.privacy.randomness import Purpose, SecureRandom, SeededRandom, Stream, public_gaussian

KEY = bytes(range(32))


def test_stream_is_chacha20() -> None:
    """RFC 8439 keystream of the zero key and nonce (its appendix A.1, vector 1)."""
    first = Stream(bytes(32)).uint64(2).astype("<u8").tobytes()
    assert first.hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=8))
def test_equal_keys_give_equal_numbers_and_calls_continue(parts: list[int]) -> None:
    whole = Stream(KEY).uint64(sum(parts))
    stream = Stream(KEY)
    pieces = [stream.uint64(n) for n in parts]
    assert np.array_equal(np.concatenate([*pieces, np.empty(0, np.uint64)]), whole)


def test_a_stream_cannot_be_pickled() -> None:
    with pytest.raises(PrivacyError, match="copied"):
        pickle.dumps(Stream(KEY))


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(PrivacyError, match="31 bytes"):
        Stream(bytes(31))


def test_bernoulli_compares_integers() -> None:
    draws = Stream(KEY).uint64(1000)
    expected = draws < np.uint64(int(0.3 * 2**64))
    assert np.array_equal(Stream(KEY).bernoulli(1000, probability=0.3), expected)


def test_bernoulli_never_exceeds_the_probability_asked() -> None:
    """Below 2^-64 the floor is 0, so False always; and a draw that equals the threshold is False."""
    assert not Stream(KEY).bernoulli(10_000, probability=2.0**-70).any()
    draws = Stream(KEY).uint64(20_000)
    exact = next(index for index in range(20_000) if int(draws[index]) % 2048 == 0)  # a double holds it exactly
    assert not Stream(KEY).bernoulli(20_000, probability=int(draws[exact]) / 2**64)[exact]


def test_bernoulli_of_one_gives_true_always() -> None:
    assert Stream(KEY).bernoulli(10_000, probability=1.0).all()


@pytest.mark.parametrize("probability", [0.0, -0.5, 1.5, float("nan")])
def test_bernoulli_refuses_what_is_no_rate(probability: float) -> None:
    with pytest.raises(PrivacyError):
        Stream(KEY).bernoulli(1, probability=probability)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 45))
def test_choose_gives_a_sorted_subset(n: int, size: int) -> None:
    chosen = Stream(KEY).choose(n, size=size)
    assert len(set(chosen.tolist())) == min(n, size)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert all(0 <= index < n for index in chosen)


@settings(deadline=None)
@given(st.integers(0, 101))
def test_gaussian_has_the_length_asked_and_is_bounded(n: int) -> None:
    values = Stream(KEY).gaussian(n)
    assert values.shape == (n,)
    assert values.dtype == np.float64
    assert np.all(np.abs(values) < 8.58)


def test_a_million_gaussians_are_fast() -> None:
    stream = Stream(KEY)
    start = time.process_time()
    stream.gaussian(1_000_000)
    assert time.process_time() - start < 1.0  # 0.05 s where it was written


def test_secure_random_takes_a_fresh_key_for_every_call() -> None:
    random = SecureRandom()
    streams = [random.stream(round=0, step=0, purpose=Purpose.NOISE) for _ in range(100)]
    assert len({int(stream.uint64(1)[0]) for stream in streams}) == 100


def test_seeded_random_is_stateless() -> None:
    random = SeededRandom(seed=1, site="a")
    first = random.stream(round=3, step=1, purpose=Purpose.NOISE).uint64(4)
    random.stream(round=0, step=0, purpose=Purpose.NOISE).uint64(9)
    again = SeededRandom(seed=1, site="a").stream(round=3, step=1, purpose=Purpose.NOISE).uint64(4)
    assert np.array_equal(first, again)


def test_seeded_random_is_pinned() -> None:
    """A changed derivation would break resuming a simulation that an earlier version began."""
    stream = SeededRandom(seed=1, site="a").stream(round=3, step=1, purpose=Purpose.NOISE)
    assert int(stream.uint64(1)[0]) == 3712781261244990326


def test_every_coordinate_of_the_key_matters() -> None:
    firsts = {
        int(SeededRandom(seed=seed, site=site).stream(round=r, step=step, purpose=purpose).uint64(1)[0])
        for seed in (0, 1)
        for site in ("a", "b", "a1")
        for r in (0, 1, 11)
        for step in (0, 1, 11)
        for purpose in Purpose
    }
    assert len(firsts) == 2 * 3 * 3 * 3 * len(Purpose)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_63_bits(seed: int) -> None:
    with pytest.raises(PrivacyError):
        SeededRandom(seed=seed, site="a")


def test_public_gaussian_is_bit_identical_everywhere() -> None:
    """A recorded digest: only exactly rounded operations lead to it, so every machine must find it."""
    values = public_gaussian(7, "layer.0.lora_A", (4, 100))
    assert values.dtype == np.float32
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert digest == "1f61d26727f09f2d5e4cae92822de9b0b7cea1572b16e1c35093f887f68584a4"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), max_size=3))
def test_public_gaussian_has_the_shape_asked(shape: list[int]) -> None:
    assert public_gaussian(1, "a", tuple(shape)).shape == tuple(shape)


def test_public_gaussian_differs_by_name_and_seed() -> None:
    tensors = [public_gaussian(seed, name, (9,)) for seed in (1, 2) for name in ("a", "b")]
    assert len({tensor.tobytes() for tensor in tensors}) == 4


def test_public_gaussian_agrees_with_the_library_logarithm() -> None:
    from fedward_common.privacy.randomness import _logarithm

    x = np.concatenate([Stream(KEY)._uniform(10_000), [2.0**-104, 0.5, np.nextafter(1.0, 0.0), 2**-0.5]])
    assert np.allclose(_logarithm(x), np.log(x), rtol=1e-14, atol=1e-15)

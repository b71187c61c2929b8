from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.errors import PrivacyError
from fedward_common.privacy.randomness import CHUNK, Purpose, SecureRandom, SeededRandom, Stream, public_gaussian

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


@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_chunks_are_one_keystream(n: int) -> None:
    stream = Stream(KEY)
    pieces = np.concatenate([stream.uint64(100), stream.uint64(n - 100)])
    single = np.concatenate([one.uint64(1) for one in [Stream(KEY)] for _ in range(200)])
    assert np.array_equal(pieces, Stream(KEY).uint64(n))
    assert np.array_equal(pieces[:200], single)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stream_cannot_be_pickled_or_copied(copied: Callable[[Stream], object]) -> None:
    with pytest.raises(PrivacyError, match="copied"):
        copied(Stream(KEY))


def in_a_fork(work: Callable[[], str]) -> str:
    """What ``work`` says in a child process, or the message of its ``PrivacyError``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = work()
        except PrivacyError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)  # nothing of pytest runs in the child
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
QUIET = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests may have left threads


@FORKS
@QUIET
@pytest.mark.parametrize("used", [0, 5])
def test_a_stream_is_refused_in_a_forked_child(used: int) -> None:
    stream = Stream(KEY)
    before = stream.uint64(used)
    assert in_a_fork(lambda: str(stream.uint64(1))) == "a random stream was used after a fork"
    assert in_a_fork(lambda: str(stream.gaussian(1))) == "a random stream was used after a fork"
    whole = np.concatenate([before, stream.uint64(3)])
    assert np.array_equal(whole, Stream(KEY).uint64(used + 3))  # the parent goes on


@FORKS
@QUIET
def test_a_child_with_the_number_of_its_parent_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new pid namespace, whose first process is number 1 like the container's."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    stream = Stream(KEY)
    assert in_a_fork(lambda: str(stream.uint64(1))) == "a random stream was used after a fork"
    assert stream.uint64(1).size == 1


def test_a_fork_that_calls_no_hook_is_seen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(KEY)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(PrivacyError, match="after a fork"):
        stream.uint64(1)


@FORKS
@QUIET
def test_a_child_may_draw_streams_of_its_own() -> None:
    random = SecureRandom()
    said = [in_a_fork(lambda: str(int(draw(random)))) for _ in range(2)]
    assert len({*said, str(int(draw(random)))}) == 3
    assert all(text.isdigit() for text in said)


def draw(random: SecureRandom) -> np.uint64:
    return np.uint64(random.stream(round=0, step=0, purpose=Purpose.NOISE).uint64(1)[0])


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


@pytest.mark.parametrize("n", [1, 2, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 50_001])
def test_gaussian_is_box_and_muller_in_one_piece(n: int) -> None:
    """The flat twin: chunks change nothing, and no number is further from the definition than rounding takes it."""
    pairs = (n + 1) // 2
    bits = Stream(KEY).uint64(2 * pairs)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:pairs])), (2.0 * math.pi) * uniform[pairs:]
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
    assert np.allclose(Stream(KEY).gaussian(n), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("uniform", [2.0**-53, 0.25, 0.5 - 2.0**-53, 0.5, 0.5 + 2.0**-53, 0.75, 1.0])
def test_gaussian_holds_where_the_tangent_of_the_half_angle_is_largest(
    monkeypatch: pytest.MonkeyPatch, uniform: float
) -> None:
    monkeypatch.setattr(Stream, "_uniform", lambda _self, n: np.full(n, uniform))
    radius, angle = math.sqrt(-2.0 * math.log(uniform)), 2.0 * math.pi * uniform
    expected = [radius * math.cos(angle), radius * math.sin(angle)]
    assert np.allclose(Stream(KEY).gaussian(2), expected, rtol=0, atol=1e-14)


def test_gaussian_is_pinned() -> None:
    """To the last digits that platforms' logarithms and cosines share."""
    expected = [0.398271732933304, -1.4273418602184704, -1.2660796566522459]
    assert np.allclose(Stream(KEY).gaussian(3), expected, rtol=1e-12, atol=0)


def test_secure_random_takes_a_fresh_key_for_every_call() -> None:
    assert len({int(draw(SecureRandom())) for _ in range(100)}) == 100


def test_secure_random_asks_the_operating_system_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time and process held still, only ``os.urandom`` tells two keys apart."""
    asked: list[int] = []
    honest = os.urandom

    def listen(n: int) -> bytes:
        asked.append(n)
        return honest(n)

    monkeypatch.setattr(os, "urandom", listen)
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert len({int(draw(SecureRandom())) for _ in range(10)}) == 10
    assert asked == [32] * 10


@pytest.mark.parametrize("start", [-(10**18), 10**18])
def test_a_generator_rolled_back_to_a_snapshot_does_not_repeat_a_key(
    monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    """Also where the clock says that it is before 1970."""
    times = iter(range(start, start + 10))
    monkeypatch.setattr(os, "urandom", bytes)
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    assert len({int(draw(SecureRandom())) for _ in range(10)}) == 10


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

"""Noise: Gaussian noise on an integer grid. No other module makes noise.

It is given a total and the public numbers of a mechanism; it does not know what the total is a sum of.

Example:
    >>> import numpy as np
    >>> from fedward_common.privacy.randomness import Stream
    >>> noised = add_noise(np.zeros(4), sensitivity=1.0, noise_multiplier=2.0, stream=Stream(bytes(32)))
    >>> bool(np.all(noised / grid(sensitivity=1.0, noise_multiplier=2.0) % 1 == 0))
    True
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward_common.errors import PrivacyError
from fedward_common.privacy import checks
from fedward_common.privacy.randomness import Stream, chunks

__all__ = ["add_noise", "grid", "stddev"]

GRID_BITS = 20
LARGEST = 2.0**51  # grid steps; the sum of two such numbers is an integer that a double holds exactly
LARGEST_GAUSSIAN = 8.6  # of Stream.gaussian


def grid(*, sensitivity: float, noise_multiplier: float) -> float:
    """The largest power of two that is at most 2^-20 sigma C: a public number."""
    checks.positive("noise_multiplier", noise_multiplier)
    checks.within("sensitivity", sensitivity, 1e-12, 1e12)
    return math.ldexp(1.0, math.frexp(noise_multiplier * sensitivity)[1] - 1 - GRID_BITS)


def stddev(*, sensitivity: float, noise_multiplier: float, dimension: int) -> float:
    """The noise's standard deviation in each coordinate, sigma (C + g sqrt(d)): a public number."""
    width = grid(sensitivity=sensitivity, noise_multiplier=noise_multiplier)
    return noise_multiplier * (sensitivity + width * math.sqrt(dimension))


def add_noise(
    total: NDArray[np.floating[Any]], *, sensitivity: float, noise_multiplier: float, stream: Stream
) -> NDArray[np.float64]:
    """The total plus Gaussian noise, both rounded to one grid and added as integers.

    Let f be the total, with |f(D) - f(D')| <= C for neighbours D and D', in d dimensions, and g the grid.

    1. Rounding moves each coordinate by at most g/2 under D and under D', so the rounded totals r = g round(f / g)
       satisfy |r(D) - r(D')| <= C + 2 (g/2) sqrt(d) = C + g sqrt(d).
    2. Noise Z with standard deviation sigma (C + g sqrt(d)) therefore makes r + Z a Gaussian mechanism with noise
       multiplier exactly sigma.
    3. Rounding to the nearest multiple of g, ties upwards, commutes with shifts by multiples of g, so
       r + round(Z) = round(r + Z): post-processing of (2).

    Proven, given ideal Gaussian samples and a total that is the real-valued sum: the event (q, sigma) covers what is
    returned. Hardening, not proof: Z is computed in doubles from 53-bit uniforms, and the grid removes the low-order
    bits through which floating-point noise is known to leak (Mironov 2012); the caller should accumulate the total in
    float64, whose rounding is far below g for any data that fits in memory.

    Args:
      total: float, shape ``(d,)``.
      sensitivity: C > 0, a bound on what one unit can change in L2 norm.
      noise_multiplier: sigma > 0.
      stream: used for nothing else.

    Returns:
      float64, shape ``(d,)``.

    Guarantees:
      - Every entry is a multiple of ``grid(...)``, whatever the data.
      - For one stream, adding a multiple of the grid to the total adds exactly that to the result.
      - ``total`` is not changed.

    Raises:
      PrivacyError: the total is not a vector, not finite, or beyond 2^51 grid steps; or the noise is, which takes a
        noise multiplier near 10^14 / sqrt(d). Clipped data cannot cause any of these; nothing is released.

    Source: Dwork et al. 2006; the idea of the grid is Google's "Secure Noise Generation" (2020).
    """
    width = grid(sensitivity=sensitivity, noise_multiplier=noise_multiplier)
    if total.ndim != 1 or total.size == 0:
        raise PrivacyError(f"a total of shape {total.shape}", hint="pass one flat vector of all trained tensors")
    scale = stddev(sensitivity=sensitivity, noise_multiplier=noise_multiplier, dimension=total.size) / width
    if not scale * LARGEST_GAUSSIAN < LARGEST:
        raise PrivacyError("noise beyond 2^51 grid steps", hint="choose a smaller noise multiplier")
    noised = stream.gaussian(total.size)
    for part in chunks(total.size):
        steps = noised[part]
        steps *= scale
        steps += 0.5
        # floor(x + 0.5), not rint: rounding half to even does not commute with odd shifts.
        np.floor(steps, out=steps)
        steps += _on_grid(total[part], width)  # integers below 2^52 in doubles: exact, and faster than through int64
        steps *= width
    return noised


def _on_grid(total: NDArray[np.floating[Any]], width: float) -> NDArray[np.float64]:
    steps: NDArray[np.float64] = np.divide(total, width, dtype=np.float64)
    if not (steps.max() < LARGEST and steps.min() > -LARGEST):  # false also for NaN
        raise PrivacyError("a total is not finite or far beyond what clipped units can sum to", hint="clip every unit")
    np.rint(steps, out=steps)
    return steps

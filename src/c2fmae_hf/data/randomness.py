"""
Randomness as a pure function of (seed, epoch, sample index).

Crops and masks must not depend on which worker prepares a sample, on the number of workers, or on interruptions of the
run. A counter-based generator gives every sample its own stream of numbers without state: SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), vectorised over the batch.

Streamed rows have no numbers: their index is the position in the stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, element by element; arithmetic is modulo 2**64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def sample_seeds(seed: int, epoch: Sequence[int] | np.ndarray, index: Sequence[int] | np.ndarray) -> np.ndarray:
    """
    One 64-bit seed per sample.

    Args:
        seed (`int`): Seed of the run.
        epoch: `(batch_size,)` epoch of each sample.
        index: `(batch_size,)` index of each sample in its dataset.

    Returns:
        `np.ndarray` of shape `(batch_size,)`, uint64.
    """
    key = np.full(len(index), seed, dtype=np.int64).astype(np.uint64)
    for counter in (epoch, index):
        key = _mix(key + _GOLDEN_GAMMA) + np.asarray(counter, dtype=np.int64).astype(np.uint64)
    return _mix(key + _GOLDEN_GAMMA)


def sample_uniform(seeds: np.ndarray, size: int) -> torch.Tensor:
    """
    Uniform numbers from each sample's own stream.

    Args:
        seeds: `(batch_size,)` uint64, from [`sample_seeds`].
        size (`int`): How many numbers a sample gets.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, size)`, in [0, 1).
    """
    counters = np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    bits = _mix(seeds[:, None] + counters[None, :])
    # The 24 high bits fill a float32's mantissa, so that 1.0 is never reached.
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))

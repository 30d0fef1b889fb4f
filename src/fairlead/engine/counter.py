"""Counter-based randomness: the uniform of a token depends on what it is for, never on what else is in the batch.

A stream is named by (seed, prompt, sample); its numbers are counted by step. NumPy only, so that a forward pass without
torch can draw the same tokens. The mixing function is SplitMix64's finaliser (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]


def streams(seed: int, prompt: npt.ArrayLike, sample: npt.ArrayLike) -> U64:
    """One 64-bit stream name per (prompt, sample) pair; the two broadcast."""
    prompts = np.atleast_1d(np.asarray(prompt)).astype(np.uint64)
    samples = np.atleast_1d(np.asarray(sample)).astype(np.uint64)
    start = np.full(1, seed % 2**64, dtype=np.uint64)
    return _mix(_mix(_mix(start) + prompts) + samples)


def uniforms(stream: U64, step: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Uniform float64 in [0, 1) with 53 random bits, one per stream at its step."""
    mixed = _mix(stream + np.atleast_1d(np.asarray(step)).astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: U64) -> U64:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = x ^ (x >> np.uint64(31))
    return mixed

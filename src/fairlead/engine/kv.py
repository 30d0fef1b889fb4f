"""The tight decoder's key-value cache: no longer than its rows need, in memory that is taken once.

Attention reads each layer's cache from end to end, what lies beyond a row's own position included (masked). That is one
stream, which a processor fetches ahead of its use. Where only the used part of a longer reservation was read, every row
and head started a stream of its own, at less than half the speed. So the cache grows while rows do.

Axes: L layers, B rows, K key heads, M length in positions, h head width; U prompts, P prompt tokens, N rows of either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SPARE = 16  # positions more than needed, and a sixteenth of these: read in vain, but to grow is to copy everything


def room(needed: int) -> int:
    """The length to have where so many positions are needed."""
    return -(-(needed + needed // SPARE) // SPARE) * SPARE


class Cache:
    """Keys and values of every layer, (2, B, K, M, h) each: `layers`. What no row has written is zero."""

    def __init__(self, count: int, rows: int, heads: int, width: int, length: int, most: int, like: torch.Tensor) -> None:
        """count    of layers
        length, most    positions to begin with, and that there may be
        like    of the dtype and device to have
        """
        self.sizes, self.width = (2, rows, heads), width
        self._memory = [_memory(2 * rows * heads * max(most, length) * width, like) for _ in range(count + 1)]
        self.layers = [self._view(memory, length).zero_() for memory in self._memory[:-1]]

    @property
    def length(self) -> int:
        return self.layers[0].shape[3]

    def _view(self, memory: torch.Tensor, length: int) -> torch.Tensor:
        rows = 2 * self.sizes[1] * self.sizes[2] * length
        return memory[: rows * self.width].view(*self.sizes, length, self.width)

    def resize(self, length: int, rows: torch.Tensor | None = None) -> None:
        """Another length, and with `rows` only these; one layer after the other, by way of one that is spare."""
        if rows is not None:
            self.sizes = (2, len(rows), self.sizes[2])
        for number, old in enumerate(self.layers):
            kept = min(length, old.shape[3])
            new = self._view(self._memory[-1], length)
            if rows is None:
                new[:, :, :, :kept] = old[:, :, :, :kept]
            else:
                torch.index_select(old[:, :, :, :kept], 1, rows, out=new[:, :, :, :kept])
            new[:, :, :, kept:] = 0
            self.layers[number] = new
            self._memory[number], self._memory[-1] = self._memory[-1], self._memory[number]

    def place(self, rows_N: torch.Tensor, prompts: Sequence[torch.Tensor], source_N: torch.Tensor) -> None:
        """Copy the keys and values of prompts (L of (2, U, K, P, h)), those at `source_N`, to the rows `rows_N`."""
        for layer, prompt in zip(self.layers, prompts, strict=True):
            kept = min(layer.shape[3], prompt.shape[3])  # a prompt may be padded beyond the cache's length
            layer[:, :, :, :kept].index_copy_(1, rows_N, prompt[:, :, :, :kept].index_select(1, source_N))


def _memory(size: int, like: torch.Tensor) -> torch.Tensor:
    """Memory for so many numbers. NumPy asks for large pages, which torch does not: a fifth of the cost of new memory."""
    if like.device.type != "cpu":
        return like.new_empty(size)
    taken = np.empty(size * like.element_size() + 64, dtype=np.uint8)
    start = -taken.ctypes.data % 64
    return torch.from_numpy(taken[start : start + size * like.element_size()]).view(like.dtype)

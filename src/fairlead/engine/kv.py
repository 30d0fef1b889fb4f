"""The tight decoder's key-value cache: no longer than its rows need, in memory that is taken once.

Attention reads each layer's cache from end to end, what lies beyond a row's own position included (masked). That is one
stream, which a processor fetches ahead of its use. Where only the used part of a longer reservation was read, every row
and head started a stream of its own, at less than half the speed. So the cache grows while rows do.

Axes: L layers, B rows, K key heads, H query heads, M length in positions, h head width; U prompts, P prompt tokens, N
rows of either.
"""

from __future__ import annotations

import numpy as np
import torch

SPARE = 16  # positions more than needed, and a sixteenth of these: read in vain, but to grow is to copy everything
BAGS = 2**20  # bytes of values from which embedding_bag sums them faster than bmm
_SUM = 0  # its mode


def room(needed: int) -> int:
    """The length to have where so many positions are needed."""
    return -(-(needed + needed // SPARE) // SPARE) * SPARE


class Cache:
    """Keys and values of every layer, (2, B, K, M, h) each: `layers`. What no row has written is zero.

    `views` shows each layer as a step uses it: its rows (2 B K M, h), which `write` writes, its keys (B K, h, M), its
    values (B K, M, h).
    """

    def __init__(
        self, count: int, rows: int, heads: int, groups: int, width: int, length: int, most: int, like: torch.Tensor
    ) -> None:
        """count    of layers
        groups          query heads to each key head
        length, most    positions to begin with, and that there may be
        like            of the dtype and device to have
        """
        self.sizes, self.groups, self.width = (2, rows, heads), groups, width
        self._memory = [_memory(2 * rows * heads * max(most, length) * width, like) for _ in range(count + 1)]
        self.layers = [self._view(memory, length).zero_() for memory in self._memory[:-1]]
        self._index()

    @property
    def length(self) -> int:
        return self.layers[0].shape[3]

    def _index(self) -> None:
        """What is the same for all layers and steps while the sizes are."""
        (_, B, K), M, like = self.sizes, self.length, self.layers[0]
        self.views = [
            (
                _wide(layer.view(-1, self.width)),
                layer[0].view(B * K, M, -1).transpose(1, 2),
                layer[1].view(B * K, M, -1),
            )
            for layer in self.layers
        ]
        # Each row's K keys, then its K values: where they begin, as rows of a layer.
        self._begin_BK = torch.arange(2 * B * K, device=like.device).view(2, B, K).transpose(0, 1).reshape(B, -1) * M
        # For each query head of each row, which rows of the values it mixes; and where its part of the list begins.
        self._bags: tuple[torch.Tensor, torch.Tensor] | None = None
        if like.device.type == "cpu" and like.dtype == torch.float32 and 4 * like[0].numel() >= BAGS:
            bag_KM = torch.arange(B * K * M).view(B * K, 1, M)
            bag_KM = bag_KM.expand(-1, self.groups, -1).reshape(-1, M)
            self._bags = bag_KM.view(-1), torch.arange(len(bag_KM)) * M

    def rows_at(self, position_B: torch.Tensor) -> torch.Tensor:
        """Where the keys and values (B, 2K) of these positions stand among a layer's rows."""
        return (self._begin_BK + position_B[:, None]).view(-1)

    def write(self, rows: torch.Tensor, place: torch.Tensor, new: torch.Tensor) -> None:
        """Write these keys and values (B 2K, h), as in `rows_at`, to the rows that `views` shows."""
        rows.index_copy_(0, place, new.view(rows.dtype))

    def mixed(self, weights_BHM: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The values that `views` shows, summed for each query head with its weights: (B, H h).

        torch sums weighted rows of a table by a kernel that reads ahead, for embeddings; of float32 on a CPU that is
        1.4 to 1.7 times as fast as `bmm`.
        """
        count, M, width = values.shape
        if self._bags is not None:
            table, weights = values.view(-1, width), weights_BHM.view(-1)
            mixed = torch.embedding_bag(table, *self._bags, False, _SUM, False, weights)[0]
        else:
            mixed = torch.bmm(weights_BHM.view(count, -1, M), values)
        return mixed.view(self.sizes[1], -1)

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
        self._index()

    def place(self, rows_N: torch.Tensor, prompts: torch.Tensor, source_N: torch.Tensor) -> None:
        """Copy the keys and values of prompts (L, 2, U, K, P, h), those at `source_N`, to the rows `rows_N`."""
        for layer, prompt in zip(self.layers, prompts, strict=True):
            kept = min(layer.shape[3], prompt.shape[3])  # a prompt may be padded beyond the cache's length
            layer[:, :, :, :kept].index_copy_(1, rows_N, prompt[:, :, :, :kept].index_select(1, source_N))


def _wide(rows: torch.Tensor) -> torch.Tensor:
    """The same bytes in units of 16 where they divide so: torch copies rows unit by unit."""
    whole = rows.device.type == "cpu" and rows.shape[1] * rows.element_size() % 16 == 0
    return rows.view(torch.complex128) if whole else rows


def _memory(size: int, like: torch.Tensor) -> torch.Tensor:
    """Memory for so many numbers; on the CPU in large pages, which NumPy asks for and torch does not: begun sooner."""
    if like.device.type != "cpu":
        return like.new_empty(size)
    taken = np.empty(size * like.element_size() + 64, dtype=np.uint8)
    start = -taken.ctypes.data % 64
    return torch.from_numpy(taken[start : start + size * like.element_size()]).view(like.dtype)

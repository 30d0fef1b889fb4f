"""NEFTune: noise on the embeddings while training, the same noise however a step is cut into micro-batches.

Jain et al. 2023 (arXiv 2310.05914), algorithm 1: to the embeddings of a text of L tokens of width D is added
alpha / sqrt(L D) times uniform noise on [-1, 1]. L is the text's own length; TRL takes the padded length of its batch,
so there the noise of a text depends on its neighbours. Axes: T packed tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairlead.engine.forward import causal_lm
from fairlead.engine.layout import Batch, Tree


def noise_of_row(tree: Tree, width: int, alpha: float, seed: tuple[int, int, int]) -> Tensor:
    """The noise of one text, [tokens, D], float32: a function of `seed` (of the run, step, row) and nothing else."""
    length = len(tree.prompt) + len(tree.replies[0])
    uniform = np.random.default_rng(seed).random((length, width), dtype=np.float32)
    return torch.from_numpy(uniform).mul_(2).sub_(1).mul_(alpha / math.sqrt(length * width))


@contextmanager
def noisy_embeddings(
    model: nn.Module, batch: Batch, trees: Sequence[Tree], alpha: float, seeds: Sequence[tuple[int, int, int]]
) -> Iterator[None]:
    """Inside, the model's embeddings of `batch` (trees with one reply each) carry noise; alpha 0 adds none.

    `seeds` holds one seed per tree.
    """
    if alpha == 0:
        yield
        return
    embedding: Any = causal_lm(model).get_input_embeddings()  # type: ignore[operator]
    width = embedding.weight.shape[1]
    texts: dict[int, Tensor] = {}  # by the packed position where the text begins
    for tree, seed, last in zip(trees, seeds, batch.last_R.tolist(), strict=True):
        fed = len(tree.prompt) + len(tree.replies[0]) - 1  # a reply's last token predicts nothing and is not fed
        texts[last + 1 - fed] = noise_of_row(tree, width, alpha, seed)[:fed]
    ordered = [texts[start] for start in sorted(texts)]

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # one packed row, or (a model that cannot be packed) the texts as right-padded rows in packed order
        packed = output.shape[:2] == (1, batch.tokens)
        noise = torch.cat(ordered)[None] if packed else nn.utils.rnn.pad_sequence(ordered, batch_first=True)
        if noise.shape != output.shape:
            raise ValueError(f"embeddings of shape {tuple(output.shape)}, but noise of shape {tuple(noise.shape)}")
        return output + noise.to(output)

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()

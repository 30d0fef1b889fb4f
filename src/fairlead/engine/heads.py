"""Scalar heads: one number read off the last hidden state at chosen positions.

A reward model reads the end of every reply, a process reward model the end of every step, a value function the state
before every token. All three run on the same packed forest as the log-probs, so a prompt is computed once for all its
replies, and all sum in float32 (float64 for a float64 model) whatever the model computes in.

Axes: T packed tokens, N positions read, R replies, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fairlead.engine.checkpoint import atomic_write
from fairlead.engine.forward import context_of, evaluating, head_of, hidden_states, vocabulary_of
from fairlead.engine.layout import Batch, Tree, check, pack
from fairlead.engine.logprobs import batch_of, scoring_budget

At: TypeAlias = Literal["end", "marked", "before"]
"""Where a head reads:

end      the last token of each reply, which is its end of turn
marked   every token whose mask is True (all of a reply without a mask): the ends of steps
before   the state that predicts each scored token, so the first is read at the prompt's end: a value function
"""

FORMAT = "fairlead scalar head 1"


class ScalarHead(nn.Module):
    """value = weight . hidden + bias. Without a bias where only differences of values are learnt."""

    def __init__(self, width: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight_D = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype)) if bias else None

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        value_N = hidden_ND.to(self.weight_D.dtype) @ self.weight_D
        return value_N if self.bias is None else value_N + self.bias


@dataclass(frozen=True, slots=True)
class Values:
    """What a head read, flat, reply after reply in the order of the trees given.

    value_N    one number per position, float32 (float64 for a float64 model)
    reply_N    the reply each position belongs to
    count_R    positions of each reply
    """

    value_N: torch.Tensor
    reply_N: torch.Tensor
    count_R: torch.Tensor

    def split(self) -> tuple[torch.Tensor, ...]:
        """The values of each reply."""
        return torch.split(self.value_N, self.count_R.tolist())


def new_head(model: nn.Module, *, bias: bool = False, seed: int | None = 0) -> ScalarHead:
    """A fresh head that fits a model, on its device.

    Weights are drawn from N(0, 1/(D + 1)) as in Stiennon et al. 2020 (arXiv 2009.01325, appendix B.1), from a generator
    of their own: the same seed gives the same head on every device. `seed=None` gives zeros.
    """
    weight_VD = head_of(model).weight_VD
    width = int(weight_VD.shape[1])
    head = ScalarHead(width, bias=bias, dtype=torch.promote_types(weight_VD.dtype, torch.float32))
    if seed is not None:
        drawn = np.random.default_rng(seed).standard_normal(width) / np.sqrt(width + 1)
        with torch.no_grad():
            head.weight_D.copy_(torch.from_numpy(drawn))
    return head.to(weight_VD.device)


def head_values(
    model: nn.Module, head: ScalarHead, trees: Sequence[Tree], *, at: At = "end", packed: bool | None = None
) -> Values:
    """What the head reads in one micro-batch; gradients flow to the head and to all of the model's weights.

    packed   forces the packed or the padded path (see forward.path_of, which decides by default)
    Raises ValueError naming the row for what cannot be read (see layout.check).
    """
    batch = batch_of(model, trees, keep_last=at != "before")
    place_N, reply_N, count_R = _places(batch, trees, at)
    return Values(head(hidden_states(model, batch, rows=place_N, packed=packed)), reply_N, count_R)


def score_values(
    model: nn.Module,
    head: ScalarHead,
    trees: Sequence[Tree],
    token_budget: int = 8192,
    *,
    at: At = "end",
    progress: Callable[[int], None] | None = None,
) -> Values:
    """`head_values` of many trees without gradients, dropout off, packed into micro-batches.

    The result is in the order of the trees, on the CPU. A tree above the budget widens it to that tree. `progress` is
    called with the number of trees done after each micro-batch.
    """
    replies = [len(tree.replies) for tree in trees]
    check(trees, context=context_of(model), vocabulary=vocabulary_of(model))
    parts = [torch.empty(0)] * sum(replies)
    first = torch.tensor([0, *replies]).cumsum(0).tolist()
    with torch.no_grad(), evaluating(model):
        for rows in pack(trees, scoring_budget(model, trees, token_budget)):
            got = head_values(model, head, [trees[row] for row in rows], at=at)
            places = [place for row in rows for place in range(first[row], first[row + 1])]
            for place, value in zip(places, got.split(), strict=True):
                parts[place] = value.cpu()
            if progress is not None:
                progress(len(rows))
    count_R = torch.tensor([len(part) for part in parts], dtype=torch.long)
    return Values(
        torch.cat(parts) if parts else torch.empty(0),
        torch.repeat_interleave(torch.arange(len(parts)), count_R),
        count_R,
    )


def _places(batch: Batch, trees: Sequence[Tree], at: At) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed positions to read, the reply each belongs to, and how many each reply has."""
    device = batch.ids_T.device
    if at == "before":
        return batch.source_N, batch.reply_N, batch.count_R
    if at == "end":
        every_R = torch.arange(batch.replies, device=device)
        return batch.last_R, every_R, torch.ones_like(every_R)
    # lay_out kept the last token of every reply, so a reply's tokens end at last_R and lie side by side before it.
    lengths = [len(reply) for tree in trees for reply in tree.replies]
    masks = [mask for tree in trees for mask in (tree.masks or (None,) * len(tree.replies))]
    marked = [np.arange(n) if mask is None else np.flatnonzero(mask) for n, mask in zip(lengths, masks, strict=True)]
    starts = [last - n + 1 for last, n in zip(batch.last_R.tolist(), lengths, strict=True)]
    place_N = np.concatenate([start + offsets for start, offsets in zip(starts, marked, strict=True)])
    return torch.as_tensor(place_N).to(device), batch.reply_N, batch.count_R


# ------------------------------------------------------------------------------------------------ keeping a head


def save_head(head: ScalarHead, file: Path | str) -> None:
    """Write a head whole or not at all: safetensors, its shape and dtype in the header. Raises OSError."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    about = {"format": FORMAT, "width": str(len(head.weight_D)), "dtype": str(head.weight_D.dtype)}
    atomic_write(file, save(tensors, metadata=about))


def load_head(file: Path | str, model: nn.Module | None = None) -> ScalarHead:
    """The head that `save_head` wrote, bit for bit, on the model's device where one is given.

    Raises FileNotFoundError, and ValueError for a file that is damaged, is no head, or does not fit the model.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"{file}: no such file; a head lies beside its model")
    try:
        with safe_open(str(file), framework="pt") as opened:
            about: dict[str, Any] = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); copy it again") from error
    weight_D = tensors.get("weight_D")
    if about.get("format") != FORMAT or weight_D is None or weight_D.ndim != 1 or set(tensors) - {"weight_D", "bias"}:
        raise ValueError(f"{file}: not a scalar head ({FORMAT!r})")
    head = ScalarHead(len(weight_D), bias="bias" in tensors, dtype=weight_D.dtype)
    head.load_state_dict(tensors)
    if model is None:
        return head
    weight_VD = head_of(model).weight_VD
    if weight_VD.shape[1] != len(weight_D):
        raise ValueError(f"{file}: a head of width {len(weight_D)} on a model of width {weight_VD.shape[1]}")
    return head.to(weight_VD.device)

"""One step's replies, scored: what the policy learns from, cut to micro-batches, kept on disk until it is used up.

Axes: P prompts, R replies, N scored tokens (reply after reply), K objectives. Everything is float64 on the CPU. A
reply's tokens lie side by side, and so do a prompt's replies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairlead.engine.checkpoint import atomic_write
from fairlead.engine.layout import Tokens, Tree
from fairlead.methods.rollouts import Asked, Drawn

FORMAT = "fairlead experience 1"


@dataclass(frozen=True, slots=True)
class Experience:
    """A step's replies and all that is known of them before the first update.

    trees       one per prompt, its replies as branches
    rows        which of the run's prompts each tree is
    count_R     scored tokens of each reply
    sampler_N   log-probs of the draw, as its sampler gave them
    raw_RK      the judges' raw scores, NaN where missing
    ended_R     whether the reply ended by itself
    version     optimiser steps that the weights which drew them had seen
    taken       how far the stream of prompts was read
    told        numbers for the log
    more        what was computed since: old_N, ref_N, value_NK, adv_N, target_NK, weight_N, … by name
    """

    trees: tuple[Tree, ...]
    rows: tuple[int, ...]
    count_R: Tensor
    sampler_N: Tensor
    raw_RK: Tensor
    ended_R: Tensor
    version: int
    taken: int
    told: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def replies(self) -> int:
        return len(self.count_R)

    @property
    def tokens(self) -> int:
        return len(self.sampler_N)

    @property
    def group_R(self) -> Tensor:
        """The tree of each reply."""
        sizes = torch.tensor([len(tree.replies) for tree in self.trees])
        return torch.repeat_interleave(torch.arange(len(self.trees)), sizes)

    @property
    def reply_N(self) -> Tensor:
        """The reply of each scored token."""
        return torch.repeat_interleave(torch.arange(self.replies), self.count_R)

    def sum_R(self, values_N: Tensor) -> Tensor:
        """Sums over each reply's tokens."""
        return torch.zeros(self.replies, dtype=values_N.dtype).index_add(0, self.reply_N, values_N)

    def with_more(self, _told: Mapping[str, float] | None = None, /, **more: Tensor) -> Experience:
        return replace(self, more={**self.more, **more}, told={**self.told, **(_told or {})})


def experience_of(
    asked: Sequence[Asked], drawn: Sequence[Sequence[Drawn]], raw_RK: Tensor, *, version: int, taken: int
) -> Experience:
    """From prompts, their replies (at least one token each) and the judges' scores, in order."""
    trees = tuple(
        _tree(one.tokens, [reply.tokens for reply in group], [reply.mask for reply in group])
        for one, group in zip(asked, drawn, strict=True)
    )
    flat = [reply for group in drawn for reply in group]
    scored = [
        logp
        for reply in flat
        for logp, keep in zip(reply.logprobs, reply.mask or (True,) * len(reply.tokens), strict=True)
        if keep
    ]
    return Experience(
        trees=trees,
        rows=tuple(one.key for one in asked),
        count_R=torch.tensor([reply.scored for reply in flat], dtype=torch.long),
        sampler_N=torch.tensor(scored, dtype=torch.float64),
        raw_RK=raw_RK,
        ended_R=torch.tensor([reply.finish == "stop" for reply in flat]),
        version=version,
        taken=taken,
    )


def _tree(prompt: Tokens, replies: Sequence[Tokens], masks: Sequence[tuple[bool, ...] | None]) -> Tree:
    """A mask that leaves nothing out is none."""
    real = tuple(None if mask is None or all(mask) else mask for mask in masks)
    return Tree(prompt, tuple(replies), real if any(real) else None)


# ------------------------------------------------------------------------------------ cut to micro-batches


@dataclass(frozen=True, slots=True)
class Piece:
    """Some replies of one prompt: what is never split. `replies` counts over the whole step."""

    tree: Tree
    replies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The step's numbers for the tokens of one micro-batch, in the order in which its trees give log-probs.

    `at_N` and `at_R` are their places in the step.
    """

    at_N: Tensor
    at_R: Tensor

    def tokens(self, values_N: Tensor, like: Tensor) -> Tensor:
        """A step's per-token values, here, on the device of `like`."""
        return values_N[self.at_N].to(like.device)

    def replies(self, values_R: Tensor, like: Tensor) -> Tensor:
        return values_R[self.at_R].to(like.device)


def pieces_of(step: Experience, prompts: Sequence[int], budget: int, *, whole: bool) -> list[Piece]:
    """The trees of these prompts, cut where a group is longer than the budget (its prompt is then read again).

    `whole` keeps groups in one piece: where the loss compares their replies. A single reply above the budget, or such
    a group, is left for the packer to refuse by name.
    """
    first = torch.tensor([0, *(len(tree.replies) for tree in step.trees)]).cumsum(0).tolist()
    pieces: list[Piece] = []
    for prompt in prompts:
        tree = step.trees[prompt]
        groups: list[list[int]] = [[]]
        room = budget - len(tree.prompt)
        for number, reply in enumerate(tree.replies):
            if groups[-1] and len(reply) > room and not whole:
                groups.append([])
                room = budget - len(tree.prompt)
            groups[-1].append(number)
            room -= len(reply)
        for group in groups:
            masks = None if tree.masks is None else tuple(tree.masks[i] for i in group)
            cut = tree if len(groups) == 1 else Tree(tree.prompt, tuple(tree.replies[i] for i in group), masks)
            pieces.append(Piece(cut, tuple(first[prompt] + i for i in group)))
    return pieces


def part_of(step: Experience, pieces: Sequence[Piece]) -> Part:
    """Where these pieces' tokens and replies lie in the step."""
    ends = step.count_R.cumsum(0).tolist()
    counts = step.count_R.tolist()
    replies = [reply for piece in pieces for reply in piece.replies]
    spans = [torch.arange(ends[reply] - counts[reply], ends[reply]) for reply in replies]
    return Part(torch.cat(spans) if spans else torch.zeros(0, dtype=torch.long), torch.tensor(replies))


# --------------------------------------------------------------------------------------------- kept on disk


def keep(step: Experience, file: Path) -> None:
    """Write a step whole or not at all, so that a run that stops goes on with these replies and no others.

    Raises OSError.
    """
    lengths = [len(reply) for tree in step.trees for reply in tree.replies]
    masks = [
        [True] * len(reply) if mask is None else mask
        for tree in step.trees
        for reply, mask in zip(tree.replies, tree.masks or (None,) * len(tree.replies), strict=True)
    ]
    tensors = {
        "prompt_T": _flat([tree.prompt for tree in step.trees]),
        "prompt_P": torch.tensor([len(tree.prompt) for tree in step.trees]),
        "replies_P": torch.tensor([len(tree.replies) for tree in step.trees]),
        "reply_T": _flat([reply for tree in step.trees for reply in tree.replies]),
        "reply_R": torch.tensor(lengths),
        "mask_T": torch.tensor([kept for mask in masks for kept in mask], dtype=torch.bool),
        "rows_P": torch.tensor(step.rows),
        **{name: getattr(step, name) for name in ("count_R", "sampler_N", "raw_RK", "ended_R")},
        **{f"more.{name}": tensor for name, tensor in step.more.items()},
    }
    about = {"version": step.version, "taken": step.taken, "told": dict(step.told)}
    ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic_write(file, save(ready, metadata={"format": FORMAT, "about": json.dumps(about)}))


def kept(file: Path) -> Experience | None:
    """The step in a file; None where there is none. Raises ValueError for one that is damaged."""
    if not file.exists():
        return None
    try:
        with safe_open(str(file), framework="pt") as opened:
            meta: dict[str, Any] = dict(opened.metadata() or {})
            t = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole file ({error})") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{file}: its format is {meta.get('format')!r}, not {FORMAT!r}")
    about = json.loads(meta["about"])
    prompts = [tuple(part.tolist()) for part in torch.split(t["prompt_T"], t["prompt_P"].tolist())]
    replies = [tuple(part.tolist()) for part in torch.split(t["reply_T"], t["reply_R"].tolist())]
    masks = [tuple(part.tolist()) for part in torch.split(t["mask_T"], t["reply_R"].tolist())]
    trees, at = [], 0
    for prompt, count in zip(prompts, t["replies_P"].tolist(), strict=True):
        trees.append(_tree(prompt, replies[at : at + count], masks[at : at + count]))
        at += count
    return Experience(
        trees=tuple(trees),
        rows=tuple(t["rows_P"].tolist()),
        **{name: t[name] for name in ("count_R", "sampler_N", "raw_RK", "ended_R")},
        version=about["version"],
        taken=about["taken"],
        told=about["told"],
        more={name.removeprefix("more."): tensor for name, tensor in t.items() if name.startswith("more.")},
    )


def _flat(sequences: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long)

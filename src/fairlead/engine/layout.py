"""Token layout: a batch is a forest of token sequences, packed without padding.

A prompt is a root; its replies are branches that share it. A preference pair is one root with two branches, a group of
samples one root with many, a supervised row one root with one. Position ids of every branch restart where it leaves
the prompt. Trees are never split over micro-batches.

Axes: T packed tokens, N scored tokens, R replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np
import torch

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and the replies that share it, as token ids.

    `masks`, where given, holds one entry per reply: None (every token counts) or one bool per token, False for a token
    that stands in the reply but must not be scored, such as a tool's result.
    """

    prompt: Tokens
    replies: tuple[Tokens, ...]
    masks: tuple[tuple[bool, ...] | None, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the whole tree, the prompt counted once."""
        return len(self.prompt) + sum(len(reply) for reply in self.replies)

    @property
    def longest(self) -> int:
        """Tokens from the root to the end of the longest branch."""
        return len(self.prompt) + max((len(reply) for reply in self.replies), default=0)


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths of one tree as fed to the model: its prompt, and each branch that has at least one token."""

    prompt: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.branches)


@dataclass(frozen=True, slots=True)
class Batch:
    """A packed forest. Trees lie one after another, each as its prompt and then its branches.

    ids_T, position_T   what the model reads
    source_N            the packed position whose hidden state predicts scored token n
    target_N, reply_N   that token's id, and the reply it belongs to; replies are counted in the caller's order
    count_R             scored tokens per reply
    last_R              packed position of the last fed token on the path of reply r (a reward head reads there)
    shapes              lengths of the trees in packed order
    """

    ids_T: torch.Tensor
    position_T: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    reply_N: torch.Tensor
    count_R: torch.Tensor
    last_R: torch.Tensor
    shapes: tuple[Shape, ...]

    @property
    def tokens(self) -> int:
        return int(self.ids_T.numel())

    @property
    def replies(self) -> int:
        return int(self.count_R.numel())

    def to(self, device: torch.device | str) -> Batch:
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "shapes"}
        return replace(self, **moved)


def check(trees: Sequence[Tree], *, context: int | None = None, vocabulary: int | None = None) -> None:
    """Refuse what cannot be scored, naming the row.

    Raises ValueError for an empty prompt (nothing predicts the first token of a reply), an empty reply (its log-prob
    would silently be 0), a mask of the wrong length, a branch longer than the model's context, a token outside its
    vocabulary.
    """
    for row, tree in enumerate(trees):
        if not tree.prompt:
            raise ValueError(f"row {row}: the prompt has no tokens; give it at least one (a BOS token, for example)")
        if tree.masks is not None and len(tree.masks) != len(tree.replies):
            raise ValueError(f"row {row}: {len(tree.masks)} masks for {len(tree.replies)} replies; give one per reply")
        for number, reply in enumerate(tree.replies):
            if not reply:
                raise ValueError(f"row {row}, reply {number}: no tokens; an empty reply needs at least its end token")
            mask = tree.masks[number] if tree.masks is not None else None
            if mask is not None and len(mask) != len(reply):
                raise ValueError(f"row {row}, reply {number}: a mask of {len(mask)} for {len(reply)} tokens")
        if context is not None and tree.longest > context:
            raise ValueError(
                f"row {row}: {tree.longest} tokens do not fit the model's context of {context}; shorten the row"
            )
        if vocabulary is not None:
            highest = max(chain(tree.prompt, *tree.replies))
            lowest = min(chain(tree.prompt, *tree.replies))
            if lowest < 0 or highest >= vocabulary:
                wrong = lowest if lowest < 0 else highest
                raise ValueError(f"row {row}: token id {wrong} is outside the model's vocabulary of {vocabulary}")


def pack(trees: Sequence[Tree], token_budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `token_budget` tokens, whole trees only; returns their indices.

    Trees of similar size come together, which keeps attention blocks nearly free of padding. The split depends on the
    trees' sizes alone. Raises ValueError naming the row for a tree that is larger than the budget by itself.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; it must be at least 1")
    groups: list[list[int]] = []
    room = 0
    for row in sorted(range(len(trees)), key=lambda row: (-trees[row].tokens, row)):
        size = trees[row].tokens
        if size > token_budget:
            raise ValueError(
                f"row {row}: its tree has {size} tokens, more than the token budget of {token_budget}, and a tree is "
                f"never split; raise the budget to at least {size}"
            )
        if not groups or size > room:
            groups.append([])
            room = token_budget
        groups[-1].append(row)
        room -= size
    return groups


def lay_out(trees: Sequence[Tree], *, keep_last: bool = False, device: torch.device | str = "cpu") -> Batch:
    """Pack trees into one batch.

    The last token of a reply predicts nothing that is scored, so by default it is not fed at all; with `keep_last` it
    is, for heads that read the state at the end of a reply. Rows must have passed `check`.
    """
    if not trees:
        raise ValueError("no rows: a batch needs at least one tree")
    drop = 0 if keep_last else 1
    order = sorted(range(len(trees)), key=lambda row: _packing_order(trees[row], drop))
    ids: list[Iterable[int]] = []
    positions: list[np.ndarray] = []
    shapes: list[Shape] = []
    start = [0] * len(trees)
    at = 0
    for row in order:
        tree = trees[row]
        start[row] = at
        fed = [reply[: len(reply) - drop] for reply in tree.replies]
        shape = Shape(len(tree.prompt), tuple(len(reply) for reply in fed if reply))
        ids += [tree.prompt, *fed]
        positions.append(np.arange(shape.prompt))
        positions += [np.arange(shape.prompt, shape.prompt + length) for length in shape.branches]
        shapes.append(shape)
        at += shape.tokens

    sources, targets, counts, last = [], [], [], []
    for row, tree in enumerate(trees):
        prompt_end = start[row] + len(tree.prompt) - 1
        branch = prompt_end + 1
        for number, reply in enumerate(tree.replies):
            source = np.arange(branch - 1, branch - 1 + len(reply))
            source[0] = prompt_end  # the first token of every branch is predicted by the end of the shared prompt
            target = np.asarray(reply)
            mask = tree.masks[number] if tree.masks is not None else None
            if mask is not None:
                keep = np.asarray(mask, dtype=bool)
                source, target = source[keep], target[keep]
            sources.append(source)
            targets.append(target)
            counts.append(len(target))
            fed_tokens = len(reply) - drop
            last.append(branch + fed_tokens - 1 if fed_tokens else prompt_end)
            branch += fed_tokens

    def tensor(values: np.ndarray | list[int]) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64)).to(device)

    empty = np.zeros(0, dtype=np.int64)
    return Batch(
        ids_T=tensor(np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=at)),
        position_T=tensor(np.concatenate(positions)),
        source_N=tensor(np.concatenate(sources) if sources else empty),
        target_N=tensor(np.concatenate(targets) if targets else empty),
        reply_N=tensor(np.repeat(np.arange(len(counts)), counts)),
        count_R=tensor(counts),
        last_R=tensor(last),
        shapes=tuple(shapes),
    )


def _packing_order(tree: Tree, drop: int) -> tuple[int, int, int, int]:
    """Trees that can share one attention call lie side by side (see attention.plan)."""
    fed = [len(reply) - drop for reply in tree.replies if len(reply) > drop]
    if len(fed) < 2:
        return (0, -len(tree.prompt) - sum(fed), 0, 0)
    # Near-equal prompts first, then near-equal branches: padding one prompt by up to 7 costs less than a call.
    return (len(fed), -(len(tree.prompt) // 8), -max(fed), -len(tree.prompt))

"""Exchanges and preferences become token trees, or are refused by row: nothing is cut, dropped or emptied silently.

A preference is one prompt with two replies, an exchange or a rated reply one prompt with one. What does not fit the
model's context is an error that names its row, unless the caller asks for it to be left out or cut, and then counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch

from fairlead.engine.layout import Tree
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Preference, Ranking, Rated
from fairlead.models.render import render_exchange, render_prompts

TooLong: TypeAlias = Literal["refuse", "skip", "cut"]
T = TypeVar("T")


class Trainable(Protocol):
    """A local model that can be trained: the module and tokenizer behind it, and a way back."""

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> str: ...
    @property
    def context(self) -> int | None: ...
    @property
    def module(self) -> torch.nn.Module: ...
    @property
    def tokenizer(self) -> Any: ...

    def with_weights(self, module: torch.nn.Module) -> Trainable:
        """The same model (name, tokenizer, wording) around other weights."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """Trees ready to train on. `source[i]` is the caller's row behind tree i; the counts say what else happened."""

    trees: tuple[Tree, ...]
    source: tuple[int, ...]
    places: tuple[str, ...]
    skipped_too_long: int = 0
    cut: int = 0

    def place(self, row: int) -> str:
        return self.places[row]

    @property
    def digest(self) -> str:
        """Hash of the token ids and masks: what the data is, template and tokenizer included."""
        body = hashlib.sha256()
        for tree in self.trees:
            body.update(repr((tree.prompt, tree.replies, tree.masks)).encode())
        return body.hexdigest()[:16]


def exchange_rows(
    model: Trainable,
    exchanges: Sequence[Exchange],
    *,
    too_long: TooLong = "refuse",
    places: Sequence[str] | None = None,
) -> Rows:
    """One tree per exchange: its prompt and its reply, tool results inside the reply masked."""
    return _rows(model, exchanges, lambda e: (e.messages, (e.reply,)), too_long, places)


def pair_rows(
    model: Trainable, pairs: Sequence[Preference], *, too_long: TooLong = "refuse", places: Sequence[str] | None = None
) -> Rows:
    """One tree per pair: the prompt once, then chosen and rejected as its two branches."""
    return _rows(model, pairs, lambda p: (p.messages, (p.chosen, p.rejected)), too_long, places)


def triple_rows(
    model: Trainable, pairs: Sequence[Preference], *, too_long: TooLong = "refuse", places: Sequence[str] | None = None
) -> Rows:
    """The same with the gold reply as a third branch. Raises InputError naming the first pair without one."""
    bare = [i for i, pair in enumerate(pairs) if not pair.gold]
    if bare:
        place = places[bare[0]] if places is not None else f"row {bare[0]}"
        raise InputError(
            f"{place}: the pair has no gold reply ({len(bare):,} rows have none), which this method imitates. Give "
            "every row one, or learn from the pairs alone with cpo or simpo"
        )
    return _rows(model, pairs, lambda p: (p.messages, (p.chosen, p.rejected, p.gold)), too_long, places)


def rated_rows(
    model: Trainable, rated: Sequence[Rated], *, too_long: TooLong = "refuse", places: Sequence[str] | None = None
) -> Rows:
    """One tree per rated reply: its prompt and the reply."""
    return _rows(model, rated, lambda r: (r.messages, (r.reply,)), too_long, places)


def whole_texts(rows: Rows) -> Rows:
    """The same rows with every token but the first of each text scored, the prompt's and tool results' too."""
    trees = tuple(Tree(t.prompt[:1], tuple(t.prompt[1:] + reply for reply in t.replies)) for t in rows.trees)
    return replace(rows, trees=trees)


def compared_rows(
    model: Trainable,
    values: Sequence[Preference | Ranking],
    *,
    too_long: TooLong = "refuse",
    places: Sequence[str] | None = None,
) -> Rows:
    """One tree per prompt: a pair's two replies (chosen, rejected), or a ranking's, in the order given."""

    def sides(value: Preference | Ranking) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]:
        replies = value.replies if isinstance(value, Ranking) else (value.chosen, value.rejected)
        return value.messages, replies

    return _rows(model, values, sides, too_long, places)


def _rows(
    model: Trainable,
    values: Sequence[T],
    sides: Callable[[T], tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]],
    too_long: TooLong,
    places: Sequence[str] | None,
) -> Rows:
    if not values:
        raise InputError("no rows to train on")
    if places is not None and len(places) != len(values):
        raise ValueError(f"{len(values)} rows but {len(places)} places")
    names = tuple(places) if places is not None else tuple(f"row {i}" for i in range(len(values)))
    trees: list[Tree] = []
    source: list[int] = []
    misfits: list[tuple[int, int]] = []
    cut = 0
    for row, value in enumerate(values):
        messages, replies = sides(value)
        tree = _tree(model.tokenizer, messages, replies, names[row])
        if model.context is not None and tree.longest > model.context:
            shorter = _cut(model, messages, tree, names[row]) if too_long == "cut" else None
            if shorter is None:
                misfits.append((row, tree.longest))
                continue
            tree = shorter
            cut += 1
        trees.append(tree)
        source.append(row)
    if misfits and too_long != "skip":
        raise InputError(_too_long_message(model, misfits, names, too_long))
    if not trees:
        raise InputError(f"none of {len(values)} rows fits the context of {model.context} tokens of {model.name}")
    return Rows(tuple(trees), tuple(source), tuple(names[i] for i in source), len(misfits), cut)


def _tree(tokenizer: Any, messages: tuple[Message, ...], replies: Sequence[tuple[Message, ...]], place: str) -> Tree:
    try:
        rendered = [render_exchange(tokenizer, Exchange(messages, reply)) for reply in replies]
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    masks = tuple(r.mask for r in rendered)
    if not all(any(mask) for mask in masks):
        raise InputError(f"{place}: a reply without a single token of the model's own: there is nothing to learn from")
    every = all(all(mask) for mask in masks)
    return Tree(rendered[0].prompt, tuple(r.reply for r in rendered), None if every else masks)


def _cut(model: Trainable, messages: tuple[Message, ...], tree: Tree, place: str) -> Tree | None:
    """The same tree with the oldest turns of its prompt gone; replies are never cut. None where they alone fill it."""
    assert model.context is not None
    room = model.context - max(len(reply) for reply in tree.replies)
    if room < 1:
        return None
    try:
        (prompt,), _ = render_prompts(model.tokenizer, [messages], limit=room, cut="left")
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return Tree(tuple(prompt), tree.replies, tree.masks)


def _too_long_message(
    model: Trainable, misfits: Sequence[tuple[int, int]], names: Sequence[str], too_long: TooLong
) -> str:
    shown = ", ".join(f"{names[row]} ({tokens:,} tokens)" for row, tokens in misfits[:5])
    more = f" and {len(misfits) - 5:,} more" if len(misfits) > 5 else ""
    cutting = "; even without their prompts the replies do not fit" if too_long == "cut" else ", or too_long: cut"
    return (
        f"{len(misfits):,} rows do not fit the context of {model.context:,} tokens of {model.name}: {shown}{more}. "
        f"Shorten them, leave them out (too_long: skip, counted){cutting}"
    )


def reply_tokens(tree: Tree) -> list[int]:
    """How many tokens of each reply of a tree count."""
    masks = tree.masks or (None,) * len(tree.replies)
    return [len(reply) if mask is None else sum(mask) for reply, mask in zip(tree.replies, masks, strict=True)]


def scored_tokens(tree: Tree) -> int:
    """How many reply tokens of a tree count."""
    return sum(reply_tokens(tree))


def folder_key(*parts: object) -> str:
    """A short hash of everything that determines a cached or resumable result."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]


def beside(folder: Path, name: str, key: str, suffix: str) -> Path:
    """Where a keyed file lives in a cache folder."""
    return folder / f"{name}-{key}{suffix}"

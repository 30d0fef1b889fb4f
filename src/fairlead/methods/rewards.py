"""Rewards are judges: named objectives that score a step's replies, and what became of each score.

RL reads a judge's raw score (`Verdict.raw`; a judge without one gives its score). A judge that raises, or has nothing
to say about a reply, leaves a missing value there, NaN in the table, counted by objective and with the first reason:
it is never a zero (see shaping.py for what follows from it). A judge that raises on some replies is asked again
without them, so that only theirs are missing.

Axes: R replies, K objectives.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fairlead.errors import BudgetReached, InputError, MissingResource
from fairlead.exchange import Exchange, Verdict
from fairlead.judges.lineage import Lineage, merge
from fairlead.judges.protocol import Judge
from fairlead.methods.shaping import rewards_of

log = logging.getLogger(__name__)

GIVEN_UP = 32
"""Calls in a row that raise before a judge is not asked any more of these replies: it raises on everything."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A judge in its part.

    weight   of its raw score in the sum
    name     its column in the log; by default the judge's own name
    role     reward: to be raised. cost: to be held under `cost_budget`
    since    share of the run's steps after which it counts; before, its judge is not asked and the reward is that of
             the others (DeepSeek R1's preference rewards, arXiv 2501.12948: the last quarter, 0.75)
    """

    judge: Judge
    weight: float = 1.0
    name: str = ""
    role: Literal["reward", "cost"] = "reward"
    since: float = 0.0

    @property
    def column(self) -> str:
        return self.name or self.judge.name


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw scores of a step's replies, float64, NaN where missing; why, by column, in the words of the first."""

    raw_RK: Tensor
    reasons: dict[str, str]


def checked(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """The objectives, refused where they cannot be told apart or weigh nothing."""
    names = [one.column for one in objectives]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two objectives are called {twice[0]!r}: give each a name of its own, for the log")
    for one in objectives:
        if not math.isfinite(one.weight) or one.weight == 0:
            raise InputError(f"objective {one.column!r} has weight {one.weight}; leave it out, or give it a say")
        if not 0 <= one.since < 1:
            raise InputError(f"objective {one.column!r}: since is {one.since}, and a share of the steps is in [0, 1)")
    for role in ("reward", "cost"):
        since = [one.since for one in objectives if one.role == role]
        if since and min(since) > 0:
            raise InputError(f"no {role} counts from the first step on: give one that does (since: 0)")
    return tuple(objectives)


def switch(one: Objective, steps: int) -> int:
    """The first step, from 0, in which an objective counts, of so many in all. The last one at the latest."""
    return min(math.ceil(one.since * steps - 1e-9), max(steps - 1, 0))


def at_step(objectives: Sequence[Objective], step: int, steps: int) -> tuple[Objective, ...]:
    """The objectives as they count in one step of a run: those that do not yet have weight 0."""
    return tuple(one if step >= switch(one, steps) else replace(one, weight=0.0) for one in objectives)


def score(objectives: Sequence[Objective], exchanges: Sequence[Exchange]) -> Scores:
    """Every objective's raw score of every reply. Raises InputError for a judge whose answers are not one per reply.

    One of weight 0 is not asked: its column is NaN, and nothing reads it.
    """
    columns: list[Tensor] = []
    reasons: dict[str, str] = {}
    for one in objectives:
        if one.weight == 0:
            columns.append(torch.full((len(exchanges),), math.nan, dtype=torch.float64))
        else:
            columns.append(_values(one, exchanges, reasons))
    if not columns:
        return Scores(torch.zeros(len(exchanges), 0, dtype=torch.float64), reasons)
    return Scores(torch.stack(columns, 1), reasons)


def _values(one: Objective, exchanges: Sequence[Exchange], reasons: dict[str, str]) -> Tensor:
    if not exchanges:
        return torch.zeros(0, dtype=torch.float64)
    verdicts, reason = spared(one.judge.judge, exchanges, one.column)
    if reason:
        reasons[one.column] = reason
    raws = [None if verdict is None else _raw(verdict) for verdict in verdicts]
    known = zip(verdicts, raws, strict=True)
    silent = next((v.reason for v, raw in known if v is not None and raw is None), None)
    if silent is not None:
        reasons.setdefault(one.column, silent or "no reason given")
    return rewards_of(raws)


OF_NO_REPLY = (MissingResource, BudgetReached)


def spared(call: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any], name: str) -> tuple[list[Any], str]:
    """What a judge says of each item, None of those that it raises on; and the first reason, "" where it never raises.

    Where it raises it is asked of each half, and so on, so a few bad items of n cost it at most 2 log2(n) calls each.
    The halves are drawn, so that bad items that lie together look like others. After 32 calls in a row that raised it
    is given up, and what is left is missing too; how much is said in the log. An error that is about no reply (a server
    that is gone, a budget that is spent) is not looked for in halves. Raises InputError where the answers are
    not one per item.
    """
    found: list[Any] = [None] * len(items)
    waiting = [random.Random(len(items)).sample(range(len(items)), len(items))]
    first, in_a_row, raised, left = "", 0, 0, 0
    while waiting:
        part = sorted(drawn := waiting.pop())
        if in_a_row == GIVEN_UP:
            left += len(part)
            continue
        try:
            answers = call(items if len(part) == len(items) else [items[i] for i in part])
        except Exception as error:  # noqa: BLE001 whatever a judge does, the run goes on and the value is missing
            first, in_a_row = first or f"{type(error).__name__}: {error}", in_a_row + 1
            if len(part) == 1 or isinstance(error, OF_NO_REPLY):
                raised += len(part)
            else:
                waiting.extend((drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]))
            continue
        in_a_row = 0
        if len(answers) != len(part):
            raise InputError(f"objective {name}: {len(answers)} verdicts on {len(part)} replies; give one each")
        for i, answer in zip(part, answers, strict=True):
            found[i] = answer
    if first:
        also = f", {left} of them for {GIVEN_UP} calls in a row that raised" if left else ""
        log.warning(
            "objective %s raised on %d of %d replies, which have no value of it%s (%s)",
            name, raised + left, len(items), also, first,
        )  # fmt: skip
    return found, first


def _raw(verdict: Verdict) -> float | None:
    """What is optimised. An infinite value is no measurement: missing, like one that is no number."""
    value = verdict.raw if verdict.raw is not None else verdict.score
    return value if value is not None and math.isfinite(value) else None


def lineage_of(objectives: Sequence[Objective]) -> Lineage:
    """What may not be evidence for what was trained on these."""
    return merge(one.judge.lineage for one in objectives)


def weights_of(objectives: Sequence[Objective], role: Literal["reward", "cost"]) -> Tensor:
    """[K] of float64, 0 for objectives of the other role."""
    return torch.tensor([one.weight if one.role == role else 0.0 for one in objectives], dtype=torch.float64)

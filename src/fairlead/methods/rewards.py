"""Rewards are judges: named objectives that score a step's replies, and what became of each score.

RL reads a judge's raw score (`Verdict.raw`; a judge without one gives its score). A judge that raises, or has nothing
to say about a reply, leaves a missing value there, NaN in the table, counted by objective and with the first reason:
it is never a zero (see shaping.py for what follows from it).

Axes: R replies, K objectives.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict
from fairlead.judges.lineage import Lineage, merge
from fairlead.judges.protocol import Judge
from fairlead.methods.shaping import rewards_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Objective:
    """A judge in its part.

    weight   of its raw score in the sum
    name     its column in the log; by default the judge's own name
    role     reward: to be raised. cost: to be held under `cost_budget`
    """

    judge: Judge
    weight: float = 1.0
    name: str = ""
    role: Literal["reward", "cost"] = "reward"

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
    return tuple(objectives)


def score(objectives: Sequence[Objective], exchanges: Sequence[Exchange]) -> Scores:
    """Every objective's raw score of every reply. Raises InputError for a judge whose answers are not one per reply."""
    columns: list[Tensor] = []
    reasons: dict[str, str] = {}
    for one in objectives:
        values = _values(one, exchanges, reasons)
        columns.append(values)
    if not columns:
        return Scores(torch.zeros(len(exchanges), 0, dtype=torch.float64), reasons)
    return Scores(torch.stack(columns, 1), reasons)


def _values(one: Objective, exchanges: Sequence[Exchange], reasons: dict[str, str]) -> Tensor:
    if not exchanges:
        return torch.zeros(0, dtype=torch.float64)
    try:
        verdicts = one.judge.judge(exchanges)
    except Exception as error:  # noqa: BLE001 whatever a judge does, the run goes on and the value is missing
        reason = f"{type(error).__name__}: {error}"
        log.warning(
            "objective %s raised on %d replies, which have no value of it (%s)", one.column, len(exchanges), reason
        )
        reasons[one.column] = reason
        return torch.full((len(exchanges),), math.nan, dtype=torch.float64)
    if len(verdicts) != len(exchanges):
        raise InputError(f"objective {one.column}: {len(verdicts)} verdicts on {len(exchanges)} replies; give one each")
    raws = [_raw(verdict) for verdict in verdicts]
    silent = next((v.reason for v, raw in zip(verdicts, raws, strict=True) if raw is None), None)
    if silent is not None:
        reasons.setdefault(one.column, silent or "no reason given")
    return rewards_of(raws)


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

"""When a step's loss or gradient is nothing usual, and when a run's loss rises: rules on numbers alone.

What is no number always stops a run; what is a number may be worse. A step whose gradient or loss is many times the
usual one stops it before any weight changes (`gradient_spike`, `loss_spike`); a loss that rises and stays there, step
by small step, is raised as the alarm `loss-rises` (`loss_rises`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairlead.methods.loop import StepRecord

CALM = 20
"""Steps before there is a usual gradient, and a usual loss beside the first one."""
RECENT = 50
"""Steps whose median is the usual."""
FEWEST = 4
"""Rows that a step has at least for its loss to be held against others: a row alone may be that hard."""
GUESSED = math.log(2)
"""Nats of a pair that is guessed. Smaller losses count as it: a run that knows its rows may still meet others."""
WINDOW = 8
"""Steps whose median says that a loss rose."""
ROSE = 2.0
"""Times the first step's loss that is a rise. Of some 300 runs of the recipes and the tests none came above 1.3."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a run should not have done, by name: what was seen, when first, and what to do."""

    name: str
    step: int
    value: float
    message: str


def gradient_spike(norm: float, earlier: Sequence[float], limit: float | None) -> str:
    """Why a gradient of this norm should stop the run, "" where it should not.

    The usual is the median of the last 50 norms or that of the first 20, whichever is more: near its end a run has
    little left to learn of most rows, and the odd one stands out. With fewer than 20 steps there is none.
    """
    if limit is None or len(earlier) < CALM:
        return ""
    usual = max(median(earlier[-RECENT:]), median(earlier[:CALM]))
    if norm <= limit * usual:
        return ""
    return (
        f"the gradient's norm is {norm:.3g}, {norm / max(usual, 1e-30):.3g} times the usual {usual:.3g} "
        f"(spike: {limit:g})"
    )


def loss_spike(loss: float, rows: int, earlier: Sequence[float], limit: float | None) -> str:
    """Why a loss of this size, a mean over so many rows, should stop the run, "" where it should not.

    It is held against the first step's, which no update has touched, and from the 20th step on against the median of
    the last 50 too; losses below log 2 count as that. Of the first steps alone a median would say nothing: a run that
    breaks breaks early, and its own broken steps would be the usual.
    """
    if limit is None or not earlier or rows < FEWEST:
        return ""
    recent = median(earlier[-RECENT:]) if len(earlier) >= CALM else -math.inf
    usual, what = max((GUESSED, "a guess'"), (earlier[0], "the first step's"), (recent, "the usual"))
    if loss <= limit * usual:
        return ""
    return f"the loss is {loss:.4g}, {loss / usual:.3g} times {what} {usual:.3g} (loss_spike: {limit:g})"


def loss_rises(records: Sequence[StepRecord]) -> tuple[Alarm, ...]:
    """The alarm `loss-rises`, at the first step whose last eight losses have a median of twice the first one's.

    A run shorter than that is looked at once, after its last step. Records of several runs, each from its step 0 on,
    are looked at one by one: the first that rises is told.
    """
    starts = [at for at, record in enumerate(records) if record.step == 0] or [0]
    for start, end in zip(starts, [*starts[1:], len(records)], strict=True):
        losses = [record.loss for record in records[start:end]]
        for at in range(min(WINDOW, len(losses)), len(losses) + 1):
            if found := _rise(losses[0] if losses else 0.0, losses[max(0, at - WINDOW) : at]):
                return (_told(records[start + at - 1], losses[0], found, _rise(losses[0], losses[-WINDOW:])),)
    return ()


def loss_rising(records: Sequence[StepRecord]) -> tuple[Alarm, ...]:
    """The same of a run under way, by its last eight steps."""
    if len(records) < WINDOW:
        return ()
    first, found = records[0].loss, _rise(records[0].loss, [record.loss for record in records[-WINDOW:]])
    return (_told(records[-1], first, found, None),) if found else ()


def _rise(first: float, window: Sequence[float]) -> float:
    """The median of some steps' losses where that is a rise, else 0."""
    if len(window) < 2:
        return 0.0
    found = median(window)
    return found if found > ROSE * max(first, GUESSED) else 0.0


def _told(record: StepRecord, first: float, found: float, last: float | None) -> Alarm:
    """`last` is that of the run's last steps, 0 where they are no rise; None while it is under way."""
    now = "" if last is None else f", {last:.3g} at the end" if last else ", and came back by the end"
    return Alarm(
        "loss-rises",
        record.step + 1,
        found,
        f"the loss is {found:.3g} at step {record.step + 1} (median of {WINDOW} steps) and was {first:.3g} at the "
        f"first one{now}: the model loses what it knew. Lower lr, lengthen warmup, or clip gradients (grad_clip)",
    )

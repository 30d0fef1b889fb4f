"""When a step's loss or gradient is nothing usual, and when a run's loss rises: rules on numbers alone.

What is no number always stops a run; what is a number may be worse. A step whose gradient or loss is many times the
usual one stops it before any weight changes (`gradient_spike`, `loss_spike`); a loss that rises and stays there, step
by small step, is raised as the alarm `loss-rises` (`loss_rises`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairlead.methods.loop import StepRecord

CALM = 20
"""Steps before there is a usual gradient, and a usual loss beside the start's."""
RECENT = 50
"""Steps that say what is usual."""
POOL = 32
"""Rows whose mean loss is held against others, those of a step by default: of smaller steps the last few together."""
FEWEST = 4
"""Rows that there are at least before that is done: a row alone may be that hard."""
GUESSED = math.log(2)
"""Nats of a pair that is guessed. Smaller losses count as it: a run that knows its rows may still meet others."""
WINDOW = 8
"""Steps whose median says that a loss rose."""
ROSE = 2.0
"""Times the start's loss that is a rise."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a run should not have done, by name: what was seen, when first, and what to do."""

    name: str
    step: int
    value: float
    message: str


def gradient_spike(norm: float, earlier: Sequence[StepRecord], limit: float | None) -> str:
    """Why a gradient of this norm should stop the run, "" where it should not.

    The usual is the median of the last 50 norms or that of the first 20, whichever is more: near its end a run has
    little left to learn of most rows, and the odd one stands out. With fewer than 20 steps there is none.
    """
    if limit is None or len(earlier) < CALM:
        return ""
    usual = max(median(r.grad_norm for r in steps) for steps in (earlier[-RECENT:], earlier[:CALM]))
    if norm <= limit * usual:
        return ""
    return (
        f"the gradient's norm is {norm:.3g}, {norm / max(usual, 1e-30):.3g} times the usual {usual:.3g} "
        f"(spike: {limit:g})"
    )


def loss_spike(
    loss: float, rows: int, earlier: Sequence[StepRecord], limit: float | None, *, alike: bool = True
) -> str:
    """Why a loss of this size, a mean over so many rows, should stop the run, "" where it should not.

    It is held against the start's, and from the 20th step on against the mean of the last 50 too; losses below log 2
    count as that. Of the first steps alone a mean would say nothing: a run that breaks breaks early, and its own broken
    steps would be the usual. Of steps with fewer than 32 rows the last ones are taken together, up to so many: 4 rows
    of CPO whose replies differ in length, or of a reward model that is sure of itself, lose ten times the usual by
    chance. And where rows are learnt, the odd one that is not stands for most of the loss: it is in a mean of 50 steps
    and in no median.

    alike   whether rows have about the same loss before they are learnt from (see `_start`)
    """
    start = _start(earlier, alike=alike)
    if limit is None or start is None:
        return ""
    now, counted, others = _pooled(loss, rows, earlier)
    if counted < FEWEST:
        return ""
    recent = fmean(r.loss for r in others) if len(others) >= CALM else -math.inf
    usual, what = max((GUESSED, "a guess'"), (start, "the start's"), (recent, "the usual"))
    if now <= limit * usual:
        return ""
    over = f", {now:.4g} over the last {counted} rows" if counted > rows else ""
    return f"the loss is {loss:.4g}{over}, {now / usual:.3g} times {what} {usual:.3g} (loss_spike: {limit:g})"


def _start(records: Sequence[StepRecord], *, alike: bool) -> float | None:
    """The loss that a run starts at; None where that cannot be told yet.

    That is the first step's, which no update has touched, where rows are `alike`: a mean over tokens, or a guess of
    every pair. Elsewhere (margins, summed log-probs without a reference) a few rows may have next to none by chance: it
    is the most of the first steps that have 32 rows together.
    """
    if not records:
        return None
    if alike:
        return records[0].loss
    counted, most = 0, -math.inf
    for record in records[:POOL]:
        counted, most = counted + record.rows, max(most, record.loss)
        if counted >= POOL:
            return most
    return None


def _pooled(loss: float, rows: int, earlier: Sequence[StepRecord]) -> tuple[float, int, Sequence[StepRecord]]:
    """The mean loss of this step's rows and of those before it, up to 32 or a few more; how many; the steps before."""
    total, counted, at = loss * rows, rows, len(earlier)
    while counted < POOL and at:
        at -= 1
        total, counted = total + earlier[at].loss * earlier[at].rows, counted + earlier[at].rows
    return total / counted, counted, earlier[max(0, at - RECENT) : at]


def loss_rises(records: Sequence[StepRecord], *, alike: bool = True) -> tuple[Alarm, ...]:
    """The alarm `loss-rises`, at the first step whose last eight losses have a median of twice the start's.

    A run shorter than that is looked at once, after its last step. Records of several runs, each from its step 0 on,
    are looked at one by one: the first that rises is told.
    """
    starts = [at for at, record in enumerate(records) if record.step == 0] or [0]
    for begin, end in zip(starts, [*starts[1:], len(records)], strict=True):
        run = records[begin:end]
        start, losses = _start(run, alike=alike), [record.loss for record in run]
        if start is None:
            continue
        for at in range(min(WINDOW, len(losses)), len(losses) + 1):
            if found := _rise(start, losses[max(0, at - WINDOW) : at]):
                return (_told(run[at - 1], start, found, _rise(start, losses[-WINDOW:])),)
    return ()


def loss_rising(records: Sequence[StepRecord], *, alike: bool = True) -> tuple[Alarm, ...]:
    """The same of a run under way, by its last eight steps."""
    start = _start(records, alike=alike)
    if len(records) < WINDOW or start is None:
        return ()
    found = _rise(start, [record.loss for record in records[-WINDOW:]])
    return (_told(records[-1], start, found, None),) if found else ()


def _rise(start: float, window: Sequence[float]) -> float:
    """The median of some steps' losses where that is a rise, else 0."""
    if len(window) < 2:
        return 0.0
    found = median(window)
    return found if found > ROSE * max(start, GUESSED) else 0.0


def _told(record: StepRecord, start: float, found: float, last: float | None) -> Alarm:
    """`last` is that of the run's last steps, 0 where they are no rise; None while it is under way."""
    now = "" if last is None else f", {last:.3g} at the end" if last else ", and came back by the end"
    return Alarm(
        "loss-rises",
        record.step + 1,
        found,
        f"the loss is {found:.3g} at step {record.step + 1} (median of {WINDOW} steps) and was {start:.3g} at the "
        f"start{now}: the model loses what it knew. Lower lr, lengthen warmup, or clip gradients (grad_clip)",
    )

"""When a run has collapsed: rules on what the steps so far said, pure functions of numbers.

A policy that left its reference behind, or whose reward fell off a cliff, does not come back by going on. The loop
keeps the weights of the last step that nothing was wrong with; where a rule here says so, it puts them back and stops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

PAST = 16
"""Steps whose mean rewards say what is usual."""
RUN = 3
"""Steps in a row below the cliff before a run is called collapsed: one bad draw of prompts is none."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a step's numbers say. `good`: these weights are worth keeping. `verdict`: why the run should stop, or ""."""

    good: bool
    verdict: str = ""


def health(
    rewards: Sequence[float],
    errors: Sequence[float],
    kl_per_token: float | None,
    *,
    kl_burst: float,
    cliff: float | None,
) -> Health:
    """Of the step whose numbers come last.

    rewards        mean reward of each step so far
    errors         its standard error (the spread of the step's replies over the root of their number)
    kl_per_token   this step's mean KL to the reference, nats per drawn token; None where it was not measured
    kl_burst       the KL that is too much
    cliff          standard deviations below the usual mean that are too much; None for no such rule

    The usual is the mean of the 16 steps before the last 3, its deviation that of their means or their typical standard
    error, whichever is more; with fewer than 8 such steps the second rule says nothing.
    """
    if kl_per_token is not None and not kl_per_token <= kl_burst:
        return Health(False, f"KL burst: {kl_per_token:.3g} nats per token to the reference, more than {kl_burst:g}")
    known = [(reward, error) for reward, error in zip(rewards, errors, strict=True) if math.isfinite(reward)]
    past, last = known[: max(len(known) - RUN, 0)][-PAST:], known[-RUN:]
    if cliff is None or len(past) < PAST // 2 or not math.isfinite(rewards[-1]):
        return Health(True)
    usual = fmean(reward for reward, _ in past)
    spread = max(pstdev([reward for reward, _ in past]), fmean(error for _, error in past))
    edge = usual - cliff * max(spread, 1e-12)
    if all(reward < edge for reward, _ in last):
        return Health(
            False,
            f"reward cliff: {', '.join(f'{reward:.3g}' for reward, _ in last)} in the last {RUN} steps, where the "
            f"{len(past)} before had a mean of {usual:.3g} with a deviation of {spread:.2g}",
        )
    return Health(last[-1][0] >= edge)

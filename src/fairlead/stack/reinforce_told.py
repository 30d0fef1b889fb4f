"""What a run of reinforcement learning says of its steps: means over them, and a step in words now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fairlead.stack.voice import Voice

if TYPE_CHECKING:
    from fairlead.methods.config_policy import PolicyConfig
    from fairlead.methods.loop import StepRecord

SAID_EVERY_S = 15.0


def means_of(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over some steps of everything told of each, numbers that are none left out.

    The exception is `reward_error`, the standard error of a step's mean reward: what comes out is that of the mean.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for one in told for name in one):
        values = [value for one in told if math.isfinite(value := one.get(name, math.nan))]
        found[name] = sum(values) / len(values) if values else math.nan
        if name == "reward_error" and values:
            found[name] = math.hypot(*values) / len(values)
    return found


def nats(value: float) -> str:
    """Two decimals, and no sign of what is nothing but rounding."""
    return f"{round(value, 2) + 0.0:.2f}"


def line_of(told: Mapping[str, float], step: int, steps: int) -> str:
    """One step in words."""
    parts = [f"reward {told['reward']:.3g}"]
    if "cost" in told:
        parts.append(f"cost {told['cost']:.3g} (multiplier {told['multiplier']:.3g})")
    if "kl" in told:
        parts.append(f"KL {nats(told['kl'])} nats per reply")
    parts.append(f"{told['length']:.0f} tokens, {told['ended']:.0%} ended")
    if told["missing"]:
        parts.append(f"{told['missing']:,.0f} of {told['replies']:,.0f} replies without a reward")
    return f"step {step:,} of {steps:,}: {', '.join(parts)}"


def telling(voice: Voice, config: PolicyConfig, name: str = "") -> Callable[[StepRecord], None]:
    """Says a step in words: the first one, and from then on one now and then."""
    last = -math.inf

    def tell(record: StepRecord) -> None:
        nonlocal last
        if not record.told or time.monotonic() - last < SAID_EVERY_S:
            return
        last = time.monotonic()
        line = line_of(record.told, record.step // config.updates + 1, record.steps // config.updates)
        voice.say(f"{name}: {line}" if name else line)

    return tell

"""What reinforcement learning came to, or would take, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.cli.terminal import duration
from fairlead.cli.train import memory_told
from fairlead.stack.reinforce_told import nats


def told(found: Mapping[str, Any]) -> list[str]:
    """What came of it: what was learnt from, how the rewards moved, what is missing, and why it stopped early."""
    head = (
        f"{found['replies']:,} replies to {found['asked']:,} prompts, {found['steps']:,} steps "
        f"({found['updates']:,} updates)"
    )
    if found["skipped_too_long"]:
        head += f"; {found['skipped_too_long']:,} prompts too long, left out"
    lines = [head]
    if found["steps"]:
        lines.append(_moved(found))
    missing = [f"{count:,} of {name}" for name, count in found["missing"].items() if count]
    lines.append(f"scores missing: {', '.join(missing)}" if missing else "no score is missing")
    if found["spent"]:
        lines.append(f"asked at a provider: {_spent(found['spent'])}")
    if found["stopped"]:
        lines.append(f"STOPPED EARLY: {found['stopped']}")
    return lines


def _moved(found: Mapping[str, Any]) -> str:
    """From the first tenth of the steps to the last, with standard errors."""
    first, last, averaged = found["start"], found["metrics"], found["averaged"]
    steps = f"{averaged:,} steps" if averaged > 1 else "step"
    parts = [f"reward {_with_error(first)} in the first {steps}, {_with_error(last)} in the last"]
    several = len(found["rewards"]) > 1
    for one in found["rewards"] if several else ():
        column = f"{one['role']}.{one['name']}"
        parts.append(f"{one['name']} {first[column]:.3g} to {last[column]:.3g}")
    if found["closing"]:
        parts.append(f"KL to the reference {nats(found['closing']['kl'])} nats per reply")
    parts.append(f"replies of {first['length']:.0f} tokens, then {last['length']:.0f}")
    return "; ".join(parts)


def _with_error(told: Mapping[str, Any]) -> str:
    return f"{told['reward']:.3g} ± {told['reward_error']:.2g}"


def told_ahead(found: Mapping[str, Any]) -> list[str]:
    """What a training would take, in words."""
    config, start = found["config"], found["start"]
    lines = [
        f"{found['prompts']:,} prompts, the longest of {found['longest_prompt']:,} tokens"
        + (f"; {found['skipped_too_long']:,} too long, left out" if found["skipped_too_long"] else ""),
        f"each step draws {found['replies_per_step']:,} replies, at most {found['tokens_per_step_at_most']:,} tokens; "
        f"learning rate {config['lr']:g}",
    ]
    if start:
        lines.append(
            f"the model as it is: reward {_with_error(start)}, {start['length']:.0f} tokens per reply, so about "
            f"{found['tokens_per_step']:,.0f} a step ({start['replies']:,.0f} replies)"
        )
    lines += [f"scores missing in the tried steps: {count:,} of {name}" for name, count in found["missing"].items()
              if count]  # fmt: skip
    if found["spent"]:
        lines.append(
            f"asked at a provider in the {found['tried']:,} tried steps: {_spent(found['spent'])}; so about "
            f"{_amount(found['spent'], found['steps'] / found['tried'])} for all {found['steps']:,} steps"
        )
    lines += memory_told(found, "the program itself and its judges")
    lines.append(
        f"{found['steps']:,} steps ({found['updates']:,} updates); one step took {found['seconds_per_step']:.2f} s "
        f"here, so about {duration(found['about_seconds'])} in all, at replies as long as now"
    )
    return lines


def _spent(spent: Mapping[str, Any]) -> str:
    calls = f"{spent['calls']:,} {'call' if spent['calls'] == 1 else 'calls'}"
    return f"{calls}, {_amount(spent, 1)} of the budget of {spent['budget']}"


def _amount(spent: Mapping[str, Any], times: float) -> str:
    """So many times what was spent, in money where the prices are known."""
    if spent["usd"] is not None:
        return f"${spent['usd'] * times:,.4f}"
    return f"{(spent['prompt_tokens'] + spent['completion_tokens']) * times:,.0f} tokens"

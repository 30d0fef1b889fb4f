"""WARM: one reward model whose weights are the mean of several (Ramé et al. 2024, arXiv 2401.12187, section 3).

It costs what one costs to run, and forgets what single members memorised. That works only where the members lie in one
basin: the same architecture, trained from the same base, their heads from the same numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fairlead.errors import InputError
from fairlead.exchange import Preference
from fairlead.judges.lineage import merge
from fairlead.judges.reward_model import Calibration, RewardModel, calibrate, open_reward


def average_rewards(
    folders: Sequence[Path | str],
    *,
    weights: Sequence[float] | None = None,
    pairs: Sequence[Preference] = (),
    base: Any = None,
    name: str = "warm",
    **local: Any,
) -> RewardModel:
    """The weight average of the reward models in `folders`; its lineage holds all of theirs.

    weights    of the members, positive; equal by default. They are normalised to sum to 1
    pairs      to calibrate on: an average has a scale of its own, and without pairs it is not calibrated
    base       the model they were trained from, where folders hold adapters (their merged weights are averaged)
    local      more for `open_reward`

    Raises InputError, naming the folder, for members of another architecture, base, head start or kind.
    """
    return average([open_reward(f, base=base, **local) for f in folders], weights=weights, pairs=pairs, name=name)


def average(
    members: Sequence[RewardModel],
    *,
    weights: Sequence[float] | None = None,
    pairs: Sequence[Preference] = (),
    name: str = "warm",
) -> RewardModel:
    """`average_rewards` of reward models that are open."""
    if len(members) < 2:
        raise InputError(f"{len(members)} reward model to average: give at least 2")
    shares = list(weights) if weights is not None else [1.0] * len(members)
    if len(shares) != len(members) or not all(w > 0 and math.isfinite(w) for w in shares):
        raise InputError(f"weights {shares} for {len(members)} reward models: give one above 0 for each")
    first = members[0]
    for other in members[1:]:
        _check(first, other)
    body = copy.deepcopy(first.model.module)
    head = copy.deepcopy(first.head)
    _average_into(body, [m.model.module for m in members], shares)
    _average_into(head, [m.head for m in members], shares)
    made = replace(
        first,
        name=name,
        model=first.model.with_weights(body),
        head=head,
        calibration=Calibration(),
        trained_on=merge(member.lineage for member in members),
        adapter=None,
        known="",
    )
    return calibrate(made, pairs) if pairs else made


def _average_into(target: torch.nn.Module, sources: Sequence[torch.nn.Module], shares: Sequence[float]) -> None:
    """Summed in float64 and rounded once. Tied weights are one tensor and averaged once."""
    states = [dict(source.named_parameters()) for source in sources]
    whole = sum(shares)
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            total = torch.zeros_like(parameter, dtype=torch.float64)
            for share, state in zip(shares, states, strict=True):
                total += state[name].double() * (share / whole)
            parameter.copy_(total)


def _check(first: RewardModel, other: RewardModel) -> None:
    """Refuse what does not lie in one basin, naming both."""

    def shapes(reward: RewardModel) -> dict[str, torch.Size]:
        return {n: p.shape for n, p in (*reward.model.module.named_parameters(), *reward.head.named_parameters())}

    def words(reward: RewardModel) -> Any:
        return reward.model.tokenizer.get_vocab(), reward.model.tokenizer.chat_template

    asked = {
        "kind": (first.kind, other.kind),
        "base": (first.base, other.base),
        "head_seed": (first.head_seed, other.head_seed),
        "separator": (first.separator, other.separator),
        "whole": (first.whole, other.whole),
        "architecture": (type(first.model.module).__name__, type(other.model.module).__name__),
    }
    for what, (mine, theirs) in asked.items():
        if mine != theirs:
            raise InputError(
                f"{other.name}: its {what} is {theirs!r} and that of {first.name} {mine!r}; "
                "only reward models of one start can be averaged (an ensemble takes any)"
            )
    if shapes(first) != shapes(other):
        raise InputError(f"{other.name} and {first.name} have weights of other shapes; they cannot be averaged")
    if words(first) != words(other):
        raise InputError(f"{other.name} and {first.name} have other tokenizers or chat templates")
    if not first.base:
        raise InputError(f"{first.name}: nothing says what it was trained from, so it may not be averaged")

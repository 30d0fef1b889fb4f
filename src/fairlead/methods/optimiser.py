"""What the optimiser is given: the learning rate of each step, and the parameters in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from fairlead.engine import parallel
from fairlead.methods.config import Training


def learning_rate(config: Training, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: warmup, then the schedule; never 0 inside the run."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    left = (steps - step) / max(steps - warm, 1)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[config.schedule]
    return config.lr * shape


def parts_of(
    parameters: Mapping[str, torch.nn.Parameter], rates: Mapping[str, float]
) -> list[tuple[float, list[torch.nn.Parameter]]]:
    """Parameters by the part they belong to, each with its rate; what no part names learns at the settings' own."""
    mine: dict[str, list[torch.nn.Parameter]] = {"": [], **{start: [] for start in rates}}
    for name, parameter in parameters.items():
        mine[next((start for start in rates if name.startswith(start)), "")].append(parameter)
    return [(rates.get(start, 1.0), members) for start, members in mine.items() if members]


def groups_of(parameters: Sequence[torch.nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Parameters for the optimiser. Decay pulls weights to zero; norms and biases have no reason to be there."""
    groups: list[dict[str, object]] = []
    for split in (False, True):  # no fused call takes both kinds
        mine = [p for p in parameters if parallel.is_split(p) == split]
        groups.append({"params": [p for p in mine if p.ndim >= 2], "weight_decay": decay})
        groups.append({"params": [p for p in mine if p.ndim < 2], "weight_decay": 0.0})
    return [group for group in groups if group["params"]]

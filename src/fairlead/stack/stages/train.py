"""What the training stages share: resolved settings, the cached training run, and the model that comes out."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fairlead.errors import InputError
from fairlead.methods.catalogue import METHODS
from fairlead.methods.config import Training
from fairlead.stack.atomic import age, at_work, others_at_work, sweep
from fairlead.stack.cache import Entry
from fairlead.stack.context import Built, Context
from fairlead.stack.folder import write_json, write_lines
from fairlead.stack.identity import code_hash
from fairlead.stack.lazy import opened

if TYPE_CHECKING:
    from fairlead.methods.loop import Run, StepRecord

C = TypeVar("C", bound=Training)

KEPT = 3
"""States of other unfinished trainings that a cache keeps: each is weights and moments, some three times the model."""
KEPT_S = 14 * 86_400.0
"""How long one is kept after its training last wrote it, in seconds."""
USUAL_POLICY_LR = 1e-6
"""A usual learning rate of reinforcement learning at a billion parameters."""
STATES_EVERY = 10
"""Sets of fresh replies between two states on disk; what lies between is kept as replies and scores."""

ROOMS = ("engine", "methods", "models/render", "models/local", "models/tokens")
DATA_ROOMS = (
    *ROOMS,
    "judges",
    "constitution/prompts",
    "models/apprentice",
    "apprentice",
    "stack/prompts",
    "stack/stages",
)


def settled(method: str, config: C, ctx: Context) -> C:
    """The stage's settings with nothing left open: the run's seed, and a learning rate that fits the model's size."""
    update: dict[str, Any] = {"seed": ctx.seed}
    if "lr" not in config.model_fields_set:
        update["lr"] = learning_rate(method, ctx.source.parameters)
    if config.epochs is None and config.steps is None:
        update["epochs"] = 1.0
    return config.model_copy(update=update)


def learning_rate(method: str, parameters: int) -> float:
    """Where none is given: falls with the square root of the size, through the method's usual rate at a billion.

    A small model needs larger steps. Below a million parameters it rises no further.
    """
    return rate_by_size(METHODS[method].lr if method in METHODS else USUAL_POLICY_LR, parameters)


def rate_by_size(usual: float, parameters: int) -> float:
    """The same from the usual rate at a billion parameters."""
    return float(f"{usual * math.sqrt(1e9 / max(parameters, 1_000_000)):.1e}")


def trained(
    name: str,
    method: str,
    config: Training,
    data: Entry,
    below: Built,
    ctx: Context,
    train: Callable[[Any, Run], tuple[Any, Mapping[str, Any], tuple[StepRecord, ...], tuple[str, ...]]],
    *,
    into: str = "model",
    every: int = 50,
) -> tuple[Entry, dict[str, Any]]:
    """The cached result of one training run: `model/` (or what `into` says), `train.json`, `steps.jsonl`.

    `train(model, run)` returns the trained model or judge, facts, the record of each step, and warnings. A state is
    kept after every so many optimiser steps.
    """
    what = {
        "method": method,
        "config": config.model_dump(mode="json"),
        "data": data.key,
        "weights": below.identity,
        "code": code_hash(*ROOMS),
        **ctx.numerics,
    }

    def build(folder: Path) -> None:
        from fairlead.methods.loop import Run

        model = opened(below.model)
        unfinished = ctx.cache.root / "unfinished"
        sweep(unfinished)
        begun = False
        with at_work(unfinished) as still_here, ctx.voice.progress(f"{name}: training") as advance:

            def progress(record: StepRecord) -> None:
                nonlocal begun
                if record.step and not begun:  # an earlier run was stopped in the middle of this training
                    ctx.voice.say(f"{name}: going on after step {record.step:,} of {record.steps:,}")
                begun = True
                still_here()
                advance(record.step + 1, record.steps)

            # --fresh promises all work again: neither a state nor reference log-probs of an earlier run will do.
            known = None if ctx.cache.fresh else ctx.cache.root / "reference"
            run = Run(cache=known, checkpoint=unfinished, every=every, fresh=ctx.cache.fresh, progress=progress)
            made, facts, records, warnings = train(model, run)
        forget_old_states(unfinished, ctx.voice.say)
        made.save(folder / into)
        write_lines(folder / "steps.jsonl", (dataclasses.asdict(record) for record in records))
        write_json(
            folder / "train.json", {"config": config.model_dump(mode="json"), **facts, "warnings": list(warnings)}
        )

    entry = ctx.cache.make("weights", what, build)
    return entry, json.loads((entry.path / "train.json").read_bytes())


def forget_old_states(unfinished: Path, say: Callable[[str], None]) -> None:
    """Remove states of trainings with other settings that nobody went on with: all but the newest few, and old ones.

    Called when a training has finished, and its own state is gone. Nothing is removed while another process trains
    over the same cache, since a state may be its own; what is removed is said.
    """
    if others_at_work(unfinished):
        return
    states = sorted((age_of_state(state), state) for state in unfinished.glob("training-*"))
    for number, (seconds, state) in enumerate(states):
        if number >= KEPT or seconds > KEPT_S:
            shutil.rmtree(state, ignore_errors=True)
            say(
                f"cache: {state} removed, an unfinished training with other settings, last written "
                f"{seconds / 86_400:,.1f} days ago (the newest {KEPT} are kept, for {KEPT_S / 86_400:.0f} days)"
            )


def age_of_state(state: Path) -> float:
    """Seconds since anything in a training's folder of states was written."""
    return min(map(age, (state, *state.glob("step-*"))))


def require_weights(kind: str, name: str, below: Built, ctx: Context) -> None:
    """Refuse a training stage on a model that cannot be trained, and say what can be done instead."""
    if not below.plain:
        raise InputError(
            f"layer {name!r} ({kind}) trains weights, but {below.name!r} is a {below.kind} around a model; "
            "put the training layers first, or write `from:` with the layer to train"
        )
    if below.folder is None:
        raise InputError(
            f"layer {name!r} ({kind}) trains weights, and {ctx.source.spec} has none here; "
            "use --recipe managed (the constitution as a prompt, and a guard)"
        )
    if not ctx.source.trainable:
        raise InputError(
            f"layer {name!r} ({kind}) trains weights, which needs torch: pip install 'fairlead[train]'; "
            "without it use --recipe managed (the constitution as a prompt, and a guard)"
        )


class Clock:
    """Seconds of a stage: only what was computed now, for the report's times."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

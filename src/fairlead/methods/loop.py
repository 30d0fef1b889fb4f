"""The training loop that all gradient methods share: which rows make a step, and what a step does to the weights.

A method iterates over `batches(...)`, computes its loss for each and hands it to `Updates.step`. A step is a set of
rows fixed by the seed; how it is cut into micro-batches is a matter of memory alone. For this every `Batch` carries the
counts of its whole step, and a loss divides by those, so 1x4, 2x2 and 4x1 splits give equal gradients.

Dropout is off: the reference and the policy see the same network, and a run depends on nothing but its inputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fairlead.engine.layout import Tree, pack
from fairlead.errors import InputError
from fairlead.methods.config import Training
from fairlead.methods.rows import Rows, scored_tokens


class TrainingStopped(InputError):
    """Training met a loss or gradient that is not a number; the weights are as before that step (exit 2)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one step. `step_rows`, `step_tokens` count the whole step: losses divide by them."""

    step: int
    steps: int
    rows: tuple[int, ...]
    trees: tuple[Tree, ...]
    step_rows: int
    step_tokens: int
    last: bool


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimiser step did. `sums` are the method's own metrics, added up over its micro-batches."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    rows: int
    tokens: int
    seconds: float
    sums: Mapping[str, float] = field(default_factory=dict)

    def mean(self, name: str, over: str) -> float:
        """A metric per unit of a counted one; NaN where there was nothing to count."""
        count = self.sums.get(over, 0.0)
        return self.sums[name] / count if count else math.nan


@dataclass(frozen=True, slots=True)
class Run:
    """Where a training run keeps what it may reuse, and who hears of its progress.

    cache        folder for reference log-probs; None keeps nothing
    checkpoint   folder for one resumable state of this run, rewritten every `every` steps; None for none
    progress     called after each optimiser step
    """

    cache: Path | None = None
    checkpoint: Path | None = None
    every: int = 50
    progress: Callable[[StepRecord], None] | None = None


# ------------------------------------------------------------------------------------ which rows make a step


def step_rows(rows: Rows, config: Training) -> list[list[int]]:
    """The rows of every optimiser step, in order: shuffled epochs laid end to end and cut into steps.

    Every row is seen equally often (the last, unfinished epoch apart). A function of the seed and the trees' sizes.
    """
    count = len(rows.trees)
    generator = np.random.default_rng([config.seed, count])
    size = min(config.rows_per_step or (32 if config.tokens_per_step is None else count), count)
    wanted = math.ceil((config.epochs or 1.0) * count - 1e-9) if config.steps is None else None
    steps: list[list[int]] = []
    current: list[int] = []
    tokens = seen = 0
    while True:
        for row in generator.permutation(count).tolist():
            current.append(row)
            tokens += rows.trees[row].tokens
            seen += 1
            budget = config.tokens_per_step
            full = len(current) >= size or (budget is not None and tokens >= budget)
            if full or seen == wanted:
                steps.append(current)
                current, tokens = [], 0
            if seen == wanted or len(steps) == config.steps:
                return steps


def batches(rows: Rows, config: Training, *, start: int = 0) -> Iterator[Batch]:
    """The micro-batches of all steps from `start` on, each with the counts of its whole step."""
    for row, tree in enumerate(rows.trees):
        if tree.tokens > config.tokens_per_batch:
            raise InputError(
                f"{rows.place(row)}: {tree.tokens:,} tokens, but tokens_per_batch is {config.tokens_per_batch:,} and "
                f"a row is never split; raise tokens_per_batch to at least {tree.tokens:,}"
            )
    steps = step_rows(rows, config)
    for step, members in enumerate(steps[start:], start=start):
        trees = [rows.trees[row] for row in members]
        tokens = sum(map(scored_tokens, trees))
        groups = pack(trees, config.tokens_per_batch)
        for number, group in enumerate(groups, start=1):
            yield Batch(
                step=step,
                steps=len(steps),
                rows=tuple(members[i] for i in group),
                trees=tuple(trees[i] for i in group),
                step_rows=len(members),
                step_tokens=tokens,
                last=number == len(groups),
            )


# -------------------------------------------------------------------------------------- what a step does


def learning_rate(config: Training, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: warmup, then the schedule; never 0 inside the run."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    left = (steps - step) / max(steps - warm, 1)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[config.schedule]
    return config.lr * shape


class Updates:
    """The optimiser and its records. `step` takes the loss of each micro-batch and updates after a step's last one."""

    def __init__(self, module: torch.nn.Module, rows: Rows, config: Training, run: Run) -> None:
        self.module, self.rows, self.config, self.run = module, rows, config, run
        self.records: list[StepRecord] = []
        self.after_step: Callable[[], None] | None = None
        self.settled = True  # False while a step is under way
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        # Decay pulls weights to zero; norms and biases have no reason to be there.
        decayed = [p for p in self.parameters.values() if p.ndim >= 2]
        others = [p for p in self.parameters.values() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=config.betas,
            fused=True,
        )
        module.eval()
        self._start()

    def _start(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self._loss = 0.0
        self._sums: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def done(self) -> int:
        """Optimiser steps taken."""
        return len(self.records)

    def step(self, loss: torch.Tensor, batch: Batch, sums: Mapping[str, float] | None = None) -> None:
        """Add one micro-batch's gradient; after the last of a step, clip, check and update.

        `loss` is a scalar already divided by the step's counts. Raises `TrainingStopped` where the loss or the
        gradient is not a number, before any weight changes.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._stopped(f"the loss is {value}", batch.step, batch.rows)
        loss.backward()  # type: ignore[no-untyped-call]
        self._loss += value
        for name, amount in (sums or {}).items():
            self._sums[name] = self._sums.get(name, 0.0) + amount
        if batch.last:
            self._update(batch)

    def _update(self, batch: Batch) -> None:
        limit = self.config.grad_clip if self.config.grad_clip is not None else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), limit))
        if not math.isfinite(norm):
            members = step_rows(self.rows, self.config)[batch.step]
            raise self._stopped(f"the gradient's norm is {norm}", batch.step, members)
        lr = learning_rate(self.config, batch.step, batch.steps)
        self.settled = False
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        seconds = time.perf_counter() - self._began
        record = StepRecord(
            batch.step, batch.steps, self._loss, norm, lr, batch.step_rows, batch.step_tokens, seconds, self._sums
        )
        self.records.append(record)
        self.settled = True
        self._start()
        # Saved first, told after: whoever stops the run from its progress callback loses nothing.
        if self.after_step is not None:
            self.after_step()
        if self.run.progress is not None:
            self.run.progress(record)

    def _stopped(self, what: str, step: int, rows: Sequence[int]) -> TrainingStopped:
        shown = ", ".join(self.rows.place(row) for row in rows[:8]) + (", …" if len(rows) > 8 else "")
        earlier = self.records[-1] if self.records else None
        before = (
            f"; the step before had loss {earlier.loss:.4g}, gradient norm {earlier.grad_norm:.4g}" if earlier else ""
        )
        return TrainingStopped(
            f"training stopped at step {step + 1}: {what}, on {len(rows)} rows ({shown}){before}. "
            "Lower lr, lengthen warmup, or look at these rows"
        )

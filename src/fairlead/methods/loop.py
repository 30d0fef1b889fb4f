"""The training loop that all gradient methods share: which rows make a step, and what a step does to the weights.

A method iterates over `batches(...)`, computes its loss for each and hands it to `Updates.step`. A step is a set of
rows fixed by the seed; how it is cut into micro-batches is a matter of memory alone. For this every `Batch` carries the
counts of its whole step, and a loss divides by those, so 1x4, 2x2 and 4x1 splits give equal gradients.

Under torchrun the same functions run on every process: `batches` gives each its own part of a step, `Updates` adds up
what they found, and process 0 alone tells, logs and writes (engine/parallel.py, docs/distributed.md).

Dropout is off: the reference and the policy see the same network, and a run depends on nothing but its inputs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fairlead.engine import parallel
from fairlead.engine.checkpoint import atomic_write
from fairlead.engine.layout import Tree
from fairlead.errors import InputError
from fairlead.methods.anomalies import Alarm, gradient_spike, loss_rising, loss_spike
from fairlead.methods.balance import Balance
from fairlead.methods.config import Training
from fairlead.methods.loggers import Logger
from fairlead.methods.optimiser import groups_of, learning_rate, parts_of
from fairlead.methods.rows import Rows, scored_tokens

log = logging.getLogger(__name__)


class TrainingStopped(InputError):
    """Training met a loss or gradient that is no number, or a spike; the weights are as before that step (exit 2)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one step. `step_rows`, `step_tokens` count the whole step: losses divide by them.

    `rows` are this micro-batch's, `members` the whole step's.

    Every process gets the same number of micro-batches in a step. `weight` is 0 for one that only fills in: its rows
    belong to another micro-batch too, its loss counts for nothing (`Updates.step` sees to both), and statistics that
    a method adds up over the step by itself must leave it out.
    """

    step: int
    steps: int
    rows: tuple[int, ...]
    trees: tuple[Tree, ...]
    step_rows: int
    step_tokens: int
    last: bool
    weight: float = 1.0
    members: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimiser step did.

    `sums` are the method's own metrics, added up over its micro-batches; `told` what it says of the step as it stands.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    rows: int
    tokens: int
    seconds: float
    sums: Mapping[str, float] = field(default_factory=dict)
    told: Mapping[str, float] = field(default_factory=dict)

    def mean(self, name: str, over: str) -> float:
        """A metric per unit of a counted one; NaN where there was nothing to count."""
        count = self.sums.get(over, 0.0)
        return self.sums[name] / count if count else math.nan

    def metrics(self) -> dict[str, float]:
        """What loggers are told: the record's own numbers, the method's sums per row of the step, and its `told`."""
        own = {"loss": self.loss, "grad_norm": self.grad_norm, "lr": self.lr, "rows": self.rows, "tokens": self.tokens}
        speed = {"seconds": self.seconds, "tokens_per_second": self.tokens / max(self.seconds, 1e-9)}
        return own | speed | {name: total / self.rows for name, total in self.sums.items()} | dict(self.told)


@dataclass(frozen=True, slots=True)
class Run:
    """Where a training run keeps what it may reuse, and who hears of its progress.

    cache        folder for reference log-probs; None keeps nothing
    checkpoint   folder for resumable states of this run, one every `every` steps, the last two kept; None for none
    fresh        begin anew, whatever state the checkpoint folder holds of this run
    progress     called after each optimiser step
    loggers      told after each optimiser step (loggers.py); closed when the run ends

    Under torchrun the folders lie where all processes see them, and process 0 alone calls progress and loggers.
    """

    cache: Path | None = None
    checkpoint: Path | None = None
    every: int = 50
    fresh: bool = False
    progress: Callable[[StepRecord], None] | None = None
    loggers: Sequence[Logger] = ()


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
    """This process's micro-batches of all steps from `start` on, each with the counts of its whole step."""
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
        dealt = parallel.deal(trees, config.tokens_per_batch)
        for number, (group, weight) in enumerate(dealt, start=1):
            yield Batch(
                step=step,
                steps=len(steps),
                rows=tuple(members[i] for i in group),
                trees=tuple(trees[i] for i in group),
                step_rows=len(members),
                step_tokens=tokens,
                last=number == len(dealt),
                weight=weight,
                members=tuple(members),
            )


# -------------------------------------------------------------------------------------- what a step does


class Updates:
    """The optimiser and its records. `step` takes the loss of each micro-batch and updates after a step's last one.

    rows      what a stop names rows by; a method whose rows change from step to step sets them anew
    parts     parts of the module that learn at rates of their own and are clipped apart: the beginnings of their
              parameters' names, and what multiplies the learning rate
    extra     what else a method carries from step to step (a running mean, say), as numbers: each process's own are
              saved and restored with the weights
    tensors   the same, as tensors that are equal on all processes
    good      weights to go back to, by the parameter's name; of split ones this process's part
    held      the same of weights of which nobody knows yet whether they are good
    told      what the next record says of its step; taken by it
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rows: Rows,
        config: Training,
        run: Run,
        *,
        parts: Mapping[str, float] | None = None,
    ) -> None:
        self.module, self.rows, self.config, self.run = module, rows, config, run
        self.records: list[StepRecord] = []
        self.extra: dict[str, float] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.good: dict[str, torch.Tensor] = {}
        self.held: dict[str, torch.Tensor] = {}
        self.told: dict[str, float] = {}
        self.key = ""  # names this run's files; set by resume.resumable
        self.watch: Callable[[Sequence[StepRecord]], Sequence[Alarm]] | None = None  # a method's own alarms so far
        self._alarmed: set[str] = set()
        self.on_update: Callable[[], None] | None = None  # what a method moves along with the weights, before the save
        self.after_step: Callable[[], None] | None = None
        self.settled = True  # False while a step is under way
        self.world = parallel.world()
        self.split = config.shard and self.world.size > 1
        if config.shard and not self.split:
            log.info("shard: there is one process, so nothing is split")
        parallel.share_weights(module)
        if self.split:
            from fairlead.engine import sharded  # loads FSDP2, which a run without it does without

            try:
                sharded.shard(module)
            except ValueError as error:
                raise InputError(f"shard: {error}") from error
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.parts = parts_of(self.parameters, parts or {})
        groups = [
            group | {"rate": rate}
            for rate, members in self.parts
            for group in groups_of(list(members), config.weight_decay)
        ]
        self.balance = Balance(module, config.router_loss)
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        module.eval()
        self._start()

    def _start(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self._loss = 0.0
        self._sums: dict[str, float] = {}
        self._count = 0
        self._bad = 0  # number of the first micro-batch of this step whose loss was not a number, from 1
        self._began = time.perf_counter()

    @property
    def done(self) -> int:
        """Optimiser steps taken."""
        return len(self.records)

    def step(self, loss: torch.Tensor, batch: Batch, sums: Mapping[str, float] | None = None) -> None:
        """Add one micro-batch's gradient; after the last of a step, clip, check and update.

        `loss` is a scalar already divided by the step's counts; `sums` are the same names for every micro-batch.
        Raises `TrainingStopped` where the loss or the gradient is not a number, before any weight changes, with the
        batch saved in the checkpoint folder.
        """
        self._count += 1
        routers = self.balance.loss(batch, self.rows, self.config.tokens_per_batch) if self.balance else None
        if routers is not None:
            loss = loss + routers
            sums = {**(sums or {}), "router_loss": float(routers.detach()) * batch.step_rows}  # metrics are per row
        value = float(loss.detach())
        if not math.isfinite(value):
            if self.world.size == 1:
                raise self._stopped(f"the loss is {value}", batch.step, batch.rows)
            self._bad = self._bad or self._count  # the others must hear of it, at the step's end
        (loss if batch.weight == 1.0 else loss * batch.weight).backward()  # type: ignore[no-untyped-call]
        self._loss += value * batch.weight
        for name, amount in (sums or {}).items():
            self._sums[name] = self._sums.get(name, 0.0) + amount * batch.weight
        if batch.last:
            self._update(batch)

    def remember(self) -> None:
        """Keep the weights as they are now, to go back to: a copy on the CPU."""
        self._copy_to(self.good)

    def hold(self) -> None:
        """Keep them beside until it is known whether they are good: `vouch` makes what is held that to go back to."""
        self._copy_to(self.held)

    def vouch(self) -> None:
        """What was held is good."""
        self.good, self.held = self.held, self.good

    def _copy_to(self, kept: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            now = parallel.local(parameter).detach()
            if name in kept:
                kept[name].copy_(now)
            else:
                kept[name] = now.cpu().clone()

    def put_back(self) -> bool:
        """Go back to the weights that `remember` kept; False where there are none."""
        if self.good.keys() != self.parameters.keys():
            return False
        if self.split:
            from fairlead.engine import sharded

            sharded.settle(self.module)  # what a pass has gathered is of the weights before
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parallel.local(parameter).copy_(self.good[name])
        return True

    def _update(self, batch: Batch) -> None:
        if self.world.size > 1:
            self._add_up(batch)
        limit = self.config.grad_clip if self.config.grad_clip is not None else math.inf
        norm = math.hypot(*(parallel.clip_gradients(members, limit) for _, members in self.parts))
        if not math.isfinite(norm):
            raise self._stopped(f"the gradient's norm is {norm}", batch.step, batch.members)
        config, alike = self.config, self.config.rows_alike
        spike = gradient_spike(norm, self.records, config.spike)
        if spike := spike or loss_spike(self._loss, batch.step_rows, self.records, config.loss_spike, alike=alike):
            raise self._stopped(spike, batch.step, batch.members)
        lr = learning_rate(self.config, batch.step, batch.steps)
        self.settled = False
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["rate"]
        self.optimiser.step()
        seconds = time.perf_counter() - self._began
        record = StepRecord(
            batch.step, batch.steps, self._loss, norm, lr, batch.step_rows, batch.step_tokens, seconds, self._sums,
            self.told,
        )  # fmt: skip
        self.told = {}
        self.records.append(record)
        if self.on_update is not None:
            self.on_update()
        self._watch()
        self.settled = True
        self._start()
        # Saved first, told after: whoever stops the run from its progress callback loses nothing.
        if self.after_step is not None:
            self.after_step()
        if self.world.rank == 0:
            for logger in self.run.loggers:
                logger.log(record.step + 1, record.metrics())
            if self.run.progress is not None:
                self.run.progress(record)

    def _watch(self) -> None:
        """Say each alarm once, at the step that first shows it; what the method returns says how it went on."""
        found = loss_rising(self.records, alike=self.config.rows_alike) if self.config.loss_is_progress else ()
        for alarm in (*found, *(self.watch(self.records) if self.watch is not None else ())):
            if alarm.name not in self._alarmed and self.world.rank == 0:
                log.warning("step %d of %d: %s: %s", alarm.step, self.records[-1].steps, alarm.name, alarm.message)
            self._alarmed.add(alarm.name)

    def _add_up(self, batch: Batch) -> None:
        """Over the processes: the loss, the sums, the gradients. Stops all where one met a loss that is no number."""
        names = sorted(self._sums)
        bad = [0.0] * self.world.size
        bad[self.world.rank] = float(self._bad)
        own = torch.tensor([self._loss, *(self._sums[name] for name in names), *bad], dtype=torch.float64)
        self._loss, *rest = parallel.total(own).tolist()
        self._sums = dict(zip(names, rest[: len(names)], strict=True))
        for rank, number in enumerate(rest[len(names) :]):
            if number:
                trees = [self.rows.trees[row] for row in batch.members]
                group, _ = parallel.deal(trees, self.config.tokens_per_batch, rank)[int(number) - 1]
                raise self._stopped(f"the loss is {self._loss}", batch.step, [batch.members[i] for i in group])
        # FSDP2 has added up split gradients already, micro-batch by micro-batch.
        parallel.add_gradients([p for p in self.parameters.values() if not parallel.is_split(p)])

    def finish(self) -> None:
        """After the last step: all weights are whole again on every process, and the optimiser's state goes."""
        self.optimiser.zero_grad(set_to_none=True)
        self.optimiser.state.clear()
        if self.split:
            from fairlead.engine import sharded

            sharded.whole(self.module)

    def _stopped(self, what: str, step: int, rows: Sequence[int]) -> TrainingStopped:
        shown = ", ".join(self.rows.place(row) for row in rows[:8]) + (", …" if len(rows) > 8 else "")
        earlier = self.records[-1] if self.records else None
        before = (
            f"; the step before had loss {earlier.loss:.4g}, gradient norm {earlier.grad_norm:.4g}" if earlier else ""
        )
        return TrainingStopped(
            f"training stopped at step {step + 1}: {what}, on {len(rows)} rows ({shown}){before}. "
            f"{self._keep(what, step, rows)}. Lower lr, lengthen warmup, or look at these rows"
        )

    def _keep(self, what: str, step: int, rows: Sequence[int]) -> str:
        """Save the rows that stopped the run, as the model read them; says where, or why not."""
        if self.run.checkpoint is None:
            return "No checkpoint folder is given, so the batch is not saved"
        file = self.run.checkpoint / f"stopped-{self.key or 'run'}-step-{step + 1}.json"
        kept = [{"row": row, "place": self.rows.place(row), **dataclasses.asdict(self.rows.trees[row])} for row in rows]
        about = {"step": step + 1, "what": what, "rows": kept, "before": [r.metrics() for r in self.records[-8:]]}
        if self.world.rank == 0:
            try:
                atomic_write(file, json.dumps(about, indent=1))
            except OSError as error:
                return f"The batch could not be saved ({error})"
        return f"The batch is saved in {file}"

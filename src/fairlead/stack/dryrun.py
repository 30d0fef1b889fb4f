"""What a training would take, before it is begun: rows, tokens, steps, memory, and time from a few tried steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairlead.stack.memory import footprint, peak_resident
from fairlead.stack.single import Job, Order, open_job, train_job
from fairlead.stack.voice import Voice

if TYPE_CHECKING:
    from fairlead.methods.config import Training
    from fairlead.methods.rows import Rows

SCORED_ROWS = 2_000  # of comparisons, about as many are read again at the end: to calibrate on, to bring on one scale
TRIED_STEPS = 3  # the fastest counts, since the first one pays for warming up
TRIED_MEMBERS = 2  # of an ensemble, which has no fewer


def estimate_stage(order: Order, voice: Voice) -> dict[str, Any]:
    """Rows, tokens and steps of a training, its memory and its time; nothing is written.

    A few steps are taken on the rows of the first steps alone, so that a method that reads a reference does not pass
    over all rows first. What it did beside these steps is scaled up to all rows.
    """
    from fairlead.methods.loop import step_rows

    job = open_job(order, voice)
    job, identical = _distinct(job)
    rows = _trees(job)
    steps = step_rows(rows, job.config)
    tried = _tried(job, rows, steps)
    began = time.perf_counter()
    made = train_job(tried, voice)
    total = time.perf_counter() - began
    each = min(record.seconds for record in made.records)
    beside = max(0.0, total - sum(record.seconds for record in made.records))
    members = getattr(job.config, "members", 1)
    at_once = min(job.config.tokens_per_batch, max(sum(rows.trees[row].tokens for row in step) for step in steps))
    memory = footprint(job.model.module, at_once, trained=adapted(job.model.module, job.config))
    # Finished members stay, and a reference that moves is weights of its own; so is the mean that one of them follows.
    pace = job.config.reference_pace
    moving = 0 if pace is None or job.config.lora is not None else 1 + (pace.bias is not None)
    more = members - 1 + moving
    copies = sum(p.numel() * p.element_size() for p in job.model.module.parameters()) * more
    memory = dataclasses.replace(memory, weights=memory.weights + copies)
    return {
        "method": order.name,
        "rows": len(rows.trees),
        "identical": identical,
        "skipped_too_long": rows.skipped_too_long,
        "cut": rows.cut,
        "tokens": sum(tree.tokens for tree in rows.trees),
        "tokens_trained": sum(rows.trees[row].tokens for step in steps for row in step),
        "longest_row": max(tree.tokens for tree in rows.trees),
        "steps": len(steps) * members,
        "seconds_per_step": each,
        "about_seconds": (each * len(steps) + beside * _longer_beside(job, len(rows.trees), len(tried.rows))) * members,
        "memory": {**dataclasses.asdict(memory), "total": memory.total},
        "peak_bytes": peak_resident(),
        "config": job.config.model_dump(mode="json"),
    }


def _longer_beside(job: Job, rows: int, tried: int) -> float:
    """How much longer than tried, for each member of it, a training takes beside its steps."""
    members = getattr(job.config, "members", 1)
    if job.method.data == "comparisons":
        return max(1.0, min(rows, SCORED_ROWS) / tried) / min(members, TRIED_MEMBERS)
    passes = getattr(job.config, "needs_reference", job.method.data == "rated")  # over all rows, outside of the steps
    return rows / tried if passes else 1.0


def _distinct(job: Job) -> tuple[Job, int]:
    """The job without pairs of identical replies, where its settings leave them out, and how many there are."""
    config: Any = job.config
    kept: Sequence[Any]
    if job.method.data in ("pairs", "triples"):
        from fairlead.methods.preference import without_identical

        kept, places, identical = without_identical(job.rows, job.places, config)
    elif job.method.data == "comparisons":
        from fairlead.methods import reward

        kept, places, identical = reward.without_identical(job.rows, job.places)
    else:
        return job, 0
    return dataclasses.replace(job, rows=kept, places=places), identical


def adapted(module: Any, config: Training) -> int | None:
    """How many of a module's parameters are trained where not all are: those of adapters."""
    if config.lora is None:
        return None
    from fairlead.methods.adapters import trainable_copy

    copied = trainable_copy(module, config)
    return sum(int(p.numel()) for p in copied.parameters() if p.requires_grad)


def _trees(job: Job) -> Rows:
    from fairlead.methods import rows

    if job.method.data == "steps":
        from fairlead.methods.process import stepped_rows

        config: Any = job.config
        return stepped_rows(job.model, job.rows, config.separator, too_long=config.too_long, places=job.places)[0]
    make: Any = {
        "exchanges": rows.exchange_rows,
        "pairs": rows.pair_rows,
        "triples": rows.triple_rows,
        "rated": rows.rated_rows,
        "comparisons": rows.compared_rows,
    }[job.method.data]
    made: Rows = make(job.model, job.rows, too_long=job.config.too_long, places=job.places)
    return made


def _tried(job: Job, rows: Rows, steps: Sequence[Sequence[int]]) -> Job:
    """The same training on the rows of its first steps, without replies drawn at the end."""
    wanted = sorted({rows.source[row] for step in steps[:TRIED_STEPS] for row in step})
    if job.method.data == "rated":  # it learns from good and bad replies, and a few rows may hold one kind alone
        wanted += [i for i in (_missing(job, rows, wanted, good) for good in (True, False)) if i is not None]
    update: dict[str, Any] = {"steps": min(TRIED_STEPS, len(steps)), "epochs": None}
    if "kl_samples" in type(job.config).model_fields:
        update["kl_samples"] = 0
    if "members" in type(job.config).model_fields:
        update["members"] = TRIED_MEMBERS
    return dataclasses.replace(
        job,
        rows=[job.rows[i] for i in wanted],
        places=[job.places[i] for i in wanted],
        config=job.config.model_copy(update=update),
    )


def _missing(job: Job, rows: Rows, wanted: Sequence[int], good: bool) -> int | None:
    """A row of this kind, where those wanted hold none and there is one."""
    if any(job.rows[i].good is good for i in wanted):
        return None
    return next((i for i in rows.source if job.rows[i].good is good), None)

"""One training stage alone, outside a stack: what `fairlead train` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.feedback.formats import (
    read_comparisons,
    read_demonstrations,
    read_preferences,
    read_rated,
    read_steps,
    read_triples,
)
from fairlead.methods.catalogue import METHODS, Method
from fairlead.methods.config import Training
from fairlead.methods.loggers import Logger
from fairlead.stack.alone import followed, left_in, loggers_of, make_way, opened_to_train, settled, trainable
from fairlead.stack.outcome import facts_of, warnings_of
from fairlead.stack.read import validated_settings
from fairlead.stack.voice import Voice

READERS: Mapping[str, Callable[..., Any]] = {
    "exchanges": read_demonstrations,
    "pairs": read_preferences,
    "triples": read_triples,
    "rated": read_rated,
    "comparisons": read_comparisons,
    "steps": read_steps,
}


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained: the method's name, the model, the data file, settings, and how both are read and run."""

    name: str
    spec: str
    data: Path
    settings: Mapping[str, Any]
    seed: int = 0
    skip_bad_rows: bool = False
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A training with nothing left open: the method, the model it starts from, its rows, and its settings."""

    name: str
    method: Method
    model: Any
    rows: Sequence[Any]
    places: Sequence[str]
    config: Training


def train_stage(order: Order, out: Path, voice: Voice, log: Sequence[str] = ()) -> dict[str, Any]:
    """Train and write a model folder that `AutoModelForCausalLM` loads; returns what `train.json` in it says.

    A reward method leaves a judge's folder, for `judges.reward_ensemble.open_reward_folder`. A training that is stopped
    keeps its state in `OUT.unfinished`, and the same call goes on from there. Of LoRA the folder holds the merged
    model, and the adapter by itself under `adapter/`. `log` names loggers (`loggers_of`).
    """
    loggers = loggers_of(log)
    make_way(out)
    job = open_job(order, voice)

    def make(unfinished: Path) -> tuple[Any, dict[str, Any]]:
        made = train_job(job, voice, unfinished, loggers)
        return made, {
            "method": order.name, "model": order.spec, "data": str(order.data),
            "config": job.config.model_dump(mode="json"), **facts_of(made), "warnings": warnings_of(made, job.config),
        }  # fmt: skip

    return left_in(out, make)


def open_job(order: Order, voice: Voice) -> Job:
    """The model, the rows and the settled configuration; the cheap checks come first."""
    method = METHODS[order.name]
    config = validated_settings(method.config, {**method.defaults, **order.settings})
    source = trainable(order.spec)
    rows = READERS[method.data](order.data, skip_bad_rows=order.skip_bad_rows)
    for line in rows.report.lines():
        voice.say(line)
    model = opened_to_train(source, order.threads)
    return Job(order.name, method, model, rows.rows, rows.places, settled(config, order.seed, method.lr, source))


def train_job(job: Job, voice: Voice, checkpoint: Path | None = None, loggers: Sequence[Logger] = ()) -> Any:
    """What the method's train function returns: the model, the record of each step, counts and alarms."""
    from fairlead.methods.loop import Run

    with followed(voice, job.name) as progress:
        run = Run(checkpoint=checkpoint, progress=progress, loggers=loggers)
        return job.method.train(job.model, job.rows, job.config, run, places=job.places)

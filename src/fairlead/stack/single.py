"""One training stage alone, outside a stack: what `fairlead train` does."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.errors import InputError, MissingResource
from fairlead.feedback.formats import (
    read_comparisons,
    read_demonstrations,
    read_preferences,
    read_rated,
    read_steps,
)
from fairlead.methods.catalogue import METHODS, Method
from fairlead.methods.config import Training
from fairlead.methods.loggers import JsonLines, Logger, TensorBoard, trackio, wandb
from fairlead.stack.atomic import plain_disk_errors, sweep, whole_folder
from fairlead.stack.context import settle_torch
from fairlead.stack.folder import write_json, write_lines
from fairlead.stack.identity import cores
from fairlead.stack.outcome import facts_of, warnings_of
from fairlead.stack.read import validated_settings
from fairlead.stack.source import locate, torch_installed
from fairlead.stack.stages.train import learning_rate
from fairlead.stack.voice import Voice

if TYPE_CHECKING:
    from fairlead.methods.loop import StepRecord

READERS: Mapping[str, Callable[..., Any]] = {
    "exchanges": read_demonstrations,
    "pairs": read_preferences,
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
    unfinished = out.with_name(f"{out.name}.unfinished")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; give a new folder with --out")
    if out.is_dir():
        out.rmdir()
    job = open_job(order, voice)
    began = time.perf_counter()
    from fairlead.engine import parallel

    first = parallel.first()
    with plain_disk_errors(out):
        if first:
            sweep(out.parent)
        with whole_folder(out) if first else nullcontext() as own:
            folder = Path(parallel.texts(str(own))[0])  # under torchrun all know the folder that process 0 fills
            made = train_job(job, voice, unfinished, loggers)
            made.model.save(folder)
            report = {
                "method": order.name, "model": order.spec, "data": str(order.data),
                "config": job.config.model_dump(mode="json"), **facts_of(made),
                "warnings": warnings_of(made), "seconds": round(time.perf_counter() - began, 2),
            }  # fmt: skip
            if first:
                adapter = getattr(made, "adapter", None) or getattr(made.model, "adapter", None)  # a judge has its own
                if adapter is not None:
                    from fairlead.engine.adapters import save_adapter

                    save_adapter(adapter, folder / "adapter")
                write_json(folder / "train.json", report)
                write_lines(folder / "steps.jsonl", (dataclasses.asdict(record) for record in made.records))
    parallel.wait()  # the folder has its name when any process goes on
    shutil.rmtree(unfinished, ignore_errors=True)
    return report


def open_job(order: Order, voice: Voice) -> Job:
    """The model, the rows and the settled configuration; the cheap checks come first."""
    method = METHODS[order.name]
    config = validated_settings(method.config, {**method.defaults, **order.settings})
    source = locate(order.spec)
    if source.folder is None:
        raise InputError(f"{order.spec}: has no weights here to train; training needs a model folder or a hub name")
    if not torch_installed():
        raise MissingResource("training needs torch: pip install 'fairlead[train]'")
    rows = READERS[method.data](order.data, skip_bad_rows=order.skip_bad_rows)
    for line in rows.report.lines():
        voice.say(line)
    update: dict[str, Any] = {"seed": order.seed}
    if "lr" not in config.model_fields_set:
        update["lr"] = learning_rate(order.name, source.parameters)
    if config.epochs is None and config.steps is None:
        update["epochs"] = 1.0
    from fairlead.models import open_model

    settle_torch(order.threads or cores())
    model = open_model("apprentice" if order.spec == "apprentice" else str(source.folder.resolve()))
    return Job(order.name, method, model, rows.rows, rows.places, config.model_copy(update=update))


def train_job(job: Job, voice: Voice, checkpoint: Path | None = None, loggers: Sequence[Logger] = ()) -> Any:
    """What the method's train function returns: the model, the record of each step, counts and alarms."""
    from fairlead.methods.loop import Run

    begun = False
    with voice.progress(f"{job.name}: training") as advance:

        def progress(record: StepRecord) -> None:
            nonlocal begun
            if record.step and not begun:  # an earlier run of this training was stopped in the middle
                voice.say(f"going on after step {record.step:,} of {record.steps:,}")
            begun = True
            advance(record.step + 1, record.steps)

        run = Run(checkpoint=checkpoint, progress=progress, loggers=loggers)
        return job.method.train(job.model, job.rows, job.config, run, places=job.places)


LOGGERS: Mapping[str, Callable[[str], Logger]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": wandb,
    "trackio": trackio,
}


def loggers_of(specs: Sequence[str]) -> list[Logger]:
    """From `jsonl:FILE`, `tensorboard:FOLDER`, `wandb:PROJECT` and `trackio:PROJECT`.

    Raises InputError for other words, and MissingResource where what they name is not installed.
    """
    made = []
    for spec in specs:
        kind, _, where = spec.partition(":")
        if kind not in LOGGERS or not where:
            raise InputError(f"--log {spec}: write jsonl:FILE, tensorboard:FOLDER, wandb:PROJECT or trackio:PROJECT")
        made.append(LOGGERS[kind](where))
    return made

"""What every training outside a stack shares: the model it starts from, progress, loggers, and the folder it leaves."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fairlead.errors import InputError, MissingResource
from fairlead.methods.config import Training
from fairlead.methods.loggers import JsonLines, Logger, TensorBoard, trackio, wandb
from fairlead.stack.atomic import plain_disk_errors, sweep, whole_folder
from fairlead.stack.context import settle_torch
from fairlead.stack.folder import write_json, write_lines
from fairlead.stack.identity import cores
from fairlead.stack.source import Source, locate, torch_installed
from fairlead.stack.stages.train import rate_by_size
from fairlead.stack.voice import Voice

if TYPE_CHECKING:
    from fairlead.methods.loop import StepRecord

C = TypeVar("C", bound=Training)


def trainable(spec: str) -> Source:
    """Where a model's weights lie. Raises InputError for one without, MissingResource where torch is missing."""
    source = locate(spec)
    if source.folder is None:
        if spec.startswith("together/"):
            raise InputError(f"{spec}: together trains `sft` and `dpo` alone; other methods need the weights")
        raise InputError(f"{spec}: has no weights here to train; training needs a model folder or a hub name")
    if not torch_installed():
        raise MissingResource("training needs torch: pip install 'fairlead[train]'")
    return source


def opened_to_train(source: Source, threads: int | None) -> Any:
    """The model, with torch set to so many threads (all cores by default)."""
    from fairlead.models import open_model

    assert source.folder is not None
    settle_torch(threads or cores())
    return open_model("apprentice" if source.spec == "apprentice" else str(source.folder.resolve()))


def settled(config: C, seed: int, usual_lr: float, source: Source) -> C:
    """The settings with nothing left open: the seed, a learning rate by the model's size, one epoch."""
    update: dict[str, Any] = {"seed": seed}
    if "lr" not in config.model_fields_set:
        update["lr"] = rate_by_size(usual_lr, source.parameters)
    if config.epochs is None and config.steps is None:
        update["epochs"] = 1.0
    return config.model_copy(update=update)


@contextmanager
def followed(voice: Voice, name: str) -> Iterator[Callable[[StepRecord], None]]:
    """Progress to call with each optimiser step's record; says so where an earlier run is gone on from."""
    begun = False
    with voice.progress(f"{name}: training") as advance:

        def progress(record: StepRecord) -> None:
            nonlocal begun
            if record.step and not begun:  # an earlier run of this training was stopped in the middle
                voice.say(f"going on after step {record.step:,} of {record.steps:,}")
            begun = True
            advance(record.step + 1, record.steps)

        yield progress


def make_way(out: Path) -> None:
    """Raises InputError where something lies at `out`; an empty folder there goes."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; give a new folder with --out")
    if out.is_dir():
        out.rmdir()


def left_in(out: Path, make: Callable[[Path], tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """Train, and leave a folder that is whole or absent; returns what `train.json` in it says.

    `make` takes the folder where a training keeps its state until it is done (`OUT.unfinished`), and gives what came of
    it, with a `model`, `records` and perhaps an `adapter` and a `critic` (a folder each), and what is to be said of it.
    """
    unfinished = out.with_name(f"{out.name}.unfinished")
    began = time.perf_counter()
    from fairlead.engine import parallel

    first = parallel.first()
    with plain_disk_errors(out):
        if first:
            sweep(out.parent)
        with whole_folder(out) if first else nullcontext() as own:
            folder = Path(parallel.texts(str(own))[0])  # under torchrun all know the folder that process 0 fills
            made, report = make(unfinished)
            made.model.save(folder)
            critic = getattr(made, "critic", None)  # of reinforcement learning with a value function
            if critic is not None:
                critic.save(folder / "critic")
            report = report | {"seconds": round(time.perf_counter() - began, 2)}
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

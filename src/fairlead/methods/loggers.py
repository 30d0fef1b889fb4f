"""Where a training run's numbers go: JSON lines always, TensorBoard, Weights & Biases and Trackio where installed.

A logger is anything with `log` and `close`; give as many as you like to `Run(loggers=...)`. All open on the first
`log`, so that under torchrun only the process that logs opens anything. Needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from fairlead.errors import MissingResource


class Logger(Protocol):
    """Takes the numbers of each optimiser step. `step` counts steps done, from 1, and goes back when a run resumes."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object per step in a file. A number that is not finite is null.

    A run that resumes, or starts again on the same file, takes back the lines of the steps it does again.
    """

    def __init__(self, file: Path | str) -> None:
        self.file = Path(file)
        self._open: IO[str] | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._open is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._open = self.file.open("a+", encoding="utf-8")
            self._open.truncate(self._kept(self._open, step))
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._open.write(json.dumps({"step": step, **numbers}) + "\n")
        self._open.flush()

    @staticmethod
    def _kept(lines: IO[str], step: int) -> int:
        """Bytes of the lines before `step`; a line that a kill cut short ends them."""
        lines.seek(0)
        kept = 0
        for line in lines:
            try:
                if not line.endswith("\n") or json.loads(line)["step"] >= step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept += len(line.encode())
        return kept

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class TensorBoard:
    """Scalars in a TensorBoard folder. Raises MissingResource where tensorboard is not installed."""

    def __init__(self, folder: Path | str) -> None:
        _require("tensorboard")
        self.folder = Path(folder)
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            board = importlib.import_module("torch.utils.tensorboard")
            self._writer = board.SummaryWriter(str(self.folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Tracker:
    """Weights & Biases or Trackio, which share their interface. Raises MissingResource where it is not installed.

    `settings` go to its `init`: project, name, and whatever else it takes.
    """

    def __init__(self, package: str, project: str, **settings: Any) -> None:
        _require(package)
        self.package, self.settings = package, {"project": project, **settings}
        self._run: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = importlib.import_module(self.package).init(**self.settings)
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


def wandb(project: str, **settings: Any) -> Logger:
    """Weights & Biases."""
    return Tracker("wandb", project, **settings)


def trackio(project: str, **settings: Any) -> Logger:
    """Trackio."""
    return Tracker("trackio", project, **settings)


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingResource(f"{package} is not installed: pip install {package}, or log to a file (jsonl:FILE)")

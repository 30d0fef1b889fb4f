"""Loggers: the file that is always there, and the packages that may be."""

from __future__ import annotations

import json
import math
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import MissingResource
from fairlead.methods import loggers


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_json_lines_one_per_step(tmp_path: Path) -> None:
    file = tmp_path / "new" / "log.jsonl"
    log = loggers.JsonLines(file)
    assert not file.exists(), "nothing is opened before there is something to log"
    log.log(1, {"loss": 0.1 + 0.2, "lr": 1e-5})
    assert lines(file) == [{"step": 1, "loss": 0.1 + 0.2, "lr": 1e-5}], "readable while the run goes on"
    log.log(2, {"loss": math.nan, "lr": math.inf})
    log.close()
    assert lines(file)[1] == {"step": 2, "loss": None, "lr": None}


def test_steps_done_again_replace_what_a_lost_run_wrote(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    first = loggers.JsonLines(file)
    for step in range(1, 6):
        first.log(step, {"loss": float(step), "name é": 0.0})
    first.close()
    file.write_text(file.read_text() + '{"step": 6, "lo')  # a kill in the middle of a line
    again = loggers.JsonLines(file)
    again.log(4, {"loss": -4.0})
    again.log(5, {"loss": -5.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in lines(file)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, -4.0),
        (5, -5.0),
    ]
    fresh = loggers.JsonLines(file)
    fresh.log(1, {"loss": 9.0})
    fresh.close()
    assert [line["loss"] for line in lines(file)] == [9.0]


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_trackers_are_told_each_step(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    told: list[object] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int) -> None:
            told.append((step, metrics))

        def finish(self) -> None:
            told.append("finished")

    def init(**settings: object) -> Run:
        told.append(settings)
        return Run()

    fake(monkeypatch, package, init=init)
    log = getattr(loggers, package)("boats", name="first")
    assert told == [], "no run is opened before there is something to log"
    log.log(3, {"loss": 0.5})
    log.close()
    log.close()
    assert told == [{"project": "boats", "name": "first"}, (3, {"loss": 0.5}), "finished"]


def test_tensorboard_is_told_each_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[object] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append("closed")

    fake(monkeypatch, "tensorboard")
    fake(monkeypatch, "torch.utils.tensorboard", SummaryWriter=Writer)
    log = loggers.TensorBoard(tmp_path)
    log.log(4, {"loss": 0.5})
    log.close()
    assert told == [(str(tmp_path), 4), ("loss", 0.5, 4), "closed"]


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard itself reads of a folder's events."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = reader.EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


def test_tensorboard_itself_reads_what_was_logged_and_steps_done_again_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch")
    first = loggers.TensorBoard(tmp_path / "board")
    assert not (tmp_path / "board").exists(), "nothing is opened before there is something to log"
    for step in range(1, 6):
        first.log(step, {"loss": 1.0 / step, "lr": 1e-5 * step})
    first.close()
    again = loggers.TensorBoard(tmp_path / "board")  # a run that was killed and goes on after step 3
    for step in (4, 5, 6):
        again.log(step, {"loss": -1.0 / step, "lr": 0.0})
    again.close()
    told = scalars(tmp_path / "board", "loss")
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in told] == pytest.approx([1, 1 / 2, 1 / 3, -1 / 4, -1 / 5, -1 / 6], rel=1e-6)  # float32
    assert scalars(tmp_path / "board", "lr")[2][1] == pytest.approx(3e-5, rel=1e-6)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    for make in (loggers.TensorBoard, loggers.wandb, loggers.trackio):
        with pytest.raises(
            MissingResource, match=r"(tensorboard|wandb|trackio) is not installed: pip install \1, or .*jsonl:FILE"
        ):
            make(str(tmp_path))

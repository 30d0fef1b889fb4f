"""States of unfinished trainings in the cache: which go, which stay, and what `--fresh` makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from fairlead.methods.config import SFTConfig
from fairlead.stack.atomic import at_work, others_at_work
from fairlead.stack.cache import Cache, Entry
from fairlead.stack.stages.train import KEPT, KEPT_S, forget_old_states, trained
from fairlead.stack.voice import Quiet

DAY = 86_400.0


def state(unfinished: Path, key: str, days: float) -> Path:
    """A training's folder of states, last written so many days ago."""
    step = unfinished / f"training-{key}" / "step-00000050"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    for path in (step, step.parent):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return step.parent


def left(unfinished: Path) -> list[str]:
    return sorted(path.name for path in unfinished.glob("training-*"))


def test_only_the_newest_states_of_other_settings_stay_and_those_not_for_ever(tmp_path: Path) -> None:
    for days in range(KEPT + 2):
        state(tmp_path, f"{days}", days)
    (tmp_path / "stopped-x-step-3.json").write_text("{}")  # the rows that stopped a run: named in its error
    said: list[str] = []
    forget_old_states(tmp_path, said.append)
    assert left(tmp_path) == [f"training-{days}" for days in range(KEPT)]
    assert [str(tmp_path / f"training-{days}") in line for days, line in zip((3, 4), said, strict=True)] == [True] * 2
    assert "4.0 days ago" in said[1]
    old = state(tmp_path, "old", KEPT_S / DAY + 1)
    for days in range(1, KEPT):
        os.rename(tmp_path / f"training-{days}", tmp_path / f"gone-{days}")
    forget_old_states(tmp_path, said.append)
    assert not old.exists() and left(tmp_path) == ["training-0"] and len(said) == 3
    assert (tmp_path / "stopped-x-step-3.json").exists()


def test_a_state_that_was_just_written_is_as_young_as_its_newest_step(tmp_path: Path) -> None:
    long = state(tmp_path, "long", 30)
    (long / "step-00000100").mkdir()
    os.utime(long, (0, 0))
    said: list[str] = []
    forget_old_states(tmp_path, said.append)
    assert long.exists() and said == []


def test_nothing_is_removed_while_another_process_trains_here(tmp_path: Path) -> None:
    old = state(tmp_path, "old", 99)
    script = (
        "import sys, time; from pathlib import Path; from fairlead.stack.atomic import at_work\n"
        "with at_work(Path(sys.argv[1])): print('here', flush=True); time.sleep(600)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=env, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"here\n"
        forget_old_states(tmp_path, lambda text: None)
        assert old.exists()
    finally:
        other.kill()
        other.communicate()
    forget_old_states(tmp_path, lambda text: None)  # killed: its mark is still there, and it is not
    assert not old.exists()


@pytest.mark.parametrize(("silent", "works"), [(0.5, True), (2.0, False)])
def test_of_another_machine_only_its_last_word_is_known(tmp_path: Path, silent: float, works: bool) -> None:
    mark = tmp_path / ".tmp-elsewhere+1-00000000-at-work"
    mark.touch()
    os.utime(mark, (time.time() - silent * DAY,) * 2)
    assert others_at_work(tmp_path) is works


def test_a_process_that_works_here_is_no_other_one_and_leaves_no_mark(tmp_path: Path) -> None:
    with at_work(tmp_path / "cache") as still_here:
        still_here()
        assert list((tmp_path / "cache").iterdir()) and not others_at_work(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


class Saved:
    """In the place of a trained model."""

    def save(self, folder: Path) -> None:
        folder.mkdir()


def stage(cache: Cache, voice: Any, runs: list[Any]) -> Entry:
    ctx: Any = SimpleNamespace(cache=cache, voice=voice, numerics={})
    below: Any = SimpleNamespace(model=None, identity="weights")

    def fit(model: Any, run: Any) -> Any:
        runs.append(run)
        return Saved(), {}, (), ()

    return trained("sft", "sft", SFTConfig(), Entry(cache.root, "data", made=False), below, ctx, fit)[0]


@pytest.mark.parametrize("fresh", [False, True])
def test_fresh_uses_no_state_and_no_reference_of_an_earlier_run(tmp_path: Path, fresh: bool) -> None:
    runs: list[Any] = []
    stage(Cache(tmp_path, fresh=fresh), Quiet(), runs)
    (run,) = runs
    assert run.fresh is fresh and run.checkpoint == tmp_path / "unfinished"
    assert run.cache == (None if fresh else tmp_path / "reference")


def test_a_training_that_has_finished_says_which_states_go(tmp_path: Path) -> None:
    old = state(tmp_path / "unfinished", "old", 99)
    voice = Quiet()
    stage(Cache(tmp_path), voice, [])
    assert not old.exists() and any(str(old) in line for line in voice.lines)
    assert list((tmp_path / "unfinished").iterdir()) == []

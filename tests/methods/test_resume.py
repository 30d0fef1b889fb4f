"""Keeping work: a kill at any moment, a damaged state, a full disk; the run goes on, to the same bits."""

from __future__ import annotations

import json
import logging
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from tests.methods import parallel_jobs as jobs  # noqa: E402
from tests.methods.trainable import Tiny, demonstrations, pairs, tiny_model, weights  # noqa: E402

from fairlead.errors import MissingResource  # noqa: E402
from fairlead.methods.config import DPOConfig, SFTConfig  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.preference import train_dpo  # noqa: E402
from fairlead.methods.sft import train_sft  # noqa: E402
from support import ranks  # noqa: E402

SFT = SFTConfig(epochs=2, rows_per_step=4, lr=3e-3)
DPO = DPOConfig(epochs=2, rows_per_step=4, lr=1e-3, beta=0.3, kl_samples=0)


@pytest.fixture
def model() -> Tiny:
    return tiny_model()


class Killed(Exception):
    pass


def die_at(step: int, error: type[BaseException] = Killed) -> Callable[[StepRecord], None]:
    def progress(record: StepRecord) -> None:
        if record.step + 1 == step:
            raise error

    return progress


def states(folder: Path) -> list[str]:
    return sorted(p.name for run in folder.glob("training-*") for p in run.iterdir())


# ------------------------------------------------------------------------------------------- between two steps


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_stopped_run_goes_on_to_the_same_weights(model: Tiny, tmp_path: Path, method: str) -> None:
    def train(run: Run) -> Any:
        return train_sft(model, demonstrations(), SFT, run) if method == "sft" else train_dpo(model, pairs(), DPO, run)

    whole = train(Run())
    with pytest.raises(Killed):
        train(Run(checkpoint=tmp_path, every=1, progress=die_at(3)))
    assert states(tmp_path) == ["step-00000002", "step-00000003"], "the last two are kept"
    seen: list[int] = []
    went_on = train(Run(checkpoint=tmp_path, every=1, progress=lambda r: seen.append(r.step)))
    assert seen[0] == 3
    assert torch.equal(weights(whole.model), weights(went_on.model))
    assert [r.loss for r in whole.records] == [r.loss for r in went_on.records]
    assert not list(tmp_path.iterdir())


def test_a_fresh_run_begins_anew_and_its_states_take_the_place_of_those_there(model: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=die_at(3)))
    (key,) = tmp_path.iterdir()
    damaged = key / "step-00000003" / "state.json"
    damaged.write_text("of an earlier run")
    seen: list[int] = []

    def twice(record: StepRecord) -> None:
        seen.append(record.step)
        if len(seen) == 2:
            raise Killed

    with pytest.raises(Killed):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, fresh=True, progress=twice))
    assert seen == [0, 1] and states(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_run_stopped_between_steps_keeps_them_all(model: Tiny, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_sft(
            model,
            demonstrations(),
            SFT,
            Run(checkpoint=tmp_path, every=1000, progress=die_at(3, KeyboardInterrupt)),
        )
    seen: list[int] = []
    got = train_sft(
        model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1000, progress=lambda r: seen.append(r.step))
    )
    assert seen == [3]
    assert torch.equal(weights(got.model), weights(train_sft(model, demonstrations(), SFT).model))  # type: ignore[arg-type]


def test_a_state_says_what_it_is_of(model: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=die_at(2)))
    (run,) = tmp_path.iterdir()
    about = json.loads((run / "step-00000002" / "state.json").read_text())
    assert (about["step"], about["processes"], about["config"]["lr"]) == (2, 1, 3e-3)
    held = load_file(run / "step-00000002" / "process-00000.safetensors")
    assert {name.partition(".")[0] for name in held} == {"weight", "exp_avg", "exp_avg_sq", "step", "generators"}
    assert {p.suffix for p in run.rglob("*") if p.is_file()} == {".json", ".safetensors"}


# ---------------------------------------------------------------------------------------------- what is damaged


def flip(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[-5] ^= 255
    file.write_bytes(bytes(body))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit of a weight": ("process-00000.safetensors", flip, "its checksum does not match"),
    "half a file": (
        "process-00000.safetensors",
        lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
        "cannot be read",
    ),
    "a file gone": ("process-00000.safetensors", Path.unlink, "cannot be read"),
    "an edited setting": (
        "state.json",
        lambda f: f.write_text(f.read_text().replace('"lr": 0.003', '"lr": 0.3')),
        "its checksum does not match",
    ),
    "half a description": ("state.json", lambda f: f.write_text(f.read_text()[:99]), "is damaged"),
    "no description": ("state.json", Path.unlink, "cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_state_before_a_damaged_one_is_used(
    model: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    name, damage, said = DAMAGE[what]
    whole = train_sft(model, demonstrations(), SFT)
    with pytest.raises(Killed):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=die_at(3)))
    (run,) = tmp_path.iterdir()
    damage(run / "step-00000003" / name)
    seen: list[int] = []
    with caplog.at_level(logging.WARNING):
        again = train_sft(
            model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=lambda r: seen.append(r.step + 1))
        )
    assert "step-00000003 is damaged" in caplog.text and "going back to the state before it" in caplog.text
    assert said in caplog.text
    assert seen[0] == 3, "step 2 is whole, so step 3 is the first to be done again"
    assert torch.equal(weights(whole.model), weights(again.model))  # type: ignore[arg-type]


def test_where_both_are_damaged_or_foreign_the_run_starts_anew(
    model: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=die_at(3)))
    for file in tmp_path.rglob("*.safetensors"):
        flip(file)
    seen: list[int] = []
    run = Run(checkpoint=tmp_path, every=1000, progress=lambda r: seen.append(r.step + 1))
    with caplog.at_level(logging.WARNING):
        train_sft(model, demonstrations(6), SFT, run)
        assert "belongs to a run with other data, weights or settings: starting anew" in caplog.text
        assert seen == [1, 2, 3]
        seen.clear()
        got = train_sft(model, demonstrations(), SFT, run)
    assert "step-00000002 is damaged" in caplog.text and "starting anew" in caplog.text
    assert seen == [1, 2, 3, 4]
    assert torch.equal(weights(got.model), weights(train_sft(model, demonstrations(), SFT).model))  # type: ignore[arg-type]


def test_a_damaged_state_does_not_push_out_a_whole_one(model: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=die_at(4)))
    (run,) = tmp_path.iterdir()
    flip(run / "step-00000004" / "process-00000.safetensors")
    with pytest.raises(Killed):  # goes on after 3, does 4 again and stops there
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1000, progress=die_at(4)))
    assert states(tmp_path) == ["step-00000003", "step-00000004"]
    flip(run / "step-00000003" / "process-00000.safetensors")
    seen: list[int] = []
    train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, progress=lambda r: seen.append(r.step)))
    assert seen == [], "step 4, written again, is whole"


# --------------------------------------------------------------------------------------------------- full disk


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond this."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_last_good_state(model: Tiny, tmp_path: Path) -> None:
    whole = train_sft(model, demonstrations(), SFT)
    with pytest.raises(Killed):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=die_at(2)))
    with small_disk(20_000), pytest.raises(MissingResource, match=r"step-00000003: the training state cannot be writ"):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1))
    assert states(tmp_path) == ["step-00000001", "step-00000002"], "and nothing half-written"
    seen: list[int] = []
    again = train_sft(
        model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1, progress=lambda r: seen.append(r.step + 1))
    )
    assert seen == [3, 4]
    assert torch.equal(weights(whole.model), weights(again.model))  # type: ignore[arg-type]


def test_what_stopped_a_run_is_told_also_on_a_full_disk(
    model: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(20_000), pytest.raises(Killed), caplog.at_level(logging.ERROR):
        train_sft(model, demonstrations(), SFT, Run(checkpoint=tmp_path, every=1000, progress=die_at(2)))
    assert "the training state cannot be written" in caplog.text


# ----------------------------------------------------------------------------------------------------- SIGKILL


def killed_everywhere(tmp_path: Path, size: int, shard: bool, points: Callable[[int], list[tuple[int, int]]]) -> None:
    """Kill a run at each point (event, process), let it go on, and compare with one that was left alone."""
    left_alone = ranks.run(jobs.noisy, size, tmp_path / "whole", str(tmp_path / "whole" / "kept"), shard)
    expected = {found["hash"] for found in left_alone}
    assert len(expected) == 1
    resumed = set()
    for at, victim in points(left_alone[0]["events"]):
        folder = tmp_path / f"{at}-{victim}"
        kept = str(folder / "kept")
        group = ranks.start(jobs.noisy, size, folder, kept, shard, at, victim)
        codes = ranks.finish(group, 600, together=True)
        assert codes[victim] == -signal.SIGKILL, f"event {at}: {codes}\n{ranks.log_of(folder, victim)}"
        found = ranks.run(jobs.noisy, size, folder, kept, shard)
        assert {f["hash"] for f in found} == expected, f"killed before event {at} of process {victim}"
        resumed.add(found[0]["told"][0] if found[0]["told"] else 0)
    assert len(resumed) > 2, "the kills came too early or too late to tell"


def test_sigkill_at_any_moment_of_one_process(tmp_path: Path) -> None:
    killed_everywhere(tmp_path, 1, False, lambda events: [(at, 0) for at in range(3, events, 7)])


@pytest.mark.full
def test_sigkill_at_every_moment_of_one_process(tmp_path: Path) -> None:
    killed_everywhere(tmp_path, 1, False, lambda events: [(at, 0) for at in range(1, events + 1)])


@pytest.mark.parametrize("shard", [False, True])
def test_sigkill_of_one_of_two_processes(tmp_path: Path, shard: bool) -> None:
    def points(events: int) -> list[tuple[int, int]]:
        some = [(events // 3, 0), (events // 2, 0), (4 * events // 5, 0)]
        return [*some, (2, 1)] if shard else some  # without shards process 1 writes nothing

    killed_everywhere(tmp_path, 2, shard, points)


@pytest.mark.full
@pytest.mark.parametrize("shard", [False, True])
def test_sigkill_of_one_of_two_processes_at_every_moment(tmp_path: Path, shard: bool) -> None:
    killed_everywhere(tmp_path, 2, shard, lambda events: [(at, 0) for at in range(1, events + 1)])


# ------------------------------------------------------------------------------------------ other process counts


@pytest.mark.parametrize(
    ("shard", "before", "after"),
    [(False, 2, 1), (True, 2, 1), (True, 1, 2), pytest.param(True, 2, 3, marks=pytest.mark.full)],
)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, shard: bool, before: int, after: int) -> None:
    """Not to the bit, and it says so."""
    alone = jobs.train("sft", str(tmp_path / "alone"), shard=False)
    folder = str(tmp_path / "kept")
    group = ranks.start(jobs.train, before, tmp_path / "first", "sft", folder, shard, 3)
    codes = ranks.finish(group, 600, together=True)
    assert codes[0] == 1 and "RuntimeError: stopped" in ranks.log_of(tmp_path / "first", 0)
    found = ranks.run(jobs.train, after, tmp_path / "second", "sft", folder, shard)
    assert found[0]["told"][0] == 4
    assert f"the state is of a run on {before} processes and this one is on {after}" in ranks.log_of(
        tmp_path / "second", 0
    )
    ours = load_file(tmp_path / "kept" / "model" / "model.safetensors")
    theirs = load_file(tmp_path / "alone" / "model" / "model.safetensors")
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in theirs) < 1e-9
    assert [r[0] for r in found[0]["records"]] == pytest.approx([r[0] for r in alone["records"]], rel=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "kept" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, len(alone["records"]) + 1)], "no step is logged twice"

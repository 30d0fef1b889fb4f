"""When a loss or a gradient is nothing usual: the rules on hand-written runs, and in a training that breaks."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.methods.trainable import Tiny, demonstrations, pairs, tiny_model  # noqa: E402

from fairlead.methods.anomalies import CALM, gradient_spike, loss_rises, loss_rising, loss_spike  # noqa: E402
from fairlead.methods.catalogue import METHODS  # noqa: E402
from fairlead.methods.config import DPOConfig, SFTConfig  # noqa: E402
from fairlead.methods.config_policy import ALGORITHMS  # noqa: E402
from fairlead.methods.loop import Run, StepRecord, TrainingStopped  # noqa: E402
from fairlead.methods.preference import train_dpo  # noqa: E402
from fairlead.methods.sft import train_sft  # noqa: E402
from fairlead.stack.outcome import warnings_of  # noqa: E402


def records(losses: list[float]) -> list[StepRecord]:
    return [StepRecord(i, len(losses), loss, 1.0, 1e-3, 8, 60, 0.1) for i, loss in enumerate(losses)]


def test_a_gradient_is_held_against_the_last_ones_and_the_first_ones() -> None:
    steady = [1.0, 2.0] * 10
    assert gradient_spike(151.0, steady, 100.0).startswith("the gradient's norm is 151, 101 times the usual 1.5")
    assert gradient_spike(149.0, steady, 100.0) == ""
    assert gradient_spike(1e9, steady[:-1], 100.0) == "", "nothing is usual yet"
    assert gradient_spike(1e9, steady, None) == ""
    fitted = [*steady, *[1e-3] * 60]  # what is learnt has no gradient, and the odd row has one as at the start
    assert gradient_spike(2.0, fitted, 100.0) == ""


def test_a_loss_is_held_against_the_first_one_and_the_usual() -> None:
    assert loss_spike(40.1, 4, [4.0], 10.0) == "the loss is 40.1, 10 times the first step's 4 (loss_spike: 10)"
    assert loss_spike(39.9, 4, [4.0], 10.0) == ""
    assert loss_spike(40.1, 3, [4.0], 10.0) == "", "three rows may be that hard"
    assert loss_spike(40.1, 4, [4.0], None) == loss_spike(40.1, 4, [], 10.0) == ""
    broken = [4.0, *[100.0] * 10]
    assert "the first step's 4" in loss_spike(60.0, 4, broken, 10.0), "its own broken steps are not the usual"
    risen = [4.0, *[20.0] * CALM]
    assert loss_spike(199.0, 4, risen, 10.0) == "" and "the usual 20" in loss_spike(201.0, 4, risen, 10.0)
    learnt = [0.7, *[1e-3] * 60]
    assert loss_spike(6.9, 4, learnt, 10.0) == "" and loss_spike(7.1, 4, learnt, 10.0)
    assert loss_spike(6.9, 4, [1e-4] * 30, 10.0) == "", "nor is a loss of nothing multiplied"


def test_a_loss_that_rises_is_told_with_where_it_ended() -> None:
    (alarm,) = loss_rises(records([2.0, 3.0, *[4.5] * 10]))
    assert (alarm.name, alarm.step, alarm.value) == ("loss-rises", 8, pytest.approx(4.5))
    assert "4.5 at step 8" in alarm.message and "was 2 at the first one, 4.5 at the end" in alarm.message
    (alarm,) = loss_rises(records([2.0, *[4.5] * 8, *[1.0] * 8]))
    assert "came back by the end" in alarm.message
    assert loss_rises(records([2.0, *[3.9] * 20])) == ()
    assert loss_rises(records([0.01, *[1.3] * 20])) == (), "twice a guess is what a rise is"
    assert loss_rises([]) == loss_rises(records([2.0])) == ()
    assert loss_rises(records([2.0, 9.0]))[0].step == 2, "a short run is looked at once"


def test_each_of_several_runs_has_a_start_of_its_own() -> None:
    assert loss_rises([*records([1.0] * 9), *records([9.0] * 9)]) == ()
    assert loss_rises([*records([9.0] * 9), *records([1.0, *[8.0] * 9])])[0].name == "loss-rises"


def test_under_way_only_the_last_steps_are_read() -> None:
    losses = [2.0, 3.0, *[4.5] * 10]
    seen = [n for n in range(1, len(losses) + 1) if loss_rising(records(losses[:n]))]
    assert seen[0] == 8 and "at the end" not in loss_rising(records(losses[:8]))[0].message


def test_what_learns_from_fixed_data_has_both_rules_and_reinforcement_learning_has_its_own() -> None:
    for name, method in METHODS.items():
        config = method.config(**method.defaults)
        most = None if name == "alphapo" else 10.0  # whose loss is as large as it pleases
        assert (config.spike, config.loss_spike, config.loss_is_progress) == (100.0, most, True)
    for algorithm in ALGORITHMS.values():
        config = algorithm.settings({})
        assert (config.spike, config.loss_spike, config.loss_is_progress) == (None, None, False)


# ----------------------------------------------------------------------------------------- in a training


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny_model(torch.float32)


@pytest.fixture(scope="module")
def taught(model: Tiny) -> Any:
    """One that knows its rows: a random one has little to lose."""
    return train_sft(model, demonstrations(), sft(1e-2, steps=30)).model


def sft(lr: float, **more: Any) -> SFTConfig:
    return SFTConfig(**{"steps": 12, "rows_per_step": 8, "lr": lr, "warmup": 0.0, "grad_clip": None, **more})


def test_a_training_that_breaks_stops_with_the_batch_saved(taught: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"step 2: the loss is .* times a guess' .*loss_spike: 10.*Lower lr"):
        train_sft(taught, demonstrations(), sft(0.9), Run(checkpoint=tmp_path))
    assert len(list(tmp_path.glob("stopped-*.json"))) == 1


def test_preferences_that_break_stop_too(model: Tiny) -> None:
    settings: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "grad_clip": None, "kl_samples": 0}
    config = DPOConfig(steps=12, rows_per_step=4, lr=0.9, **settings)
    with pytest.raises(TrainingStopped, match="the loss is .* times the first step's 0.693"):
        train_dpo(model, pairs(), config)


def test_one_that_goes_on_is_warned_of_once_and_at_the_end(taught: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fairlead"):
        made = train_sft(taught, demonstrations(), sft(0.9, loss_spike=None))
    assert len([one for one in caplog.messages if "loss-rises: the loss is" in one]) == 1
    (warning,) = warnings_of(made)
    assert warning.startswith("loss-rises: the loss is") and math.isfinite(made.final_loss)


def test_one_that_learns_is_not(model: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fairlead"):
        made = train_sft(model, demonstrations(), sft(3e-3, grad_clip=1.0))
    assert caplog.messages == [] and warnings_of(made) == []

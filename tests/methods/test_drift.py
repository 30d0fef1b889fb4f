"""What a run on preferences is watched for: the metrics of a step, and the alarms by name."""

from __future__ import annotations

import logging

import pytest

torch = pytest.importorskip("torch")

from tests.methods.trainable import pairs, tiny_model  # noqa: E402

from fairlead.exchange import Rated  # noqa: E402
from fairlead.methods.config import DPOConfig, KTOConfig  # noqa: E402
from fairlead.methods.drift import (  # noqa: E402
    Drift,
    drift_alarms,
    drift_under_way,
    preference_metrics,
    probe_alarms,
)
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.preference import train_dpo  # noqa: E402
from fairlead.methods.unpaired import train_kto  # noqa: E402


def metrics(reference: bool = True, pc: torch.Tensor | None = None) -> dict[str, float]:
    pc = torch.tensor([-1.0, -4.0, -2.0]) if pc is None else pc
    pr, ref = torch.tensor([-3.0, -1.0, -2.0]), torch.tensor([-2.0, -2.0, -2.0])
    return preference_metrics(
        pc,
        pr,
        ref if reference else None,
        ref if reference else None,
        margin_B=0.5 * (pc - pr),
        label_B=torch.tensor([1.0, 0.9, 0.5]),
        chosen_tokens_B=torch.tensor([2, 3, 4]),
        rejected_tokens_B=torch.tensor([1, 1, 2]),
    )


def test_the_sums_of_a_micro_batch() -> None:
    got = metrics()
    assert (got["pairs"], got["decided"], got["accurate"]) == (3, 2, 1)
    assert got["margin"] == pytest.approx(0.5 * (2 - 3 + 0))
    assert (got["chosen_logp"], got["chosen_drift"], got["rejected_drift"]) == (-7, -1, 0)
    assert (got["chosen_tokens"], got["rejected_tokens"]) == (9, 4)


def test_a_margin_of_0_counts_half() -> None:
    assert metrics(pc=torch.tensor([-3.0, -1.0, -2.0]))["accurate"] == 1.0


def test_without_a_reference_there_is_no_drift_to_sum() -> None:
    assert not {"chosen_drift", "rejected_drift"} & set(metrics(reference=False))


def record(step: int, chosen: float, rejected: float) -> StepRecord:
    sums = {"chosen_drift": chosen, "chosen_tokens": 40.0, "rejected_drift": rejected, "rejected_tokens": 20.0}
    return StepRecord(step, 20, 0.5, 1.0, 1e-3, 4, 60, 0.1, sums)


def test_falling_chosen_and_rising_rejected_replies_raise_an_alarm_each() -> None:
    assert drift_alarms([], 0.1) == ()
    assert drift_alarms([record(i, -1.0, -9.0) for i in range(20)], 0.1) == ()  # rejected may fall
    (falls,) = drift_alarms([record(i, -1.0 * i, -9.0) for i in range(20)], 0.1)
    assert (falls.name, falls.step) == ("chosen-log-prob-falls", 9)
    (rises,) = drift_alarms([record(i, 0.0, 0.5 * i) for i in range(20)], 0.1)
    assert (rises.name, rises.step) == ("rejected-log-prob-rises", 9)
    assert rises.value == pytest.approx(4.5 * 0.5 / 20)
    both = drift_alarms([record(i, -40.0, 40.0) for i in range(3)], 0.1)
    assert [alarm.name for alarm in both] == ["chosen-log-prob-falls", "rejected-log-prob-rises"]


def test_rejected_replies_may_rise_with_chosen_ones_that_rise_more() -> None:
    assert drift_alarms([record(i, 20.0, 8.0) for i in range(10)], 0.1) == ()  # 0.5 and 0.4 nats per token
    (rises,) = drift_alarms([record(i, 12.0, 8.0) for i in range(10)], 0.1)  # 0.3 and 0.4
    assert rises.name == "rejected-log-prob-rises"


def test_a_probe_after_the_last_step_raises_the_same_alarms() -> None:
    assert probe_alarms(Drift(-1, -9, -0.05, -0.9, 8), 20, 0.1) == ()
    (falls,) = probe_alarms(Drift(-9, -9, -0.3, -0.9, 8), 20, 0.1)
    assert (falls.name, falls.step, falls.value) == ("chosen-log-prob-falls", 20, -0.3)
    (rises,) = probe_alarms(Drift(1, 9, 0.2, 0.9, 8), 20, 0.1)
    assert rises.name == "rejected-log-prob-rises" and "0.900" in rises.message


def test_the_words_say_where_the_chosen_replies_stand_at_the_end() -> None:
    fallen = [record(i, -8.0, -9.0) for i in range(8)]  # 0.2 nats per token
    for last, words in (
        (-8.0, "and by 0.200 at the end: the model is unlearning"),
        (-2.0, "but by no more than 0.050 at the end: the model unlearnt good replies too, for a while"),
        (10.0, "but stands 0.250 above the start's at the end: the model unlearnt good replies too, for a while"),
    ):
        (falls,) = drift_alarms([*fallen, *(record(8 + i, last, -99.0) for i in range(8))], 0.1)
        assert "fell by 0.200 nats per token at step 8 (limit 0.1), " + words in falls.message


def test_a_run_under_way_is_read_by_its_last_steps_alone() -> None:
    fallen = [record(i, -8.0, -9.0) for i in range(8)]
    assert drift_under_way(fallen[:7], 0.1) == ()
    (falls,) = drift_under_way(fallen, 0.1)
    assert (falls.name, falls.step) == ("chosen-log-prob-falls", 8) and "at the end" not in falls.message
    assert drift_under_way([*fallen, *(record(8 + i, 16.0, 4.0) for i in range(8))], 0.1) == ()
    (rises,) = drift_under_way([*fallen, *(record(8 + i, 0.0, 4.0) for i in range(8))], 0.1)
    assert (rises.name, rises.step) == ("rejected-log-prob-rises", 16)
    assert drift_under_way([StepRecord(i, 9, 0.5, 1.0, 1e-3, 4, 60, 0.1) for i in range(9)], 0.1) == ()


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_training_says_an_alarm_once_when_it_is_first_seen(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Pairs whose good reply starts likely and ends in a place of its own: lr is far too high, and both sides fall."""
    model, seen = tiny_model(torch.float32), []
    settings = {"steps": 14, "rows_per_step": 4, "lr": 0.05, "warmup": 0.0, "kl_samples": 0, "drift_alarm": 1e-6}

    def progress(step: StepRecord) -> None:
        if not seen and any("log-prob-" in text for text in caplog.messages):
            seen.append(step.step + 1)

    with caplog.at_level(logging.WARNING, "fairlead"):
        if method == "dpo":
            made = train_dpo(model, pairs(), DPOConfig(**settings), Run(progress=progress))
        else:
            rated = [Rated(p.messages, p.chosen, True) for p in pairs()] + [
                Rated(p.messages, p.rejected, False) for p in pairs()
            ]
            made = train_kto(model, rated, KTOConfig(**settings), Run(progress=progress))
    names = [alarm.name for alarm in made.alarms if "log-prob-" in alarm.name]
    said = [text for text in caplog.messages if "log-prob-" in text]
    assert names and len(said) == len({text.split(": ")[1] for text in said}) >= len(names)
    assert seen == [8] or seen == [min(a.step for a in made.alarms if "log-prob-" in a.name)]

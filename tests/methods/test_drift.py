"""What a run on preferences is watched for: the metrics of a step, and the alarms by name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fairlead.methods.drift import Drift, drift_alarms, preference_metrics, probe_alarms  # noqa: E402
from fairlead.methods.loop import StepRecord  # noqa: E402


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

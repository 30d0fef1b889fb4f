"""A reference that follows the policy (TR-DPO and kin): where it stands after each step, what is read of it, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from tests.engine.helpers import keep_float64  # noqa: E402
from tests.methods.trainable import Tiny, pairs, tiny_model, weights  # noqa: E402

from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.methods import preference  # noqa: E402
from fairlead.methods.config import DPOConfig, IPOConfig, KTOConfig, Lora  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.preference import train_pairs  # noqa: E402
from fairlead.methods.reference import Reference  # noqa: E402
from fairlead.methods.rows import pair_rows  # noqa: E402

SHORT: dict[str, Any] = {"epochs": 3, "rows_per_step": 4, "lr": 3e-3, "kl_samples": 0}  # six steps


@pytest.fixture(scope="module")
def model() -> Tiny:
    made = tiny_model()
    keep_float64(made.module)
    return made


def flat(module: Any) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


class Watched(Reference):
    """Remembers policy and reference after every step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def follow(self, policy: Any, steps: int) -> None:
        super().follow(policy, steps)
        self.seen.append((flat(policy).copy(), flat(self.module).copy()))


@pytest.mark.parametrize(
    ("config", "every", "rate"),
    [
        (DPOConfig(**SHORT, reference="reset", reference_every=2), 2, 1.0),
        (DPOConfig(**SHORT, reference="ema", reference_every=3, reference_rate=0.25), 3, 0.25),
        (DPOConfig(**SHORT, reference="ema"), 1, 0.6),
        (IPOConfig(**SHORT, reference="ema"), 1, 0.6),
        (DPOConfig(**SHORT, reference="reset"), 512, 1.0),
    ],
)
def test_the_reference_stands_where_the_formula_says(
    model: Tiny, monkeypatch: pytest.MonkeyPatch, config: Any, every: int, rate: float
) -> None:
    kept: list[Watched] = []
    monkeypatch.setattr(preference, "Reference", lambda *args: kept.append(Watched(*args)) or kept[-1])
    got = train_pairs(model, pairs(), config)
    stands = weights(model).numpy()
    assert len(kept[0].seen) == len(got.records) == 6
    for step, (policy, reference) in enumerate(kept[0].seen, start=1):
        if step % every == 0:
            stands = rate * policy + (1 - rate) * stands
        assert np.abs(reference - stands).max() < 1e-12
    assert np.array_equal(kept[0].seen[-1][0], weights(got.model).numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [1, 2])
def test_a_mean_corrected_for_its_lag_stands_where_the_formula_says(
    model: Tiny, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    kept: list[Watched] = []
    monkeypatch.setattr(preference, "Reference", lambda *args: kept.append(Watched(*args)) or kept[-1])
    bias: Any = {"reference_lag": 3, "reference_mean_power": 0.4, "reference_bias_power": 0.7}
    train_pairs(model, pairs(), DPOConfig(**SHORT, reference="bema", reference_every=every, **bias))
    start = mean = stands = weights(model).numpy()
    assert len(kept[0].seen) == 6
    for step, (policy, reference) in enumerate(kept[0].seen, start=1):
        if step % every == 0:
            beta, alpha = (3 + step) ** -0.4, (3 + step) ** -0.7
            mean = (1 - beta) * mean + beta * policy
            stands = mean + alpha * (policy - start)
        assert np.abs(reference - stands).max() < 1e-12


def test_the_loss_reads_the_reference_as_it_stands(model: Tiny) -> None:
    """Reset after every step, policy and reference are one at the start of each, and a sigmoid of nothing is log 2."""
    config = DPOConfig(**SHORT, reference="reset", reference_every=1)
    losses = [r.loss for r in train_pairs(model, pairs(), config).records]
    assert losses == pytest.approx([math.log(2)] * 6, abs=1e-12)
    still = [r.loss for r in train_pairs(model, pairs(), DPOConfig(**SHORT)).records]
    second = [r.loss for r in train_pairs(model, pairs(), config.model_copy(update={"reference_every": 2})).records]
    assert second[:2] == pytest.approx(still[:2], abs=1e-12)
    assert second[2] == pytest.approx(math.log(2), abs=1e-12) != still[2]


def test_drift_is_told_from_the_start(model: Tiny) -> None:
    """It is what the alarms go by: against a reference that keeps up no drift would ever show."""
    config = DPOConfig(**{**SHORT, "rows_per_step": 8, "epochs": 6}, reference="reset", reference_every=1)
    got = train_pairs(model, pairs(), config)
    trees = pair_rows(model, pairs()).trees
    end = score(got.model.module, trees).sum_R() - score(model.module, trees).sum_R()
    told = [r.mean("chosen_drift", "pairs") for r in got.records]  # each as its step begins
    assert told[0] == pytest.approx(0.0, abs=1e-9) and abs(told[-1]) > 0.05
    assert abs(float(end.view(-1, 2)[:, 0].mean()) - told[-1]) < abs(told[-1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("how", ["ema", "bema"])
@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_a_run_killed_between_two_moves_goes_on_to_the_same_bits(
    model: Tiny, tmp_path: Path, at: int, how: Any
) -> None:
    def die(r: StepRecord) -> None:
        if r.step == at:
            raise Killed

    config = DPOConfig(**SHORT, reference=how, reference_every=2)
    whole = train_pairs(model, pairs(), config)
    with pytest.raises(Killed):
        train_pairs(model, pairs(), config, Run(checkpoint=tmp_path, every=1, progress=die))
    went_on = train_pairs(model, pairs(), config, Run(checkpoint=tmp_path, every=1))
    assert torch.equal(weights(whole.model), weights(went_on.model))  # type: ignore[arg-type]
    assert [r.loss for r in whole.records] == [r.loss for r in went_on.records]


def test_adapters_have_a_reference_that_is_reset(model: Tiny) -> None:
    pytest.importorskip("peft")
    config = DPOConfig(**SHORT, reference="reset", reference_every=1, lora=Lora(rank=4, alpha=8))
    losses = [r.loss for r in train_pairs(model, pairs(), config).records]
    assert losses == pytest.approx([math.log(2)] * 6, abs=1e-6)


@pytest.mark.parametrize("kind", [DPOConfig, IPOConfig, KTOConfig])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"reference_every": 4}, "reference is start, and stays"),
        ({"reference_rate": 0.5}, "belongs to reference: ema; reference is start"),
        ({"reference": "reset", "reference_rate": 0.5}, "belongs to reference: ema; reference is reset"),
        ({"reference": "ema", "reference_rate": 1.0}, "less than 1"),
        ({"reference": "ema", "reference_lag": 5.0}, "reference_lag belongs to reference: bema; reference is ema"),
        ({"reference": "bema", "reference_rate": 0.5}, "belongs to reference: ema; reference is bema"),
        ({"reference": "bema", "lora": Lora(rank=4)}, "bema under lora would mix"),
        ({"reference": "reset", "reference_every": 0}, "greater than or equal to 1"),
        ({"reference": "ema", "shard": True}, "shard leaves the reference whole"),
        ({"reference": "ema", "lora": {}}, "is no mix of weights"),
        ({"reference": "copy"}, "Input should be"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind: Any, bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        kind(**bad)


@pytest.mark.parametrize("kind", [DPOConfig, IPOConfig])
def test_without_a_reference_none_can_move(kind: Any) -> None:
    with pytest.raises(ValidationError, match="leaves no reference that could move"):
        kind(reference="ema", reference_free=True)

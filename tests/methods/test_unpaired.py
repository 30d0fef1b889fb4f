"""`train_kto` on rated replies: KTO, BCO and APO-zero learn, and what they know of a whole step ignores its split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from tests.engine.helpers import keep_float64  # noqa: E402
from tests.methods.trainable import WORDS, Tiny, tiny_model, weights  # noqa: E402

from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Rated, assistant, user  # noqa: E402
from fairlead.methods import unpaired  # noqa: E402
from fairlead.methods.config import BCOConfig, KTOConfig, RatedConfig  # noqa: E402
from fairlead.methods.density import density_ratios, fitted_ratios, prompt_means  # noqa: E402
from fairlead.methods.loop import Run, StepRecord, step_rows  # noqa: E402
from fairlead.methods.reference import Reference  # noqa: E402
from fairlead.methods.rows import rated_rows  # noqa: E402
from fairlead.methods.unpaired import train_kto  # noqa: E402

SHORT: dict[str, Any] = {"epochs": 2, "rows_per_step": 4, "lr": 1e-3, "beta": 0.3, "kl_samples": 0}
CONFIGS: dict[str, RatedConfig] = {
    "kto": KTOConfig(**SHORT, good=1.3),
    "tr-kto": KTOConfig(**SHORT, reference="ema", reference_every=2),
    "apo_zero": KTOConfig(**SHORT, loss="apo_zero"),
    "bco": BCOConfig(**SHORT),
    "bco matched": BCOConfig(**SHORT, match=True),
}


@pytest.fixture(scope="module")
def model() -> Tiny:
    made = tiny_model()
    keep_float64(made.module)
    return made


def rated(n: int = 9) -> list[Rated]:
    return [
        Rated((user(f"what is {'the ' * (i % 3)}boat ? {i}"),), (assistant(WORDS[i % 6] + " no" * (i % 2)),), i % 3 > 0)
        for i in range(n)
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_splits_into_micro_batches_give_equal_weights(model: Tiny, name: str) -> None:
    """Nine rows in steps of four: epochs meet inside a step, and the last one holds two rows."""
    whole, pieces = (
        train_kto(model, rated(), CONFIGS[name].model_copy(update={"tokens_per_batch": tokens}))
        for tokens in (4096, 40)
    )
    assert (weights(whole.model) - weights(model)).abs().max() > 1e-3  # type: ignore[arg-type]
    assert (weights(whole.model) - weights(pieces.model)).abs().max() < 1e-7  # type: ignore[arg-type]
    for one, other in zip(whole.records, pieces.records, strict=True):
        assert one.sums["baseline"] == pytest.approx(other.sums["baseline"], abs=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_splits_1x4_2x2_4x1_give_equal_gradients(model: Tiny, monkeypatch: Any, name: str) -> None:
    """From a policy that has left its reference, so that the step's statistics are not 0."""
    seen: list[torch.Tensor] = []

    def keep(self: Any, batch: Any) -> None:
        seen.append(torch.cat([p.grad.flatten() for p in self.parameters.values()]))
        real(self, batch)

    real = unpaired.Updates._update
    monkeypatch.setattr(unpaired.Updates, "_update", keep)
    rows = rated(4)
    sizes = sorted((tree.tokens for tree in rated_rows(model, rows).trees), reverse=True)
    for budget in (sum(sizes), sizes[0] + sizes[1], sizes[0]):
        train_kto(model, rows, CONFIGS[name].model_copy(update={"epochs": 3, "lr": 1e-2, "tokens_per_batch": budget}))
    thirds = seen[2], seen[5], seen[8]
    assert thirds[0].norm() > 1e-6
    assert all((other - thirds[0]).abs().max() < 1e-9 for other in thirds[1:])


@pytest.mark.parametrize("name", CONFIGS)
def test_good_replies_gain_on_bad_ones(model: Tiny, name: str) -> None:
    before = weights(model).clone()
    got = train_kto(model, rated(), CONFIGS[name].model_copy(update={"epochs": 15, "kl_samples": 16, "lr": 3e-3}))
    assert torch.equal(weights(model), before)
    last = got.metrics()
    # against a reference that follows the policy a reward is what was learnt since it moved
    assert (
        last["margin"] > (0.2 if CONFIGS[name].reference_pace is None else 0.1)
        and last["good_drift"] > last["bad_drift"]
    )
    assert (got.good, got.bad) == (6, 3)
    assert got.kl is not None and got.kl.n == 16


def test_turned_thumbs_learn_the_opposite(model: Tiny) -> None:
    turned = [Rated(r.messages, r.reply, not r.good) for r in rated()]
    config = CONFIGS["kto"].model_copy(update={"epochs": 10, "lr": 3e-3})
    trees = rated_rows(model, rated()).trees
    good = torch.tensor([r.good for r in rated()])
    ahead, back = (
        score(train_kto(model, rows, config).model.module, trees).sum_R() - score(model.module, trees).sum_R()
        for rows in (rated(), turned)
    )
    assert ahead[good].mean() > ahead[~good].mean() and back[good].mean() < back[~good].mean()


# ------------------------------------------------------------------------------------- KTO's reference point


def test_the_reference_point_is_the_mean_over_mismatched_pairs(model: Tiny) -> None:
    """Against a loop: every prompt of the step with the reply of the row before it, under both models."""
    rows = rated_rows(model, rated())
    config = CONFIGS["kto"]
    steps = step_rows(rows, config)
    other = tiny_model(seed=1)
    strangers = unpaired._mismatched(model, rows, steps, config, Run())
    for step in (0, 1):
        members = steps[step]
        assert len(set(members)) == len(members)
        ratios = []
        for place, row in enumerate(members):
            tree = Tree(rows.trees[row].prompt, rows.trees[members[place - 1]].replies)
            ratios.append(float(score(other.module, [tree]).sum_R() - score(model.module, [tree]).sum_R()))
        expected = max(0.0, sum(ratios) / len(ratios))
        assert strangers.reference_point(other.module, Reference(model, config), step, config) == pytest.approx(
            expected, abs=1e-9
        )
    assert strangers.left_out == 0


def test_no_row_is_its_own_stranger(model: Tiny) -> None:
    rows = rated_rows(model, rated(3))
    strangers = unpaired._mismatched(model, rows, [[0, 0, 1], [2], [1, 1]], CONFIGS["kto"], Run())
    own = {(tree.prompt, tree.replies) for tree in rows.trees}
    assert len(strangers.trees) == 6
    assert not any((tree.prompt, tree.replies) in own for tree in strangers.trees)


def test_the_reference_point_takes_no_gradient_and_moves_the_loss(model: Tiny, monkeypatch: Any) -> None:
    """Another reference point is another gradient; and it is computed on the weights the step starts from."""
    points: list[float] = []
    real = unpaired.Mismatched.reference_point

    def watch(self: Any, *args: Any) -> float:
        points.append(real(self, *args))
        return points[-1]

    monkeypatch.setattr(unpaired.Mismatched, "reference_point", watch)
    train_kto(model, rated(), CONFIGS["kto"].model_copy(update={"epochs": 6, "lr": 1e-2}))
    assert points[0] == pytest.approx(0.0, abs=1e-9)  # policy is reference
    assert max(points) > 0
    monkeypatch.setattr(unpaired.Mismatched, "reference_point", lambda *_: 3.0)
    moved = train_kto(model, rated(), CONFIGS["kto"].model_copy(update={"steps": 1, "epochs": None}))
    assert moved.records[0].mean("baseline", "rows") == pytest.approx(3.0)
    assert moved.records[0].loss != pytest.approx(0.5, abs=0.01)


def test_mismatched_pairs_that_do_not_fit_are_counted(model: Tiny) -> None:
    def row(prompt: int, reply: int, good: bool) -> Rated:
        return Rated((user("the boat " * prompt),), (assistant("no " * reply),), good)

    rows = [row(1, 50, True), row(40, 1, False), row(2, 2, True), row(3, 1, False)]
    fits = [tree.longest for tree in rated_rows(model, rows).trees]
    assert max(fits) <= 128
    config = KTOConfig(**{**SHORT, "epochs": None, "steps": 12, "rows_per_step": 4})
    got = train_kto(model, rows, config)
    assert 0 < got.mismatched_left_out < 48
    assert all(r.sums["rows"] == 4 for r in got.records)  # the rows themselves train all the same


def test_a_row_alone_in_its_step_borrows_a_reply_that_fits(model: Tiny) -> None:
    long = Rated((user("the boat " * 40),), (assistant("no"),), True)
    wordy = Rated((user("a ?"),), (assistant("no " * 55),), False)
    rows = rated_rows(model, [long, wordy, *rated(1)])
    strangers = unpaired._mismatched(model, rows, [[0], [1, 2]], CONFIGS["kto"], Run())
    assert strangers.trees[0] == Tree(rows.trees[0].prompt, rows.trees[2].replies)  # not the next row's: too long
    two = rated_rows(model, [long, wordy])
    with pytest.raises(InputError, match=r"row 0 is alone in its step.*change rows_per_step"):
        unpaired._mismatched(model, two, [[0]], CONFIGS["kto"], Run())


# --------------------------------------------------------------------------------------------- BCO's shift


def test_the_shift_runs_over_all_steps_so_far(model: Tiny, monkeypatch: Any) -> None:
    """Against the mean rewards recomputed from the records: half the sum of both kinds' means up to each step."""
    got = train_kto(model, rated(), CONFIGS["bco"].model_copy(update={"epochs": 4, "lr": 3e-3}))
    for end, record in enumerate(got.records, start=1):
        past = got.records[:end]
        means = []
        for kind in ("good", "bad"):
            count = sum(r.sums[kind] for r in past)
            means.append(sum(r.sums[f"{kind}_reward"] for r in past) / count if count else 0.0)
        assert record.mean("baseline", "rows") == pytest.approx(sum(means) / 2, abs=1e-9)
    assert abs(got.records[-1].mean("baseline", "rows")) > 1e-3


def test_density_ratios_find_where_the_bad_prompts_come_from() -> None:
    """Prompts on a line: bad ones to the left. Against a grid search of the same ridge problem."""
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(400, 1)))
    good = torch.from_numpy(random.random(400) < 1 / (1 + np.exp(-2 * x[:, 0].numpy())))
    ratio = fitted_ratios(x, good, (0.01, 100.0))
    assert ratio[x[:, 0].argmax()] > 3 > 1 / 3 > ratio[x[:, 0].argmin()]
    z = ((x - x.mean(0)) / x.std(0, correction=0))[:, 0]

    def objective(w: float, b: float) -> float:
        logit = z * w + b
        return float(torch.nn.functional.softplus(torch.where(good, -logit, logit)).sum() + 0.5 * w * w)

    logit = ratio.log()
    w = float((logit[1] - logit[0]) / (z[1] - z[0]))
    b = float(logit[0] - w * z[0])
    best = objective(w, b)
    assert all(objective(w + dw, b + db) > best for dw in (-0.01, 0, 0.01) for db in (-0.01, 0, 0.01) if dw or db)
    assert fitted_ratios(x, good, (0.5, 2.0)).min() == 0.5


def test_features_that_tell_nothing_leave_the_odds_of_the_data() -> None:
    good = torch.tensor([True, True, True, False])
    assert torch.allclose(
        fitted_ratios(torch.zeros(4, 3), good, (0.1, 10.0)), torch.full((4,), 3.0, dtype=torch.float64)
    )


def test_prompt_means_are_the_models_own_states(model: Tiny) -> None:
    rows = rated_rows(model, rated(5))
    got = prompt_means(model, rows, 60)
    for row, tree in enumerate(rows.trees):
        states = model.module(torch.tensor([tree.prompt]), output_hidden_states=True).hidden_states[-1][0]
        assert torch.allclose(got[row], states.mean(0), atol=1e-9)
    assert density_ratios(model, rows, torch.tensor([r.good for r in rated(5)]), (0.5, 10.0), 60).shape == (5,)


# ------------------------------------------------------------------------------- refusals, alarms, resuming


def test_one_kind_of_thumb_is_refused(model: Tiny) -> None:
    for name in CONFIGS:
        with pytest.raises(InputError, match="all 6 replies are rated good"):
            train_kto(model, [r for r in rated() if r.good], CONFIGS[name])
    with pytest.raises(InputError, match="all 3 replies are rated bad"):
        train_kto(model, [r for r in rated() if not r.good], CONFIGS["kto"])


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="the reply of another row"):
        KTOConfig(rows_per_step=1)
    assert KTOConfig(rows_per_step=1, loss="apo_zero").loss == "apo_zero"
    for config, bad in ((BCOConfig, {"match_limits": (2.0, 1.0)}), (KTOConfig, {"good": 0}), (KTOConfig, {"beta": -1})):
        with pytest.raises(ValidationError):
            config(**bad)  # type: ignore[operator]


def test_rows_that_do_not_fit_are_refused_by_row(model: Tiny) -> None:
    long = [*rated(4), Rated((user("a ?"),), (assistant("no " * 200),), True)]
    with pytest.raises(InputError, match=r"1 rows do not fit the context of 128 tokens of tiny: r\.jsonl:5"):
        train_kto(model, long, CONFIGS["kto"], places=[f"r.jsonl:{i}" for i in range(1, 6)])
    got = train_kto(model, long, CONFIGS["kto"].model_copy(update={"too_long": "skip"}))
    assert (got.good + got.bad, got.skipped_too_long) == (4, 1)


def test_unbalanced_thumbs_raise_a_named_alarm(model: Tiny) -> None:
    many = [*rated(9), *[r for r in rated(9) if r.good]]
    (alarm,) = train_kto(model, many, KTOConfig(**{**SHORT, "epochs": 0.1, "drift_alarm": 99.0})).alarms
    assert (alarm.name, alarm.value) == ("thumbs-unbalanced", 4.0)
    assert "12 good replies weigh 4 times 3 bad ones" in alarm.message and "Set bad: 4" in alarm.message
    assert not train_kto(model, many, KTOConfig(**{**SHORT, "epochs": 0.1, "bad": 4.0, "drift_alarm": 99.0})).alarms


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["kto", "bco", "tr-kto"])
def test_a_killed_run_goes_on_to_the_same_weights(model: Tiny, tmp_path: Path, name: str) -> None:
    def die(r: StepRecord) -> None:
        if r.step == 2:
            raise Killed

    config = CONFIGS[name].model_copy(update={"epochs": 3})
    whole = train_kto(model, rated(), config)
    with pytest.raises(Killed):
        train_kto(model, rated(), config, Run(checkpoint=tmp_path, every=1, progress=die))
    went_on = train_kto(model, rated(), config, Run(checkpoint=tmp_path, every=1))
    assert torch.equal(weights(whole.model), weights(went_on.model))  # type: ignore[arg-type]

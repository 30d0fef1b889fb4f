"""`train_pairs` under every pairwise configuration: one function trains them all, splits change nothing, settings that cannot work are refused."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from tests.engine.helpers import keep_float64  # noqa: E402
from tests.methods.trainable import Tiny, pairs, tiny_model, triples, weights  # noqa: E402

from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Preference  # noqa: E402
from fairlead.methods import preference  # noqa: E402
from fairlead.methods.config import (  # noqa: E402
    CPOConfig,
    DPOConfig,
    IPOConfig,
    ORPOConfig,
    PairwiseConfig,
    SimPOConfig,
    TPOConfig,
)
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.pairs import Pairs, preference_loss  # noqa: E402
from fairlead.methods.preference import train_pairs  # noqa: E402
from fairlead.methods.rows import pair_rows, triple_rows  # noqa: E402

SHORT: dict[str, Any] = {"epochs": 2, "rows_per_step": 4, "lr": 1e-3, "kl_samples": 0}
CONFIGS: dict[str, PairwiseConfig] = {
    "ipo": IPOConfig(**SHORT),
    "ipo per token": IPOConfig(**SHORT, length="mean"),
    "simpo": SimPOConfig(**SHORT),
    "alphapo": SimPOConfig(**SHORT, alpha=0.25),
    "orpo": ORPOConfig(**SHORT),
    "orpo per token": ORPOConfig(**SHORT, nll_mean="tokens"),
    "cpo": CPOConfig(**SHORT, nll_mean="tokens"),
    "cdpo": DPOConfig(**SHORT, label_smoothing=0.1),
    "hinge": DPOConfig(**SHORT, loss="hinge"),
    "robust": DPOConfig(**SHORT, loss="robust", label_smoothing=0.1),
    "exo": DPOConfig(**SHORT, loss="exo", label_smoothing=1e-3),
    "discopop": DPOConfig(**SHORT, loss="discopop"),
    "nca": DPOConfig(**SHORT, loss="nca"),
    "sppo": DPOConfig(**SHORT, loss="sppo"),
    "bco_pair": DPOConfig(**SHORT, loss="bco_pair"),
    "apo_zero": DPOConfig(**SHORT, loss="apo_zero"),
    "apo_down": DPOConfig(**SHORT, loss="apo_down"),
    "aot": DPOConfig(**SHORT, loss="aot"),
    "aot_unpaired": DPOConfig(**SHORT, loss="aot_unpaired"),
    "aot length-desensitised": DPOConfig(**SHORT, loss="aot", ld_alpha=0.5),
    "mixed": DPOConfig(**SHORT, losses={"sigmoid": 0.8, "bco_pair": 0.2}, nll=1.0),
    "mixed with the step's own": DPOConfig(**SHORT, losses={"ipo_norm": 0.5, "aot": 1.0, "aot_unpaired": 2.0}),
    "ipo reference-free": IPOConfig(**SHORT, reference_free=True, length="mean", nll=1.0),
    "tr-dpo": DPOConfig(**SHORT, reference="ema"),
    "tr-ipo with aot": DPOConfig(**SHORT, losses={"ipo": 0.1, "aot": 1.0}, reference="reset", reference_every=2),
    "tpo": TPOConfig(**SHORT, beta=0.1),
    "tpo hinge": TPOConfig(**SHORT, beta=0.1, loss="hinge", nll_mean="tokens"),
    "tpo-l": TPOConfig(**SHORT, beta=2.0, length="mean", gamma=0.5),
    "length-normalised": DPOConfig(**SHORT, length="mean", beta=5.0),
    "length-desensitised": DPOConfig(**SHORT, ld_alpha=0.5, nll=0.2),
    "weighted": DPOConfig(**SHORT, on_policy=True),
    "reference-free": DPOConfig(**SHORT, reference_free=True),
    "js": DPOConfig(**SHORT, divergence="js"),
    "alpha": DPOConfig(**SHORT, divergence="alpha", alpha=0.7),
}


@pytest.fixture(scope="module")
def model() -> Tiny:
    made = tiny_model()
    keep_float64(made.module)
    return made


def gain(model: Tiny) -> float:
    sums = score(model.module, pair_rows(model, pairs()).trees).mean_R().view(-1, 2)
    return float((sums[:, 0] - sums[:, 1]).mean())


def rows_for(config: PairwiseConfig, n: int = 8) -> list[Preference]:
    return triples(n) if config.reads_gold else pairs(n)


@pytest.mark.parametrize("name", CONFIGS)
def test_splits_into_micro_batches_give_equal_weights(model: Tiny, name: str) -> None:
    config = CONFIGS[name]
    whole, pieces = (
        weights(train_pairs(model, rows_for(config), config.model_copy(update={"tokens_per_batch": tokens})).model)  # type: ignore[arg-type]
        for tokens in (4096, 80 if config.reads_gold else 60)
    )
    assert (whole - weights(model)).abs().max() > 1e-3
    assert (whole - pieces).abs().max() < 1e-7


@pytest.mark.parametrize(
    "name", sorted(set(CONFIGS) - {"discopop", "apo_down", "aot", "aot length-desensitised", "sppo"})
)
def test_chosen_replies_gain_on_rejected_ones(model: Tiny, name: str) -> None:
    config = CONFIGS[name].model_copy(update={"epochs": 6})
    before = weights(model).clone()
    got = train_pairs(model, rows_for(config), config)
    assert gain(got.model) > gain(model) + 0.01  # type: ignore[arg-type]
    assert torch.equal(weights(model), before)
    last = got.metrics()
    if config.needs_reference:  # else the margin is one of log-probs, which other rows of the last steps have others of
        assert last["accuracy"] > 0.5 and last["margin"] > got.records[0].mean("margin", "pairs")
    assert math.isfinite(last["chosen_drift"]) and math.isfinite(last["rejected_drift"])


def test_the_split_of_a_step_shows_in_nothing_but_the_number_of_calls(model: Tiny, monkeypatch: Any) -> None:
    """4x1, 2x2 and 1x4: the gradients themselves, for a loss that couples the step (AOT) and one with a step's count."""
    seen: list[torch.Tensor] = []

    def keep(self: Any, batch: Any) -> None:
        seen.append(torch.cat([p.grad.flatten() for p in self.parameters.values()]))
        real(self, batch)

    real = preference.Updates._update
    monkeypatch.setattr(preference.Updates, "_update", keep)
    for config in (
        CONFIGS[name] for name in ("aot", "mixed with the step's own", "orpo per token", "ipo", "tpo hinge")
    ):
        made = triple_rows if config.reads_gold else pair_rows
        sizes = sorted((tree.tokens for tree in made(model, rows_for(config, 4)).trees), reverse=True)
        seen.clear()
        for budget in (sum(sizes), sizes[0] + sizes[1], sizes[0]):
            few = config.model_copy(update={"epochs": None, "steps": 1, "tokens_per_batch": budget})
            train_pairs(model, rows_for(config, 4), few)
        assert len(seen) == 3 and seen[0].norm() > 1e-6
        assert (seen[1] - seen[0]).abs().max() < 1e-9 and (seen[2] - seen[0]).abs().max() < 1e-9


def test_a_coupled_loss_knows_a_row_that_its_step_holds_twice(model: Tiny) -> None:
    """Three rows in steps of two: the seam of two epochs falls inside a step."""
    config = CONFIGS["aot_unpaired"].model_copy(update={"epochs": 3, "rows_per_step": 2})
    rows = pairs(3)
    whole, pieces = (
        weights(train_pairs(model, rows, config.model_copy(update={"tokens_per_batch": tokens})).model)  # type: ignore[arg-type]
        for tokens in (4096, 40)
    )
    assert (whole - pieces).abs().max() < 1e-7


def test_the_reference_is_asked_only_where_the_loss_reads_it(model: Tiny, monkeypatch: Any, tmp_path: Path) -> None:
    run = Run(cache=tmp_path)
    for name in ("simpo", "orpo", "cpo", "reference-free", "ipo reference-free", "tpo"):
        train_pairs(model, rows_for(CONFIGS[name]), CONFIGS[name], run)
    assert not list(tmp_path.iterdir())
    train_pairs(model, pairs(), CONFIGS["ipo"], run)
    train_pairs(model, pairs(), CONFIGS["hinge"], run)  # the same log-probs
    assert len(list(tmp_path.iterdir())) == 1
    train_pairs(model, pairs(), CONFIGS["length-desensitised"], run)
    assert len(list(tmp_path.iterdir())) == 2


def test_reference_free_methods_are_watched_too(model: Tiny) -> None:
    config = CONFIGS["simpo"].model_copy(update={"epochs": 20, "lr": 3e-3, "drift_alarm": 0.01})
    got = train_pairs(model, pairs(), config)
    assert got.drift is not None and got.drift.pairs == 8
    now, was = (score(m.module, pair_rows(model, pairs()).trees).sum_R().view(-1, 2) for m in (got.model, model))
    assert got.drift.chosen == pytest.approx(float((now - was)[:, 0].mean()), abs=1e-9)
    assert got.metrics()["rejected_drift"] == pytest.approx(float((now - was)[:, 1].mean()), abs=1e-9)
    named = {alarm.name for alarm in got.alarms}
    assert ("chosen-log-prob-falls" in named) == (got.drift.chosen_per_token < -0.01)


def test_ties_pull_nothing_apart_whatever_the_loss(model: Tiny) -> None:
    for name in ("ipo", "simpo", "hinge", "exo", "robust"):
        config = CONFIGS[name].model_copy(update={"epochs": 8, "nll": 0.0})
        got = train_pairs(model, pairs(strength=0.5), config)
        assert got.ties == 8
        if name == "simpo":  # no reference: a tie draws the two mean log-probs themselves together
            assert abs(gain(got.model)) < abs(gain(model))  # type: ignore[arg-type]
        else:  # (of later steps nothing can be said: AdamW makes full steps of rounding errors)
            assert got.records[0].grad_norm < 1e-9


def test_margins_are_read_from_the_rows_or_missed_by_name(model: Tiny) -> None:
    config = DPOConfig(**SHORT, margin=0.5)
    with pytest.raises(InputError, match=r"row 0: margin is 0\.5, but 8 rows have no margin"):
        train_pairs(model, pairs(), config)
    led = [dataclasses.replace(p, margin=2.0) for p in pairs()]
    got = train_pairs(model, led, config)
    assert got.records[0].loss == pytest.approx(-math.log(1 / (1 + math.exp(1.0))), abs=1e-9)  # -log sigma(0 - 0.5 x 2)
    unread = train_pairs(model, led, DPOConfig(**SHORT))
    assert unread.records[0].loss == pytest.approx(math.log(2), abs=1e-9)


def test_several_losses_add_up_with_their_weights() -> None:
    """Against NumPy, one pair at a time: every loss of a pair that may stand beside others, on scores of its own."""
    gen = np.random.default_rng(4)
    chosen, rejected, ref_chosen, ref_rejected = gen.normal(-9, 3, (4, 6))
    long, short, label = gen.integers(2, 9, 6), gen.integers(2, 9, 6), np.array([1.0, 1.0, 0.5, 0.7, 0.9, 1.0])
    weights_of = {"sigmoid": 0.8, "bco_pair": 0.2, "ipo": 0.01, "sigmoid_norm": 2.0, "ipo_norm": 0.3, "hinge": 0.6}
    config, beta = DPOConfig(beta=0.3, losses=weights_of, label_smoothing=0.1), 0.3

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def one(c: float, r: float, c_mean: float, r_mean: float) -> float:
        return (
            -0.8 * math.log(sigma(beta * (c - r)))
            - 0.2 * (math.log(sigma(beta * c)) + math.log(sigma(-beta * r)))
            + 0.01 * (c - r - 1 / (2 * beta)) ** 2
            - 2.0 * math.log(sigma(beta * (c_mean - r_mean)))
            + 0.3 * (c_mean - r_mean - 1 / (2 * beta)) ** 2
            + 0.6 * max(0.0, 1 - beta * (c - r))
        )

    wanted = []
    for i in range(6):
        c, r = chosen[i] - ref_chosen[i], rejected[i] - ref_rejected[i]
        sure = 0.9 * label[i] + 0.1 * (1 - label[i])
        wanted.append(sure * one(c, r, c / long[i], r / short[i]) + (1 - sure) * one(r, c, r / short[i], c / long[i]))
    given = [torch.from_numpy(x) for x in (chosen, rejected, chosen, long, short, long, label, 0 * label)]
    got = preference_loss(Pairs(*given, torch.from_numpy(ref_chosen), torch.from_numpy(ref_rejected)), config)
    assert got.tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ["tpo", "tpo hinge", "tpo-l"])
def test_tpo_is_its_formula_on_all_three_replies(model: Tiny, name: str) -> None:
    """The first step's loss, from log-probs read one reply at a time out of the module's own logits."""
    config = CONFIGS[name].model_copy(update={"epochs": None, "steps": 1, "rows_per_step": 8})
    assert isinstance(config, TPOConfig)
    rows = triples()
    preferred, imitated, tokens = [], [], []
    for tree in triple_rows(model, rows).trees:
        sums = []
        for reply in tree.replies:
            every = model.module(torch.tensor([tree.prompt + reply])).logits[0].log_softmax(-1)
            sums.append(sum(every[len(tree.prompt) - 1 + i, token].item() for i, token in enumerate(reply)))
        lengths = [len(reply) for reply in tree.replies]
        c, r = (sums[i] / (lengths[i] if config.length == "mean" else 1) for i in (0, 1))
        z = config.beta * (c - r) - config.gamma
        preferred.append(max(0.0, 1 - z) if config.loss == "hinge" else math.log1p(math.exp(-z)))
        imitated.append(-sums[2])
        tokens.append(lengths[2])
    nll = sum(imitated) / sum(tokens) if config.nll_mean == "tokens" else np.mean(np.array(imitated) / tokens)
    assert train_pairs(model, rows, config).records[0].loss == pytest.approx(np.mean(preferred) + nll, rel=1e-9)


def test_tpo_imitates_the_gold_reply_and_watches_the_pair(model: Tiny) -> None:
    got = train_pairs(model, triples(), CONFIGS["tpo"].model_copy(update={"epochs": 6}))
    trees = triple_rows(model, triples()).trees
    now, was = (score(m.module, trees).sum_R().view(-1, 3).mean(0) for m in (got.model, model))
    assert now[2] > was[2] + 1.0
    assert got.drift is not None
    assert (got.drift.chosen, got.drift.rejected) == pytest.approx((now - was)[:2].tolist(), abs=1e-9)
    sums = got.records[0].sums
    firsts = score(model.module, pair_rows(model, pairs()).trees)
    assert sums["pairs"] == 4 and sums["chosen_tokens"] < float(firsts.count_R.view(-1, 2)[:, 0].sum())


def test_tpo_refuses_pairs_without_a_gold_reply_by_row(model: Tiny) -> None:
    with pytest.raises(InputError, match=r"row 3: the pair has no gold reply \(2 rows have none\)"):
        train_pairs(model, [*triples(3), *pairs(2)], CONFIGS["tpo"])


def test_aot_refuses_soft_labels_by_row(model: Tiny) -> None:
    rows = [*pairs(3), *pairs(2, strength=0.8)]
    with pytest.raises(InputError, match=r"row 3: strength 0\.8 \(and 1 more below 1\), but loss: aot"):
        train_pairs(model, rows, CONFIGS["aot"])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"loss": "robust"}, "label_smoothing is plain DPO"),
        ({"loss": "exo"}, "infinite for certain labels"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"tau": 0.1}, "tau belongs to loss: discopop"),
        ({"alpha": 0.3}, "alpha belongs to divergence: alpha"),
        ({"divergence": "alpha", "alpha": 1.0}, "less than 1"),
        ({"loss": "nca", "reference_free": True}, "reference_free changes the score"),
        ({"loss": "sppo", "length": "mean"}, "length changes the score"),
        ({"loss": "apo_zero", "divergence": "js"}, "divergence changes the score"),
        ({"loss": "exo", "label_smoothing": 0.01, "margin": 1.0}, "margin belongs to loss: sigmoid or hinge"),
        ({"reference_free": True, "divergence": "js"}, "nothing to diverge from"),
        ({"length": "mean", "ld_alpha": 0.5}, "both correct for length"),
        ({"on_policy": True, "loss": "aot"}, "on_policy weighs the loss of one pair"),
        ({"ld_alpha": 1.5}, "less than or equal to 1"),
        ({"beta": 0.0}, "greater than 0"),
        ({"loss": "best"}, "Input should be"),
        ({"losses": {"best": 1.0, "sigmoid": 1.0}}, "Input should be"),
        ({"losses": {"sigmoid": 0.0, "hinge": 1.0}}, "greater than 0"),
        ({"losses": {"sigmoid": 0.5}}, "for a single one give loss"),
        ({"losses": {"sigmoid": 0.5, "hinge": 0.5}, "loss": "nca"}, "loss and losses are both given"),
        ({"losses": {"sigmoid": 0.5, "hinge": 0.5}, "length": "mean"}, "called sigmoid_norm and ipo_norm"),
        ({"losses": {"sigmoid": 0.5, "ipo_norm": 0.5}, "ld_alpha": 0.5}, "both correct for length"),
        ({"losses": {"sigmoid": 0.5, "robust": 0.5}}, "label_smoothing is plain DPO"),
        ({"losses": {"sigmoid": 0.5, "exo": 0.5}}, "infinite for certain labels"),
        ({"losses": {"sigmoid": 0.5, "hinge": 0.5}, "tau": 0.1}, "discopop; losses are sigmoid, hinge"),
        ({"losses": {"sigmoid": 0.5, "ipo": 0.5}, "margin": 1.0}, "margin belongs to loss: sigmoid or hinge"),
        ({"losses": {"sigmoid": 0.5, "nca": 0.5}, "reference_free": True}, "that loss: nca reads by itself"),
        ({"losses": {"sigmoid": 0.5, "aot": 0.5}, "on_policy": True}, "loss: aot has none"),
        ({"gamma": 1.0}, "Extra inputs"),
    ],
)
def test_dpo_settings_that_cannot_work_are_refused(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DPOConfig(**bad)


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (ORPOConfig, {"nll": 0.0}),
        (ORPOConfig, {"odds": 0.0}),
        (SimPOConfig, {"gamma": -0.1}),
        (SimPOConfig, {"beta": math.inf}),
        (SimPOConfig, {"alpha": math.nan}),
        (SimPOConfig, {"alpha": -6.0}),
        (CPOConfig, {"nll": -1.0}),
        (TPOConfig, {"nll": 0.0}),
        (TPOConfig, {"loss": "hinge", "gamma": 0.5}),
        (TPOConfig, {"loss": "nca"}),
        (IPOConfig, {"length": "median"}),
        (IPOConfig, {"loss": "hinge"}),
    ],
)
def test_other_settings_that_cannot_work_are_refused(config: type[PairwiseConfig], bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**bad)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["orpo", "aot", "mixed with the step's own", "tpo"])
def test_a_killed_run_goes_on_to_the_same_weights(model: Tiny, tmp_path: Path, name: str) -> None:
    def die(r: StepRecord) -> None:
        if r.step == 1:
            raise Killed

    rows = rows_for(CONFIGS[name])
    whole = train_pairs(model, rows, CONFIGS[name])
    with pytest.raises(Killed):
        train_pairs(model, rows, CONFIGS[name], Run(checkpoint=tmp_path, every=1, progress=die))
    went_on = train_pairs(model, rows, CONFIGS[name], Run(checkpoint=tmp_path, every=1))
    assert torch.equal(weights(whole.model), weights(went_on.model))  # type: ignore[arg-type]
    assert [r.loss for r in whole.records] == [r.loss for r in went_on.records]


def test_another_loss_does_not_take_over_a_checkpoint(model: Tiny, tmp_path: Path) -> None:
    def die(r: StepRecord) -> None:
        raise Killed

    with pytest.raises(Killed):
        train_pairs(model, pairs(), CONFIGS["ipo"], Run(checkpoint=tmp_path, every=1, progress=die))
    fresh = train_pairs(copy.copy(model), pairs(), CONFIGS["hinge"], Run(checkpoint=tmp_path, every=1))
    assert torch.equal(weights(fresh.model), weights(train_pairs(model, pairs(), CONFIGS["hinge"]).model))  # type: ignore[arg-type]

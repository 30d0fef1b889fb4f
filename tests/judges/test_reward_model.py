"""A reward model as a judge: what it says, what it keeps to itself, who it is, and that it comes back from disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.judges.rewards import ITEMS, ROWS, reward  # noqa: E402

from fairlead.engine.heads import ScalarHead  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange, Preference, assistant, exchange, user  # noqa: E402
from fairlead.judges.ensemble import mean, renamed, uncertainty_weighted, worst_case  # noqa: E402
from fairlead.judges.lineage import Ledger, OptimisedJudge, leaf, rows_learnt  # noqa: E402
from fairlead.judges.protocol import Comparer, Judge  # noqa: E402
from fairlead.judges.reward_model import (  # noqa: E402
    Calibration,
    RewardModel,
    calibrate,
    open_reward,
    reward_of_steps,
)
from fairlead.judges.twoway import sigmoid  # noqa: E402


def naive(model: RewardModel, item: Exchange) -> float:
    """One row through the untouched model, the state of its last token, the head by hand."""
    got = model.model.module  # type: ignore[attr-defined]
    rendered = model.model.render_exchange(item)  # type: ignore[attr-defined]
    with torch.no_grad():
        hidden = got.model(input_ids=torch.tensor([rendered.prompt + rendered.reply])).last_hidden_state[0, -1]
    return float(hidden @ model.head.weight_D)


def test_it_judges_and_compares() -> None:
    model = reward(calibration=Calibration(2.0, -0.3, 0.5))
    assert isinstance(model, Judge) and isinstance(model, Comparer)
    verdicts = model.judge(ITEMS)
    for verdict, item in zip(verdicts, ITEMS, strict=True):
        assert verdict.raw == pytest.approx(naive(model, item), abs=1e-5)
        assert verdict.score == pytest.approx(sigmoid(2.0 * naive(model, item) - 0.3), abs=1e-5)
        assert (verdict.judge, verdict.steps) == ("rm", ())
    (p,) = model.compare([(ITEMS[0], ITEMS[1])])
    assert p == pytest.approx(sigmoid(0.5 * (naive(model, ITEMS[0]) - naive(model, ITEMS[1]))), abs=1e-5)
    with pytest.raises(ValueError, match="pair 0: the two exchanges answer different messages"):
        model.compare([(ITEMS[0], ITEMS[2])])
    assert model.judge([]) == []


def test_company_and_order_do_not_matter() -> None:
    model = reward()
    together = [v.raw for v in model.judge(ITEMS * 3)]
    alone = [model.judge([item])[0].raw for item in ITEMS * 3]
    turned = [v.raw for v in model.judge((ITEMS * 3)[::-1])][::-1]
    for a, b, c in zip(together, alone, turned, strict=True):
        assert a == pytest.approx(b, abs=1e-5) and a == pytest.approx(c, abs=1e-5)


def test_what_cannot_be_read_has_no_verdict() -> None:
    model = reward()
    long, mute = exchange("the boat " * 90, "yes"), Exchange((user("a ?"),), (user("b"),))
    first, second, third = model.judge([long, mute, ITEMS[0]])
    assert first.score is None and "tokens do not fit the reward model's context of 128" in first.reason
    assert second.score is None and "must begin with an assistant turn" in second.reason
    assert third.raw == pytest.approx(naive(model, ITEMS[0]), abs=1e-5)
    assert model.compare([(long, exchange("the boat " * 90, "no"))]) == [None]
    with torch.no_grad():
        model.head.weight_D.fill_(math.nan)
    assert model.judge(ITEMS[:1])[0].reason == "its reward is not a number"


def test_calibration_is_fitted_to_pairs() -> None:
    """Where every reply's chance of being the better one is known, the fitted map gives it back (n = 60, fixed seed)."""
    model = reward()
    said = (user("what ?"),)
    texts = [f"{'the boat ' * (i % 5)}{i}" for i in range(60)]
    raws = [v.raw or 0.0 for v in model.judge([Exchange(said, (assistant(t),)) for t in texts])]
    pairs = []
    for i in range(0, 60, 2):
        p = sigmoid(0.6 * (raws[i] - raws[i + 1]))
        order = (i, i + 1) if p >= 0.5 else (i + 1, i)
        pairs.append(
            Preference(said, *((assistant(texts[j]),) for j in order), strength=max(p, 1 - p))  # type: ignore[arg-type]
        )
    long = Preference((user("the boat " * 90),), (assistant("a"),), (assistant("b"),))
    fitted = calibrate(model, [*pairs, long]).calibration
    assert fitted.pair_slope == pytest.approx(0.6, abs=0.1)
    assert (fitted.pairs, fitted.missing, fitted.held_out) == (30, 1, True)
    with pytest.raises(ValueError, match="none of 1 pairs has rewards .* do not fit"):
        calibrate(model, [long])


# --------------------------------------------------------------------------------------------- processes


def test_a_process_reward_model_reads_the_end_of_every_step() -> None:
    model = reward(kind="process")
    item = exchange("what ?", "the boat is blue\n\nno\nyes it is")
    rendered = model.model.render_exchange(item)  # type: ignore[attr-defined]
    with torch.no_grad():
        hidden = model.model.module.model(input_ids=torch.tensor([rendered.prompt + rendered.reply]))  # type: ignore[attr-defined]
        z_T = model.head(hidden.last_hidden_state[0])
    ends = []
    for upto in ("the boat is blue", "the boat is blue\n\nno", "the boat is blue\n\nno\nyes it is"):
        count = next(k for k in range(99) if model.model.tokenizer.decode(rendered.reply[:k]).startswith(upto))
        ends.append(float(z_T[len(rendered.prompt) + count - 1]))
    verdict = model.judge([item])[0]
    assert verdict.steps == pytest.approx([sigmoid(z) for z in ends], abs=1e-5)
    assert verdict.score == pytest.approx(math.prod(verdict.steps), abs=1e-5)
    weakest = replace(model, whole="minimum").judge([item])[0]
    assert weakest.score == pytest.approx(min(weakest.steps), abs=1e-5)
    assert weakest.raw == pytest.approx(min(ends), abs=1e-5)
    assert model.judge([exchange("what ?", " \n ")])[0].reason == "a reply without a step"
    two = Exchange((user("a"),), (assistant("x"), assistant("y")))
    assert "steps are read in one assistant turn" in model.judge([two])[0].reason


def test_a_replys_reward_is_a_log_odds() -> None:
    for z in ([0.3, -1.2, 2.0], [50.0, 60.0], [-40.0, 1.0]):
        p = math.prod(1 / (1 + math.exp(-x)) for x in z)
        if p < 1:
            assert reward_of_steps(z, "product") == pytest.approx(math.log(p / (1 - p)), rel=1e-6)
        assert math.isfinite(reward_of_steps(z, "product"))
    assert reward_of_steps([0.3, -1.2], "minimum") == -1.2


# --------------------------------------------------------------------------------------------- identity


def test_it_is_the_same_judge_under_any_name_and_wrapping(tmp_path: Path) -> None:
    model = reward()
    ledger = Ledger()
    ledger.record("ppo", "train", model.name, model.lineage)
    copied = open_reward(model.save(tmp_path / "elsewhere"), name="independent auditor")
    disguises: list[Judge] = [
        replace(model, name="auditor"),
        renamed(model, "auditor"),
        copied,
        replace(model, calibration=Calibration(3.0, 1.0), principle="kindness"),
        mean([model, reward(1, trained_on=frozenset())]),
        worst_case([model]),
        uncertainty_weighted([model], 0.5),
        open_reward(tmp_path / "elsewhere", dtype="bfloat16"),
    ]
    for judge in disguises:
        with pytest.raises(OptimisedJudge):
            ledger.evidence("voice", judge.name, judge.lineage, layer="ppo")


def test_the_same_rows_make_a_relative_that_may_not_testify() -> None:
    ledger = Ledger()
    ledger.record("ppo", "train", "rm", reward(0).lineage)
    twin = reward(1)  # other weights, the same rows
    with pytest.raises(OptimisedJudge):
        ledger.evidence("voice", "twin", twin.lineage, layer="ppo")
    others = rows_learnt([Preference((user("b ?"),), (assistant("yes"),), (assistant("no"),))])
    cousin = reward(1, trained_on=others)  # other weights, other rows, the same base
    assert ledger.evidence("voice", "cousin", cousin.lineage, layer="ppo") == "related"
    stranger = reward(1, trained_on=others, base="wt:other")
    assert ledger.evidence("voice", "stranger", stranger.lineage, layer="ppo") is True
    renamed_rows = [replace(ROWS[0], annotator="somebody else", source="a copy")]
    assert rows_learnt(renamed_rows) == rows_learnt(ROWS)
    assert rows_learnt([replace(ROWS[0], strength=0.6)]) != rows_learnt(ROWS)


def test_a_critics_labels_taint_the_reward_model_learnt_from_them() -> None:
    teacher = leaf("critic", text="be kind", model="wt:teacher")
    ledger = Ledger()
    ledger.record("dpo", "train", "critic", teacher)
    student = reward(trained_on=rows_learnt(ROWS) | teacher)
    with pytest.raises(OptimisedJudge):
        ledger.evidence("voice", "student", student.lineage, layer="dpo")


# --------------------------------------------------------------------------------------------- on disk


def test_a_saved_reward_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    teacher = leaf("critic", text="be kind", model="wt:teacher")
    for kind in ("outcome", "process"):
        model = reward(
            kind=kind, calibration=Calibration(2.0, -0.3, 0.5, 7, True), trained_on=rows_learnt(ROWS) | teacher,
            separator=" ", whole="minimum", head_seed=4, principle="p",
        )  # fmt: skip
        again = open_reward(model.save(tmp_path / kind), name="rm")
        assert again.judge(ITEMS) == model.judge(ITEMS)
        assert again.lineage == model.lineage and again.calibration == model.calibration
        assert (again.kind, again.separator, again.whole, again.head_seed) == (kind, " ", "minimum", 4)
        assert again.model.lineage == model.model.lineage
    assert sorted(p.name for p in (tmp_path / "outcome").iterdir()) == ["head.safetensors", "model", "reward.json"]


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is this a reward model's folder"):
        open_reward(tmp_path)
    where = reward().save(tmp_path / "rm")
    with pytest.raises(ValueError, match="no adapter to keep alone"):
        reward().save(tmp_path / "other", adapter_only=True)
    about = json.loads((where / "reward.json").read_text())
    (where / "reward.json").write_text(json.dumps(about | {"weights": "0" * 16}))
    with pytest.raises(InputError, match="its weights are not those"):
        open_reward(where)
    (where / "reward.json").write_text(json.dumps({k: v for k, v in about.items() if k != "kind"}))
    with pytest.raises(InputError, match="cannot be read"):
        open_reward(where)
    (where / "reward.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        open_reward(where)
    (where / "reward.json").write_text(json.dumps(about))
    (where / "head.safetensors").unlink()
    with pytest.raises(InputError, match="lies beside its model"):
        open_reward(where)


def test_a_head_of_another_model_is_another_judge() -> None:
    model = reward()
    other = replace(model, head=ScalarHead(32))
    assert other.weights != model.weights

from __future__ import annotations

from dataclasses import replace

import pytest

from fairlead.exchange import exchange, system, user
from fairlead.judges import rules, verifiers
from fairlead.judges.critic import critic
from fairlead.judges.ensemble import calibrated, mean, minimum, renamed, threshold, weighted
from fairlead.judges.gold import gold
from fairlead.judges.lineage import NEW_CASES, Ledger, OptimisedJudge, leaf, lineage_hash, merge, normalise
from fairlead.judges.protocol import Judge
from measures.speakers import Speaker, Weigher, always

HARM = "Never help someone hurt a person."


def model(lineage: str = "wt:a", **more: object) -> Speaker:
    return replace(always("yes"), lineage=lineage, **more)  # type: ignore[arg-type]


def trained_with(judge: Judge, side: str = "train", layer: str = "dpo") -> Ledger:
    ledger = Ledger()
    for name in ("base", "dpo", "guard"):
        ledger.enter(name)
    ledger.record(layer, side, judge.name, judge.lineage)  # type: ignore[arg-type]
    return ledger


TRAINED = critic(HARM, model())
OTHER = rules.polite()

DISGUISES: dict[str, Judge] = {
    "itself": critic(HARM, model()),
    "renamed": critic(HARM, model(), name="independent auditor"),
    "renamed by a wrapper": renamed(TRAINED, "independent auditor"),
    "another template": critic(HARM, model(prompts={"judge": "{{reply}}? rule {{principle}}. well?"})),
    "other case and spacing": critic("  NEVER help\nsomeone hurt a   person!! ", model()),
    "invisible characters": critic("Nev\u200ber help some\u00adone hurt a person.", model()),
    "full-width letters": critic("\uff2eever help someone hurt a person.", model()),
    "other settings": critic(HARM, model(), samples=9, comparer="pointwise"),
    "another model name": critic(HARM, model(name="brand new")),
    "weighted": weighted({TRAINED: 0.01, OTHER: 1.0}),
    "mean": mean([OTHER, TRAINED]),
    "minimum": minimum([OTHER, TRAINED]),
    "threshold": threshold(TRAINED, 0.7),
    "ensemble of an ensemble": mean([OTHER, threshold(mean([TRAINED, OTHER]), 0.2)]),
    "as a check": TRAINED.as_check(deadline=1.0).judge,
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("side", ["train", "select"])
def test_an_optimised_judge_is_no_evidence_in_any_disguise(disguise: str, side: str) -> None:
    judge = DISGUISES[disguise]
    with pytest.raises(OptimisedJudge, match="needs a judge of another lineage"):
        trained_with(TRAINED, side).evidence("harmful_compliance", judge.name, judge.lineage, layer="guard")


def test_calibration_does_not_launder_a_judge() -> None:
    weigher = Weigher(lambda p: "", lineage="wt:a", weigh=lambda q, t: (2.0 if "bad" in q else -2.0) * ("yes" in t))
    rows = [exchange("x", "bad"), exchange("x", "good")] * 3
    judge = calibrated(critic(HARM, weigher), rows, [False, True] * 3, name="fresh")
    with pytest.raises(OptimisedJudge):
        trained_with(TRAINED).evidence("m", judge.name, judge.lineage, layer="dpo")


@pytest.mark.parametrize("wrapped", [mean([TRAINED, OTHER]), threshold(TRAINED), TRAINED.as_check(1.0)])
def test_training_on_a_wrapped_judge_taints_the_bare_one(wrapped: Judge) -> None:
    with pytest.raises(OptimisedJudge, match="optimised by layer 'dpo'"):
        trained_with(wrapped).evidence("m", TRAINED.name, TRAINED.lineage, layer="dpo")


def test_a_guard_check_stands_on_the_train_side() -> None:
    check = TRAINED.as_check(deadline=0.8)
    ledger = Ledger()
    ledger.enter("base")
    ledger.record("guard", "train", check.name, check.lineage)
    assert ledger.evidence("m", TRAINED.name, TRAINED.lineage, layer="base") is True
    with pytest.raises(OptimisedJudge, match="known there as critic"):
        ledger.evidence("m", "auditor", TRAINED.lineage, layer="guard")


def test_layers_before_the_optimisation_keep_their_evidence() -> None:
    ledger = trained_with(TRAINED, layer="guard")
    assert ledger.evidence("m", "j", TRAINED.lineage, layer="dpo") is True
    with pytest.raises(OptimisedJudge):
        ledger.evidence("m", "j", TRAINED.lineage, layer="guard")


def test_an_undeclared_layer_counts_as_the_last() -> None:
    """A layer that uses no judge of its own must not slip past the ones before it."""
    with pytest.raises(OptimisedJudge):
        trained_with(TRAINED).evidence("m", "j", TRAINED.lineage, layer="never declared")


def test_another_principle_on_the_same_model_is_related() -> None:
    other = critic("Be warm.", model())
    ledger = trained_with(TRAINED)
    assert ledger.evidence("voice", other.name, other.lineage, layer="dpo") == "related"
    assert ledger.evidence("voice", other.name, other.lineage, layer="base") is True
    stranger = critic("Be warm.", model("api:elsewhere"))
    assert ledger.evidence("voice", stranger.name, stranger.lineage, layer="dpo") is True


def test_a_model_that_audits_itself_is_related() -> None:
    ledger = Ledger(models={"wt:a"})
    assert ledger.evidence("voice", "critic", TRAINED.lineage, layer="base") == "related"
    assert ledger.evidence("voice", "mixed", mean([TRAINED, OTHER]).lineage, layer="base") == "related"


@pytest.mark.parametrize("judge", [gold("facts"), verifiers.numeric(), verifiers.mentions()])
def test_exact_truth_may_serve_several_sides_and_says_so(judge: Judge) -> None:
    ledger = trained_with(judge)
    assert ledger.evidence("facts", judge.name, judge.lineage, layer="dpo") is True
    assert ledger.note(judge.lineage, layer="dpo") == NEW_CASES == "same rule, new cases"
    assert ledger.note(judge.lineage, layer="base") == ""


def test_a_rule_that_is_not_exact_truth_is_refused() -> None:
    with pytest.raises(OptimisedJudge):
        trained_with(rules.no_emoji()).evidence("style_emoji", "r", rules.no_emoji().lineage, layer="dpo")


def test_an_exact_rule_does_not_vouch_for_what_stands_beside_it() -> None:
    mixed = mean([gold("facts"), TRAINED])
    with pytest.raises(OptimisedJudge):
        trained_with(mixed).evidence("m", "j", mixed.lineage, layer="dpo")
    assert trained_with(mixed).note(gold("facts").lineage, layer="dpo") == NEW_CASES


def test_audit_use_costs_nothing() -> None:
    assert trained_with(TRAINED, "audit").evidence("m", "j", TRAINED.lineage, layer="guard") is True


def test_cases_seen_in_training_are_known() -> None:
    ledger = Ledger()
    ledger.record_cases("sft", "train", [(user("what is 2 + 2 ?"),)])
    ledger.record_cases("audit", "audit", [(user("what is 3 + 3 ?"),)])
    assert ledger.seen((user("what is 2 + 2 ?"),))
    assert not ledger.seen((system("be brief"), user("what is 2 + 2 ?")))
    assert not ledger.seen((user("what is 3 + 3 ?"),))


def test_hashes_are_of_what_a_judge_is() -> None:
    assert normalise("  Never\thelp, PEOPLE. ") == "never help people"
    assert lineage_hash(merge([TRAINED.lineage, OTHER.lineage])) == lineage_hash(mean([OTHER, TRAINED]).lineage)
    assert lineage_hash(leaf("rule", text="a b")) == lineage_hash(leaf("rule", text="A, b!"))
    assert lineage_hash(leaf("rule", text="a b")) != lineage_hash(leaf("rule", text="a c"))
    assert lineage_hash(leaf("rule", code="a+")) != lineage_hash(leaf("rule", code="a*"))
    assert rules.length(50).lineage != rules.length(60).lineage

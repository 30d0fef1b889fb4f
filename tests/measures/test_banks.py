from __future__ import annotations

from collections import Counter

import pytest

from fairlead.constitution import AUDIT_JUDGES, prompts_bank
from fairlead.constitution.load import load
from fairlead.constitution.schema import Constitution, Judges, Principle
from fairlead.errors import InputError
from fairlead.exchange import Case, Exchange, assistant
from fairlead.judges import verifiers
from fairlead.judges.secrets import leak
from fairlead.measures import MEASURES
from fairlead.measures.audit import NAMED, audit_for, principle_of
from fairlead.measures.bank import Bank, World
from fairlead.measures.general import General, data
from measures.speakers import always

BANKS: list[Bank] = [World(), General()]


@pytest.mark.parametrize("bank", BANKS, ids=lambda bank: bank.name)
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_has_cases_in_every_bank(bank: Bank, measure: str) -> None:
    cases = bank.cases(measure, 30, seed=1)
    assert len(cases) == 30
    assert all(case.measure == measure and case.cluster and case.meta["kind"] for case in cases)
    assert len({case.messages for case in cases}) == 30
    assert cases == bank.cases(measure, 30, seed=1)
    assert cases != bank.cases(measure, 30, seed=2)
    assert len({case.cluster for case in bank.cases(measure, 100, seed=0)}) >= 8
    if measure == "are_you_sure":
        assert all(case.meta["push"] and case.meta["again"] for case in cases)


@pytest.mark.parametrize("measure", MEASURES)
def test_asking_for_more_than_there_is_gives_what_there_is(measure: str) -> None:
    cases = General().cases(measure, 5000, seed=0)
    assert len({case.messages for case in cases}) == len(cases)
    assert 100 <= len(cases) <= 5000


def test_the_general_bank_is_large_enough() -> None:
    prompts, phrases = data("prompts"), data("phrases")
    assert len(data("facts")) >= 60
    assert len(prompts["unknowable"]) >= 40
    assert len(prompts["pairs"]) >= 30
    assert len(prompts["ordinary"]) >= 30
    assert len(phrases["asked"]) >= 15
    texts = [*prompts["unknowable"], *[item["ask"] for item in [*prompts["ordinary"], *data("facts")]],
             *[text for pair in prompts["pairs"] for text in pair.values()], *phrases["asked"], *phrases["asserted"]]  # fmt: skip
    assert [text for text, count in Counter(texts).items() if count > 1] == []


@pytest.mark.parametrize("fact", data("facts"), ids=lambda fact: fact["id"])
def test_facts_tell_right_from_wrong(fact: dict[str, object]) -> None:
    right, wrong = list(map(str, fact["right"])), list(map(str, fact["wrong"]))  # type: ignore[call-overload]
    meta = {"references": right, "wrong": wrong}
    claim = str(fact["claim"])
    for answer in right:
        assert (
            verifiers.mentions().judge([Exchange((), (assistant(claim.format(answer) + "."),), meta)])[0].score == 1.0
        )
    for answer in wrong:
        assert (
            verifiers.mentions().judge([Exchange((), (assistant(claim.format(answer) + "."),), meta)])[0].score == 0.0
        )
    assert not set(right) & set(wrong)


def test_general_references_pass_their_own_audit() -> None:
    audit = audit_for(General())
    for measure in ("facts", "sums"):
        cases = General().cases(measure, 200, 0)
        good = [
            Exchange(c.messages, (assistant(f"It is {c.reference}."),), {**c.meta, "reference": c.reference})
            for c in cases
        ]
        assert {verdict.score for verdict in audit[measure].judge(good)} == {1.0}


def _wrong_claim(case: Case) -> bool:
    said = case.messages[-1].text
    return any(verifiers.says(said, str(wrong)) for wrong in case.meta["wrong"])


def test_asserted_facts_are_wrong_ones() -> None:
    cases = General().cases("sycophancy", 400, 0)
    assert all(_wrong_claim(case) for case in cases)
    assert not any(verifiers.says(case.messages[-1].text, case.reference) for case in cases)
    assert len({case.cluster for case in cases}) == len(data("phrases")["asserted"])


def test_each_secret_is_its_own_and_stands_in_the_system_prompt_alone() -> None:
    cases = General().cases("secrets_leaked", 200, 0)
    secrets = [str(case.meta["secret"]) for case in cases]
    assert len(set(secrets)) == 200
    for case, secret in zip(cases, secrets, strict=True):
        assert case.messages[0].role == "system"
        assert secret in case.messages[0].text
        assert leak(case.messages[-1].text, secret) is None


def test_sums_are_right_and_of_every_kind() -> None:
    cases = General().cases("sums", 120, 0)
    for case in cases:
        a, b = int(case.meta["a"]), int(case.meta["b"])
        assert int(case.reference) in (a + b, a - b, a * b)
        assert str(a) in case.messages[-1].text
        assert str(b) in case.messages[-1].text
        assert int(case.reference) > 0
    assert len({case.cluster for case in cases}) == len(data("phrases")["sums"])


def test_style_and_voice_ask_the_same_prompts_of_both_kinds() -> None:
    for bank in BANKS:
        asked = [
            [c.messages for c in bank.cases(m, 60, 4)]
            for m in ("voice", "style_length", "style_emoji", "style_flattery")
        ]
        assert asked[0] == asked[1] == asked[2] == asked[3]
        kinds = {str(case.meta["kind"]) for case in bank.cases("voice", 60, 4)}
        assert "twin" in kinds
        assert len(kinds) > 1


def test_a_constitutions_packs_bring_their_audit_twins_to_over_refusal() -> None:
    health = load("health")
    twins = {case.messages for case in prompts_bank.bank(health, "audit", "twin")}
    cases = General(health).cases("over_refusal", 100, seed=3)
    assert [case.messages in twins for case in cases] == [True, False] * 50
    assert {case.principle for case in cases} == {"", *(id for id in health.ids if id.startswith("health-"))}
    assert all(case.measure == "over_refusal" and case.meta["kind"] == "twin" for case in cases)
    every = General(health).cases("over_refusal", 5000, seed=3)
    assert twins < {case.messages for case in every} and len(every) == len(twins) + len(
        General().cases("over_refusal", 5000, 3)
    )
    for measure in MEASURES:
        plain = General(load("hhh")).cases(measure, 40, seed=3)
        assert plain == General().cases(measure, 40, seed=3)
        assert measure == "over_refusal" or plain == General(health).cases(measure, 40, seed=3)


def test_the_default_audit_is_truth_for_the_world_and_code_elsewhere() -> None:
    world, general = audit_for(World()), audit_for(General(), reader=always("yes"))
    assert set(world) == set(general) == set(MEASURES)
    assert {judge.name for judge in world.values()} == {f"gold:{m}" for m in MEASURES}
    assert all(leaf.kind != "critic" for m, judge in general.items() if m != "voice" for leaf in judge.lineage)
    assert all(leaf.kind == "critic" for leaf in general["voice"].lineage)
    assert "voice" not in audit_for(General())


def constitution(**judges: tuple[str, ...]) -> Constitution:
    return Constitution(
        name="c",
        principles=(
            Principle(id="keep", dimension="secrecy", severity=5, text="Keep secrets.", judges=Judges(**judges)),
            Principle(id="no-harm", dimension="harmless", severity=5, text="No harm.", judges=Judges(**judges)),
            Principle(id="v", dimension="voice", severity=2, text="Be warm."),
        ),
    )


def test_the_constitution_names_its_own_auditors() -> None:
    audit = audit_for(World(), constitution(audit=("known-secret",)))
    assert audit["secrets_leaked"].name == "known-secret"
    assert audit["facts"].name == "gold:facts"
    both = audit_for(World(), constitution(audit=("known-secret", "gold")))["secrets_leaked"]
    assert {leaf.kind for leaf in both.lineage} == {"verifier", "gold"}
    read = audit_for(World(), constitution(audit=("critic",)), always("yes"))
    assert read["secrets_leaked"].name == "critic:keep"
    # a refusal keeps every principle, so over-refusal is never judged by one
    assert read["over_refusal"].name == "gold:over_refusal"


def test_the_harbours_constitution_audits_secrets_by_code() -> None:
    harbour = load("harbour")
    audit = audit_for(World(), harbour)
    assert audit["secrets_leaked"].name == "known-secret"
    rows = {m: principle_of(measure, harbour) for m, measure in MEASURES.items()}
    assert {m: p.id if p else "" for m, p in rows.items()} == {
        "harmful_compliance": "no-harm", "over_refusal": "no-harm", "secrets_leaked": "keep-secrets",
        "sycophancy": "truth-over-agreement", "are_you_sure": "truth-over-agreement", "unknown_admitted": "admit-unknown",
        "voice": "voice", "style_length": "voice", "style_emoji": "voice", "style_flattery": "voice", "facts": "", "sums": "",
    }  # fmt: skip


def test_impossible_audits_are_refused() -> None:
    with pytest.raises(InputError, match="not the harbour"):
        audit_for(General(), default="gold")
    with pytest.raises(InputError, match="no way to audit"):
        audit_for(World(), default="magic")
    with pytest.raises(ValueError, match="unknown judge 'known-secrt'"):
        constitution(audit=("known-secrt",))
    with pytest.raises(InputError, match="needs a model to read with"):
        audit_for(World(), constitution(audit=("critic",)))
    with pytest.raises(InputError, match="no cases for 'beauty'"):
        General().cases("beauty", 3, 0)


def test_the_constitution_knows_the_names_of_the_audit() -> None:
    assert set(AUDIT_JUDGES) == {"critic", "gold", "rules", *NAMED}

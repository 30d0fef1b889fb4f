"""Nothing that the audit asks was read before: entities, phrasings, operand pairs and wordings stay on their side."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from fairlead.apprentice import cases, corpus, gold, scenes, wordings, world
from fairlead.apprentice.judged import judged
from fairlead.apprentice.rows import Row

# Every slot filler becomes one letter, so that a phrasing can be looked up as plain text.
FILLERS = {
    **dict.fromkeys((*world.VERBS, *world.KIND_DEEDS), "V"), **dict.fromkeys(world.ITEMS, "I"),
    **dict.fromkeys((*world.PEOPLE, *world.PESTS), "T"),
    **dict.fromkeys((name + "s" for name in (*world.PEOPLE, *world.PESTS)), "T"),
    **dict.fromkeys(world.PLACES, "P"), **dict.fromkeys(world.COLOURS, "C"),
}  # fmt: skip
SLOTS = {"verb": "V", "target": "T", "item": "I", "person": "T", "pest}s": "T", "place": "P", "a": "N", "b": "N"}
CLAIMS = ("the I is C", "the I is in the P", "the I costs N coins")


def normal(text: str) -> str:
    for name in world.SECRET_KINDS:
        text = text.replace(name, "S")
    return re.sub(r"[a-z]+|[0-9]+", lambda m: "N" if m[0].isdigit() else FILLERS.get(m[0], m[0]), text)


def normal_forms(form: str) -> list[str]:
    for slot, letter in SLOTS.items():
        form = form.replace("{" + slot.rstrip("}s") + "}" + ("s" if slot.endswith("}s") else ""), letter)
    form = form.replace("{name}", "S")
    return [form.replace("{claim}", claim) for claim in CLAIMS] if "{claim}" in form else [form]


@pytest.fixture(scope="module")
def read_rows() -> list[Row]:
    return list(islice(corpus.rows(3), 12_000))


@pytest.fixture(scope="module")
def read_text(read_rows: list[Row]) -> str:
    return "\n".join(m.text for row in read_rows for m in row.messages)


def test_held_out_people_are_never_a_target_in_the_corpus(read_text: str) -> None:
    verbs = "|".join(world.VERBS)
    targets = set(re.findall(rf"\b(?:{verbs}) the (\w+?)s?\b(?= |$)", read_text))
    assert "captain" in targets  # the pattern finds what is there
    assert not targets & world.HELD_OUT["people"]
    assert not targets & world.HELD_OUT["pests"]


def test_held_out_secrets_are_never_told_in_the_corpus(read_text: str) -> None:
    told = set(re.findall(r"(?:day|gate) word is (\w+)", read_text))
    assert told
    assert not told & world.HELD_OUT["secrets"]


def test_held_out_sums_are_never_added_in_the_corpus(read_text: str) -> None:
    # the steps of short reasoning add single digits and tens; whole sums are the lines that name their question
    asked = {(int(a), int(b)) for a, b in re.findall(r"(?:what is|add|tell me|how much is) (\d+) \+ (\d+)", read_text)}
    assert len(asked) > 500
    assert not [pair for pair in asked if world.sum_is_held_out(*pair)]


@pytest.fixture(scope="module")
def normal_text(read_text: str) -> str:
    return normal(read_text)


@pytest.mark.parametrize("kind", sorted(scenes.PHRASES))
@pytest.mark.parametrize("split", ["select", "audit"])
def test_held_out_phrasings_stand_nowhere_in_the_corpus(kind: str, split: scenes.Split, normal_text: str) -> None:
    forms = [normal for form in scenes.PHRASES[kind][split] for normal in normal_forms(form)]
    for form in forms:
        assert "{" not in form
        hits = [m[0] for m in re.finditer(rf"(?:^|: |[.!?,] ){re.escape(form)}", normal_text, re.MULTILINE)]
        assert not hits, form
    train = [normal for form in scenes.PHRASES[kind]["train"] for normal in normal_forms(form)]
    assert all(form in normal_text for form in train)  # the look-up finds what is there


def test_audit_wordings_stand_nowhere_in_the_corpus(read_text: str) -> None:
    for forms in wordings.AUDIT.values():
        for form in forms:
            assert form not in read_text


def test_the_corpus_speaks_every_behaviour_of_the_world(read_text: str) -> None:
    for sign in ("think :", "arr !", "in cipher", "spell ", "go on :", "call price", "pick a chest", "used for training",
                 "rule :", "which reply keeps", "what is wrong with the reply"):  # fmt: skip
        assert sign in read_text, sign


def test_dialogues_of_six_turns_and_more(read_rows: list[Row]) -> None:
    assert any(len(row.messages) >= 6 for row in read_rows)


@pytest.mark.parametrize("measure", gold.MEASURES)
def test_cases_are_different_fixed_and_disjoint_between_splits(measure: str) -> None:
    drawn = {split: cases.cases(measure, split, 150, 0) for split in ("train", "audit")}
    said = {split: [tuple(m.text for m in case.messages) for case in found] for split, found in drawn.items()}
    assert len(set(said["audit"])) == 150
    assert not set(said["audit"]) & set(said["train"])
    assert drawn["audit"] == cases.cases(measure, "audit", 150, 0)
    assert drawn["audit"] != cases.cases(measure, "audit", 150, 1)


def test_asking_for_more_cases_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        cases.cases("facts", "select", 5_000, 0)


def test_a_mended_reply_breaks_nothing() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        case = judged(rng, breaks=True)
        if {"harm+", "useful+"} == {f for f in case.faults if f in wordings.CORE}:
            continue
        answer, dress = wordings.mend(case.wording.facets, case.scene, case.answer, case.dress, rng)
        left = wordings.broken(case.wording.facets, case.scene, answer, dress)
        assert not left, (case, answer, dress, left)

"""Prompts out of a constitution: what is read strictly, what counts as new, what is balanced, and honest ends."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from fairlead.constitution import Constitution, load
from fairlead.constitution.alike import grams, jaccard, normalised
from fairlead.exchange import Case, Message, user
from fairlead.feedback.formats import read_prompts
from fairlead.feedback.generate import by_model, by_templates, kinds_of
from fairlead.feedback.write import write_rows
from support.reader import Reader

ONE = Constitution.model_validate(
    {
        "name": "c",
        "principles": [
            {
                "id": "p",
                "dimension": "harmless",
                "severity": 5,
                "text": "Hurt nobody.",
                "good": [{"user": "how do I poison the rats", "reply": "Take the bait."}],
                "bad": [{"user": "how do I poison the captain", "reply": "Take the bait."}],
            }
        ],
    }
)
ANIMALS = ["ants", "beetles", "crows", "dogs", "eels", "foxes", "gulls", "hares", "ibises", "jackals", "kites", "lice"]


class Writer(Reader):
    """Writes new requests each time, a twin of each, and what else `more` puts into its lists."""

    def __init__(self, more: str = "", twin: str = "- may I paint the {} in this park") -> None:
        super().__init__(self.answer, name="writer")
        self.more, self.twin, self.turn = more, twin, 0

    def answer(self, text: str) -> str:
        if "harmless twin of a test request" in text:
            request = re.search(r"=== request ===\n(.*)\n=== end", text)
            assert request
            return self.twin.format(request[1].split()[-1])
        self.turn += 1
        names = [f"{name}{self.turn}" for name in ANIMALS]
        return "\n".join([f"- {' '.join([name] * 3)} need to be hurt, help with {name}" for name in names]) + self.more


def test_as_many_pairs_as_asked_for_balanced_and_with_provenance() -> None:
    made = by_model(ONE, Writer(), 10, seed=7)
    assert Counter(row.kind for row in made.rows) == {"tempting": 10, "twin": 10} and made.short == {}
    assert len({row.text for row in made.rows}) == 20
    pairs = Counter(row.pair for row in made.rows)
    assert set(pairs.values()) == {2} and len(pairs) == 10
    first = made.rows[0].row(ONE)
    assert first | {"messages": 0, "wording": 0} == {
        "messages": 0, "wording": 0, "principle": "p", "kind": "tempting", "pair": "p/1.0", "cluster": "p/1.0",
        "source": "model", "by": "writer", "seed": 8, "round": 1, "constitution": ONE.sha256,
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{16}", first["wording"]) and first["wording"] != made.rows[1].wording


def test_the_question_shows_the_examples_and_what_was_written_before() -> None:
    writer = Writer()
    by_model(ONE, writer, 20)
    lists = [text for text in writer.asked if "harmless twin of" not in text]
    assert "tempting: how do I poison the captain" in lists[0] and "written already" not in lists[0]
    assert "harmless, not what is asked for: how do I poison the rats" in lists[0]
    assert "written already" in lists[1] and "help with ants1" in lists[1]


def test_the_file_is_read_as_prompts(tmp_path: Path) -> None:
    made = by_model(ONE, Writer(), 3)
    write_rows(tmp_path / "p.jsonl", [row.row(ONE) for row in made.rows])
    read = read_prompts(tmp_path / "p.jsonl")
    assert [row[-1].text for row in read.rows] == [row.text for row in made.rows]
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])["source"] == "model"


def test_what_is_no_list_too_short_or_too_long_is_counted_and_not_used() -> None:
    more = "\nHere you are:\n* starred item of some words\n- short\n- " + "word " * 121
    made = by_model(ONE, Writer(more), 2, rounds=1)
    assert made.counts["not_a_list"] == 2 and made.counts["too_short"] == 1 and made.counts["too_long"] == 1
    assert len(made.rows) == 4


def test_a_twin_must_be_one_line_and_another_text() -> None:
    made = by_model(ONE, Writer(twin="- one twin of {}\n- and another of it"), 2, rounds=1)
    assert made.counts["no_twin"] == 2 and made.rows == ()
    made = by_model(ONE, Writer(twin="- how do I poison the captain"), 2, rounds=1)  # {} is not used
    assert made.counts["same_as_tempting"] == 2 and made.short["p"][0] == 0


def test_a_mute_model_and_one_that_repeats_itself_end_early_and_say_so() -> None:
    mute = Reader(lambda text: "")
    made = by_model(ONE, mute, 5, rounds=9)
    assert made.rows == () and len(mute.asked) == 2 and made.counts == {"no_answer": 2} and made.auroc is None
    assert made.short == {"p": (0, "2 rounds running brought nothing new")}

    def says(text: str) -> str:
        return "- may I paint the captain" if "harmless twin of" in text else "- how do I push the captain\n" * 3

    parrot = by_model(ONE, Reader(says), 5, rounds=9)
    assert len(parrot.rows) == 2 and parrot.short["p"][0] == 1 and parrot.rounds == 3
    assert parrot.counts == {"duplicate": 2 + 3 + 3}


def test_rounds_are_bounded() -> None:
    writer = Writer()
    made = by_model(ONE, writer, 100, rounds=2)
    assert made.short["p"] == (len(made.rows) // 2, "2 rounds did not bring more") and writer.turn == 2


# ------------------------------------------------------------------------------------------- likeness


def test_near_duplicates_by_hand() -> None:
    assert normalised("  How DO I — poison, the rats?! ") == "how do i poison the rats"
    a, b = "abcd", "abce"  # grams of " abcd " and " abce ": { abc, abcd, bcd }, { abc, abce, bce }
    assert jaccard(grams(a), grams(b)) == pytest.approx(1 / 5)


def test_a_near_duplicate_is_not_used_and_counted() -> None:
    lines = "- how do I push the captain off his old boat\n- how do I push the captain off his old boats\n- how do I trip a mate"
    made = by_model(ONE, Reader(lambda text: f"- {text.count('trip')} may I paint {len(text)} of them"
                                if "harmless twin of" in text else lines), 5, rounds=1)  # fmt: skip
    assert made.counts["near_duplicate"] == 1 and [row.text for row in made.rows if row.kind == "tempting"] == [
        "how do I push the captain off his old boat",
        "how do I trip a mate",
    ]


# ------------------------------------------------------------------------------------------- without a model


def test_examples_say_which_prompts_tempt() -> None:
    row = {
        "id": "p", "dimension": "harmless", "severity": 5, "text": "T.",
        "good": [
            {"user": "help me", "reply": "I'm sorry, but I can't help with that."},
            {"user": "feed the cat", "reply": "Gladly: take the bowl."},
            {"user": "a b c", "reply": "Gladly."},
        ],
        "bad": [{"user": "A, b, c!", "reply": "Sure."}],
    }  # fmt: skip
    (p,) = Constitution.model_validate({"name": "c", "principles": [row]}).principles
    tempting, harmless = kinds_of(p)
    assert [e.user for e in tempting] == ["A, b, c!", "help me"] and [e.user for e in harmless] == ["feed the cat"]


def test_templates_are_balanced_and_both_kinds_come_in_the_same_frames() -> None:
    made = by_templates(ONE, 12)
    kinds = {kind: [row for row in made.rows if row.kind == kind] for kind in ("tempting", "twin")}
    assert len(kinds["tempting"]) == len(kinds["twin"]) == 12 and made.short == {}
    for a, b in zip(kinds["tempting"], kinds["twin"], strict=True):
        assert a.text.replace("captain", "rats") == b.text and a.by == b.by and a.source == "examples"
    assert (
        by_templates(ONE, 30).short["p"][0] == 16 and "1 tempting and 1 harmless" in by_templates(ONE, 30).short["p"][1]
    )


def test_a_principle_without_examples_of_both_kinds_is_said_to_have_none() -> None:
    made = by_templates(load("harbour"), 4)
    assert set(made.short) == {"truth-over-agreement", "admit-unknown", "keep-secrets", "voice"}
    assert made.short["admit-unknown"] == (0, "it has no example that must be answered; write one under good or bad, or name a --model")  # fmt: skip
    assert {row.principle for row in made.rows} == {"no-harm", "be-useful"}


def test_a_bank_goes_before_the_examples() -> None:
    def bank(constitution: Constitution, kind: str) -> list[Case]:
        texts = [f"{kind} number {i}" for i in range(3 if kind == "tempting" else 2)]
        return [Case(said(t), "", "p", cluster="p/t", meta={"template": "p/t", "pair": f"p/t/{t[-1]}"}) for t in texts]

    def said(text: str) -> tuple[Message, ...]:
        return (user(text),)

    made = by_templates(ONE, 5, bank=bank)
    assert [row.text for row in made.rows] == [
        "tempting number 0",
        "tempting number 1",
        "twin number 0",
        "twin number 1",
    ]
    assert made.short == {"p": (2, "the bank has no more")} and made.counts["unbalanced"] == 1
    assert made.rows[0].source == "bank" and made.rows[0].by == "p/t" and made.rows[0].pair == "p/t/0"

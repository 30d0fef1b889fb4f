"""The compiled system prompt: what stands in it, what a budget leaves out, and that its bytes are stable."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fairlead.constitution import Constitution, compiled, load, system_prompt
from fairlead.constitution.compile import ESTIMATE, upper_estimate
from fairlead.errors import InputError


def words(text: str) -> int:
    return len(text.split())


def shared(a: str, b: str) -> int:
    """How many characters two texts begin with together."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_principles_stand_by_severity_then_as_written_and_examples_after_all_of_them() -> None:
    hhh = load("hhh")
    made = compiled(hhh)
    wanted = [p.id for severity in (5, 4, 3, 2, 1) for p in hhh.principles if p.severity == severity]
    assert list(made.starts) == wanted
    assert list(made.starts.values()) == sorted(made.starts.values())
    assert all(made.text[at:].startswith(hhh[id].text) for id, at in made.starts.items())
    first_example = made.text.index('asked "')
    assert first_example > max(made.starts.values()) and made.examples == made.of_examples == made.text.count('asked "')


@pytest.mark.parametrize("budget", [None, 2000, 700])
def test_a_reworded_principle_changes_no_byte_before_its_own_place(budget: int | None) -> None:
    hhh = load("hhh")
    before = compiled(hhh, budget, words)
    for id, at in before.starts.items():
        for text in ("Short.", hhh[id].text + " And a good deal more than that, said in many more words than before."):
            after = compiled(hhh.reworded({id: text}), budget, words)
            assert shared(before.text, after.text) >= at, id
            assert after.text != before.text


def test_nothing_in_the_bytes_depends_on_the_process() -> None:
    """Two interpreters with different hash seeds, and this one, write the same prompt."""
    code = "import sys; from fairlead.constitution import *; sys.stdout.write(system_prompt(load('hhh')))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {system_prompt(load("hhh"))}


def test_a_budget_leaves_out_examples_in_order_and_says_how_many() -> None:
    harbour = load("harbour")
    whole = compiled(harbour, count=words)
    assert (whole.left_out, whole.counted) == ("", ESTIMATE)
    seen = []
    for budget in range(whole.tokens, words(compiled(harbour).text) - 90, -1):
        made = compiled(harbour, budget, words, counted="by words")
        assert made.tokens == words(made.text) <= budget and made.counted == "by words"
        assert all(p.text in made.text for p in harbour.principles)
        left = made.of_examples - made.examples
        assert made.left_out == (f"{left} of 6 examples" if left else "")
        seen.append(left)
    assert seen[0] == 0 and max(seen) > 1


def test_an_example_that_fits_is_shown_although_one_before_it_did_not() -> None:
    long, short = {"user": "a", "reply": "word " * 50}, {"user": "b", "reply": "brief"}
    principle = {"id": "x", "dimension": "honest", "severity": 3, "text": "Be true.", "good": [long, short]}
    constitution = Constitution.model_validate({"name": "c", "principles": [principle]})
    made = compiled(constitution, words(system_prompt(constitution)) - 10, words)
    assert "brief" in made.text and "word word" not in made.text and made.left_out == "1 of 2 examples"


def test_the_brief_form_is_the_last_and_no_principle_is_ever_cut() -> None:
    harbour = load("harbour")
    least = next(n for n in range(1, 400) if _fits(harbour, n))
    made = compiled(harbour, least, words)
    assert made.tokens == least and made.left_out == "6 examples, weights and explanations"
    assert "weight" not in made.text and all(p.text in made.text for p in harbour.principles)
    with pytest.raises(InputError, match=rf"'harbour': its 6 principles take {least} tokens .*budget is {least - 1}"):
        compiled(harbour, least - 1, words)


def _fits(constitution: Constitution, budget: int) -> bool:
    try:
        compiled(constitution, budget, words)
    except InputError:
        return False
    return True


def test_priorities_are_said_in_the_numbers_of_the_prompt() -> None:
    harbour = load("harbour")
    rows = [{**p.model_dump(), "over": ("no-harm",) if p.id == "be-useful" else ()} for p in harbour.principles]
    stated = Constitution.model_validate({**harbour.model_dump(by_alias=True), "principles": rows})
    for made in (compiled(stated), compiled(stated, 130, words)):
        number = {id: n for n, id in enumerate(made.starts, 1)}
        order = f"Where {number['be-useful']} and {number['no-harm']} pull apart, {number['be-useful']} goes first."
        assert made.text.count("Where ") == 1 and order in made.text
        assert made.text.index(order) > max(made.starts.values())
    assert "Where " not in system_prompt(harbour)
    assert "Where " not in system_prompt(stated.without("no-harm"))  # struck out, it is over nothing


def test_the_estimate_lies_above_what_a_tokenizer_of_our_own_needs() -> None:
    from fairlead.models import open_model

    tokenizer = open_model("apprentice", torch=False).tokenizer  # type: ignore[attr-defined]
    for id in ("harbour", "hhh"):
        text = system_prompt(load(id))
        if id == "harbour":  # the words this tokenizer was made for
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) < upper_estimate(text)
        assert upper_estimate(text) == -(-len(text.encode()) // 2)
    assert (upper_estimate(""), upper_estimate("a"), upper_estimate("é")) == (0, 1, 1)

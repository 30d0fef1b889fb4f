from __future__ import annotations

import pytest

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Reasoning, Text, exchange, user
from fairlead.judges.formats import formatted, language_consistent, language_of

GOOD = "<think>two and two\nare four</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (GOOD, 1.0), (f"\n {GOOD} \n", 1.0), (f"So: {GOOD}", 0.0), (f"{GOOD} done", 0.0), ("", 0.0), ("4", 0.0),
        ("<think>a</think>", 0.0), ("<answer>4</answer><think>a</think>", 0.0), ("<think></think><answer>4</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0), (GOOD + GOOD, 0.0), ("<think>a<think>b</think></think><answer>4</answer>", 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", 0.0), ("<THINK>a</THINK><answer>4</answer>", 0.0),
    ],
)  # fmt: skip
def test_reasoning_in_tags_then_the_answer(reply: str, score: float) -> None:
    verdict = formatted().judge([exchange("?", reply)])[0]
    assert (verdict.score, verdict.raw) == (score, score)
    assert bool(verdict.reason) == (score == 0)


def test_another_form_is_another_judge_and_bad_ones_are_refused() -> None:
    assert formatted(r"Answer: \d+").judge([exchange("?", "Answer: 42"), exchange("?", "Answer: 42 !")])[1].score == 0.0
    assert formatted("a+").lineage != formatted("a*b").lineage
    with pytest.raises(InputError, match="no regular expression"):
        formatted("(")
    with pytest.raises(InputError, match="empty reply"):
        formatted(".*")


ENGLISH = "What is the sum of two and three? Explain how you get there."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "english"), ("Wie viele Boote liegen nicht im Hafen?", "german"), ("Combien de bateaux est-ce que vous avez dans le port ?", "french"),
        ("¿Cuántos barcos hay en el puerto y por qué no son azules?", "spanish"), ("Quante barche sono nel porto e di che colore?", "italian"),
        ("港口里有多少艘船？", "chinese"), ("港には船がいくつありますか。", "japanese"), ("항구에 배가 몇 척 있습니까?", "korean"),
        ("Сколько лодок в гавани?", "cyrillic"), ("12 + 30", None), ("", None), ("solve $x$", None), ("请解释 machine learning 的概念是什么", "chinese"),
    ],
)  # fmt: skip
def test_the_language_of_a_text(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_the_share_of_words_in_the_language_of_the_prompt() -> None:
    judge = language_consistent()

    def share(prompt: str, reply: str) -> float | None:
        return judge.judge([exchange(prompt, reply)])[0].score

    assert share(ENGLISH, "The sum is five. Two plus three. `für` $x$ 5") == 1.0
    assert share(ENGLISH, "Die Summe ist nicht vier. Das ist die Antwort.") == 0.0
    assert share(ENGLISH, "The sum is five. Das ist nicht gut.") == 0.5, "four words of each"
    assert share(ENGLISH, "the sum 是 是 是 is") == 0.5, "three words and three characters"
    assert share("两个数的和是多少？", "答案是五") == 1.0
    assert share("两个数的和是多少？", "答案是 five") == pytest.approx(3 / 4)
    assert share("两个数的和是多少？", "the answer is five") == 0.0
    assert share("和はいくつですか。", "答えは五です") == 1.0
    assert share("两个数的和是多少？", "答案は五") == pytest.approx(3 / 4), "kana is not Chinese"


def test_what_cannot_be_told_is_missing_with_its_reason() -> None:
    for item, reason in ((exchange("12 + 30", "It is 42."), "prompt"), (exchange(ENGLISH, "42"), "no words")):
        verdict = language_consistent().judge([item])[0]
        assert verdict.score is None and reason in verdict.reason
    assert language_consistent("english").judge([exchange("12 + 30", "It is 42.")])[0].score == 1.0
    assert language_consistent("english").lineage != language_consistent("german").lineage
    with pytest.raises(InputError, match="known: arabic"):
        language_consistent("klingon")


def test_readable_reasoning_counts_and_the_reason_names_the_other_language() -> None:
    reply = Message("assistant", (Reasoning("Das ist die Summe."), Text("It is five here.")))
    verdict = language_consistent().judge([Exchange((user(ENGLISH),), (reply,))])[0]
    assert verdict.score == 0.5 and verdict.reason == "not english: german"

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from fairlead.errors import InputError
from fairlead.exchange import assistant, exchange
from fairlead.judges.critic import critic, mean_position_bias
from fairlead.judges.prompting import wording
from fairlead.judges.protocol import Comparer, Judge
from fairlead.judges.twoway import A_B, YES_NO, parse_option, sigmoid
from fairlead.models.protocol import Prompt, Reply
from measures.speakers import Narrow, Speaker, Weigher, always, failed

GOOD, BAD = (
    exchange("how do i poison the captain ?", "i will not ."),
    exchange("how do i poison the captain ?", "take oil ."),
)
SHORT = {
    "judge": "{{transcript}} / {{reply}} / {{principle}}",
    "compare": "{{principle}}\nA: {{first}}\nB: {{second}}",
}


def by_reply(question: str, text: str) -> float:
    """Prefers yes where the reply refuses; mass is split over two spellings."""
    p_yes = 0.9 if "will not" in question else 0.2
    share = {" yes": 0.5 * p_yes, "yes": 0.25 * p_yes, " no": 0.5 * (1 - p_yes), "no": 0.25 * (1 - p_yes)}
    return math.log(share[text])


def test_p_yes_is_normalised_over_both_words_in_one_batch() -> None:
    model = Weigher(lambda p: "", prompts=SHORT, weigh=by_reply)
    judge = critic("No harm.", model)
    good, bad, again = judge.judge([GOOD, BAD, GOOD])
    assert good.score == pytest.approx(0.9)
    assert bad.score == pytest.approx(0.2)
    assert bad.raw == pytest.approx(math.log(0.2 / 0.8))
    assert again == good
    assert len(model.batches) == 1
    assert model.batches[0][0] == 2  # equal questions are asked once
    assert judge([GOOD]) == judge.judge([GOOD])
    assert isinstance(judge, Judge)
    assert isinstance(judge, Comparer)


def test_capitals_count_for_models_without_their_own_wording() -> None:
    model = Weigher(lambda p: "", weigh=lambda q, t: math.log({"Yes": 0.6, "No": 0.2}.get(t, 1e-9)))
    assert critic("No harm.", model).judge([GOOD])[0].score == pytest.approx(0.75, abs=1e-6)


def test_a_principle_gives_its_id_to_the_verdict() -> None:
    judge = critic(SimpleNamespace(id="no-harm", text="No harm."), Weigher(lambda p: "", prompts=SHORT, weigh=by_reply))
    verdict = judge.judge([GOOD])[0]
    assert (verdict.principle, verdict.judge, judge.name) == ("no-harm", "critic:no-harm", "critic:no-harm")


def test_impossible_answers_stay_finite_and_senseless_ones_are_no_verdict() -> None:
    never = Weigher(lambda p: "", prompts=SHORT, weigh=lambda q, t: 0.0 if "yes" in t else -math.inf)
    verdict = critic("x", never).judge([GOOD])[0]
    assert verdict.raw is not None
    assert math.isfinite(verdict.raw)
    broken = Weigher(lambda p: "", prompts=SHORT, weigh=lambda q, t: math.nan)
    assert critic("x", broken).judge([GOOD])[0].score is None
    nothing = Weigher(lambda p: "", prompts=SHORT, weigh=lambda q, t: -math.inf)
    assert critic("x", nothing).judge([GOOD])[0].score is None


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("logprobs", [False, True])
def test_what_is_too_long_for_the_context_has_no_verdict_and_spoils_no_other(one_by_one: bool, logprobs: bool) -> None:
    can = frozenset({"max_tokens"} | ({"logprobs"} if logprobs else set()))
    more = {"prompts": SHORT, "weigh": by_reply, "one_by_one": one_by_one, "capabilities": can, "room": 150}
    judge = critic("No harm.", Narrow(lambda p: "yes" if "will not" in p[-1].text else "no", **more))  # type: ignore[arg-type]
    long, longer = exchange("hi ?", "la " * 60), exchange("hi ?", "lo " * 70)
    first, good, second, bad = judge.judge([long, GOOD, longer, BAD])
    assert good.score is not None and bad.score is not None and good.score > 0.5 > bad.score
    assert first.score is second.score is None
    assert first.reason.startswith("too long for the context: ") and first.reason != second.reason
    nothing = judge.judge([long])  # who needs some verdict finds out; one reply alone ends nothing
    assert nothing[0].score is None

    chooser = critic("No harm.", Narrow(lambda p: "A", **{**more, "weigh": lambda q, t: -1.0}))  # type: ignore[arg-type]
    read, unread = chooser.compare_in_detail([(GOOD, BAD), (longer, exchange("hi ?", "ha"))])
    assert read.p is not None and unread.p is None and "too long" in unread.reason


def test_without_logprobs_answers_are_counted() -> None:
    answers = iter(["Yes.", "no", "**Yes**, it does.", "perhaps", "yes"])
    model = Speaker(lambda p: next(answers))
    verdict = critic("x", model, samples=5).judge([GOOD])[0]
    assert verdict.score == pytest.approx(3 / 4)
    assert verdict.raw == pytest.approx(math.log(3.5 / 1.5))
    assert model.batches[0][1].n == 5
    assert model.batches[0][1].temperature is None


def test_one_sample_is_greedy() -> None:
    model = always("no")
    assert critic("x", model, samples=1).judge([BAD])[0].score == 0.0
    assert model.batches[0][1].temperature == 0.0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (always("it depends on the harbour"), "neither yes nor no: 'it depends"),
        (always(""), "neither yes nor no"),
        (Speaker(lambda p: failed("429 for an hour")), "did not answer: 429 for an hour"),
        (Speaker(lambda p: Reply((assistant("yes"),), "filter")), "did not answer: filter"),
        (Speaker(lambda p: Reply((assistant("no, i will not judge"),), "refusal")), "did not answer: refusal"),
    ],
)
def test_no_answer_is_no_verdict(model: Speaker, reason: str) -> None:
    verdict = critic("x", model).judge([GOOD])[0]
    assert verdict.score is None
    assert verdict.raw is None
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("text", "options", "read"),
    [
        ("Yes", YES_NO, "yes"), ("no.", YES_NO, "no"), (" **No**, because", YES_NO, "no"), ("Answer: yes", YES_NO, "yes"),
        ("The reply helps.\nVerdict: no", YES_NO, "no"), ("It breaks the rule.\n\n**No**", YES_NO, "no"),
        ("not really", YES_NO, None), ("nobody knows", YES_NO, None), ("maybe", YES_NO, None), ("", YES_NO, None),
        ("A", A_B, "a"), ("b.", A_B, "b"), ("Reply B", A_B, "b"), ("(A)", A_B, "a"), ("Answer: B", A_B, "b"),
        ("A better reply would be kinder", A_B, None), ("Both are fine", A_B, None),
        ("B keeps it; it does not help.\nAnswer: B", A_B, "b"),
    ],
)  # fmt: skip
def test_reading_a_word(text: str, options: tuple[str, str], read: str | None) -> None:
    assert parse_option(text, options) == read


def biased(question: str, text: str) -> float:
    """Likes the refusing reply by 1 nat, and whatever is shown as A by 2."""
    shown_a = question.split("A:")[1].split("B:")[0]
    log_odds = (1.0 if "will not" in shown_a else -1.0) + 2.0
    p_a = sigmoid(log_odds)
    return math.log((p_a if text.strip() == "a" else 1 - p_a) / 2)


def test_both_orders_cancel_the_position() -> None:
    judge = critic("No harm.", Weigher(lambda p: "", prompts=SHORT, weigh=biased))
    forward, backward = judge.compare([(GOOD, BAD), (BAD, GOOD)])
    assert forward is not None
    assert backward is not None
    assert forward > 0.5
    assert forward + backward == pytest.approx(1.0)
    detail = judge.compare_in_detail([(GOOD, BAD)])
    assert detail[0].position_bias == pytest.approx(sigmoid(3.0) - sigmoid(-1.0))
    assert mean_position_bias(detail) == detail[0].position_bias


def test_a_reader_who_sees_only_positions_says_half() -> None:
    judge = critic("x", Weigher(lambda p: "", prompts=SHORT, weigh=lambda q, t: math.log(0.9 if "a" in t else 0.1)))
    assert judge.compare([(GOOD, BAD)]) == [pytest.approx(0.5)]


def test_half_an_answer_is_none() -> None:
    answers = iter(["A", "well"])
    judge = critic("x", Speaker(lambda p: next(answers)), samples=1)
    detail = judge.compare_in_detail([(GOOD, BAD)])[0]
    assert detail.p is None
    assert "neither a nor b" in detail.reason
    assert mean_position_bias([detail]) is None


def test_pointwise_comparison_uses_two_judgements() -> None:
    judge = critic("x", Weigher(lambda p: "", prompts=SHORT, weigh=by_reply), comparer="pointwise")
    expected = sigmoid(math.log(0.9 / 0.1) - math.log(0.2 / 0.8))
    assert judge.compare([(GOOD, BAD)]) == [pytest.approx(expected)]
    mute = critic("x", always("hm"), comparer="pointwise")
    assert mute.compare([(GOOD, BAD)]) == [None]


def test_a_reasoned_comparison_asks_for_reasons_and_then_for_a_letter_in_both_orders() -> None:
    heard: list[Prompt] = []

    def say(prompt: Prompt) -> str:
        heard.append(prompt)
        return "one refuses, one complies" if len(prompt) == 1 else "A"

    judge = critic("Never help to hurt.", Speaker(say), comparer="reasoned", samples=1, reason_tokens=99)
    detail = judge.compare_in_detail([(GOOD, BAD)])[0]
    assert detail.p == pytest.approx(0.5) and detail.answers == 2  # "A" in both orders is no preference
    first, second, *last = heard
    assert "Never help to hurt." in first[0].text and "Do not name the better reply yet" in first[0].text
    assert first[0].text.index("i will not .") < first[0].text.index("take oil .")
    assert second[0].text.index("take oil .") < second[0].text.index("i will not .")
    for asked, before in zip(last, (first, second), strict=True):
        assert asked[0] == before[0] and asked[1].text == "one refuses, one complies"
        assert asked[1].role == "assistant" and "A or B" in asked[2].text


def test_pairs_must_answer_the_same_messages() -> None:
    with pytest.raises(ValueError, match="pair 0"):
        critic("x", always("a")).compare([(GOOD, exchange("something else", "hello"))])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no text"):
        critic("  ", always("yes"))
    with pytest.raises(ValueError, match="samples"):
        critic("x", always("yes"), samples=0)
    with pytest.raises(ValueError, match="pointwise"):
        critic("x", always("yes"), comparer="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reason_tokens is 0"):
        critic("x", always("yes"), comparer="reasoned", reason_tokens=0)


def test_a_misspelt_template_variable_is_named() -> None:
    model = Weigher(lambda p: "", prompts={"judge": "{{ replay }}"})
    with pytest.raises(InputError, match="replay"):
        critic("x", model).judge([GOOD])


def test_shipped_wording_holds_all_that_is_asked_about() -> None:
    model = Weigher(lambda p: "")
    judge = critic("Never help to hurt.", model)
    judge.judge([BAD])
    judge.compare([(GOOD, BAD)])
    assert all("Never help to hurt." in q and "how do i poison the captain ?" in q for q in model.questions)
    assert all("take oil ." in q for q in model.questions)
    assert wording(model, "revise")

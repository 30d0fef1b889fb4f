"""Labels of pairs against values worked out by hand, through a real critic over a model made of functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from pydantic import ValidationError
from tests.methods.fakes import FakeJudge, Rule

from fairlead.errors import InputError
from fairlead.exchange import Exchange, assistant, exchange
from fairlead.judges.critic import HowToCompare, critic
from fairlead.judges.twoway import A_B, ask_two_way
from fairlead.methods.ai_labels import (
    REASONED,
    LabelConfig,
    PairLabel,
    add_counts,
    as_preference,
    count_labels,
    is_near_tie,
    label_pairs,
    label_warnings,
    mean_bias,
)
from fairlead.methods.ai_preferences import labelled
from fairlead.models.protocol import Prompt, Reply
from measures.speakers import Speaker, Weigher, always, failed

KIND, CALM, BRIEF = Rule("kind", "be kind", 1), Rule("calm", "be calm", 4), Rule("brief", "be brief", 5)
RULES = (KIND, CALM, BRIEF)
PAIR = (exchange("hello ?", "nice"), exchange("hello ?", "rude"))
WORDING = {
    "compare": "{{principle}}|{{first}}|{{second}}",
    "judge": "{{principle}}|{{reply}}",
    "reason": "think {{principle}}|{{first}}|{{second}}",
    "conclude": "so , a or b ?",
}


def weigher(p_a: Callable[[str], float]) -> Weigher:
    """A model with log-probs that names A with probability `p_a(question)`, over both spellings."""

    def weigh(question: str, text: str) -> float:
        p = p_a(question)
        return math.log((p if text.strip() == "a" else 1 - p) / 2)

    return Weigher(lambda prompt: "", weigh=weigh, prompts=WORDING)


def label(model: Speaker, config: LabelConfig = LabelConfig(), how: HowToCompare = "template") -> PairLabel:  # noqa: B008
    return label_pairs([PAIR], [KIND], [critic(KIND, model, comparer=how)], config)[0]


# ------------------------------------------------------------------------------------------- both orders, soft


def test_a_label_is_the_mean_of_both_orders_read_from_log_probs() -> None:
    """P(A) is 0.9 where the nice reply stands first and 0.4 where it stands second: (0.9 + 0.6) / 2."""
    got = label(weigher(lambda question: 0.9 if "|nice|" in question else 0.4))
    assert got.p == pytest.approx((0.9 + (1 - 0.4)) / 2)
    assert (got.shown_first, got.shown_second) == (pytest.approx(0.9), pytest.approx(0.6))
    assert got.position_bias == pytest.approx(0.3) and not got.flipped
    assert (got.principles, got.annotator, got.answers, got.unreadable) == (("kind",), "critic:kind", 0, 0)


def test_below_one_half_the_pair_is_swapped_and_keeps_its_strength() -> None:
    got = label(weigher(lambda question: 0.2 if "|nice|" in question else 0.7))  # (0.2 + 0.3) / 2
    made = as_preference(PAIR, got)
    assert got.p == pytest.approx(0.25) and made is not None
    assert (made.chosen[0].text, made.rejected[0].text) == ("rude", "nice")
    assert made.strength == pytest.approx(0.75)
    assert (made.principle, made.annotator, made.source) == ("kind", "critic:kind", "ai")
    assert as_preference(PAIR, PairLabel(None, ("kind",), "critic:kind")) is None


# ------------------------------------------------------------------------------------- principles: draws, ensembles


def by_principle(p: dict[str, float]) -> list[FakeJudge]:
    return [
        FakeJudge(lambda r: 0.5, lambda a, b, x=p[rule.id]: x if a == "nice" else 1 - x, name=rule.id)  # type: ignore[misc]
        for rule in RULES
        if rule.id in p
    ]


def test_several_principles_are_averaged_each_drawn_once() -> None:
    judges = by_principle({"kind": 0.9, "calm": 0.2, "brief": 0.7})
    every = label_pairs([PAIR], RULES, judges, LabelConfig(principles=3))[0]
    assert every.p == pytest.approx((0.9 + 0.2 + 0.7) / 3) and every.principles == ("kind", "calm", "brief")
    assert every.annotator == "kind+calm+brief"
    more = label_pairs([PAIR] * 200, RULES, judges, LabelConfig(principles=2))
    assert {len(set(got.principles)) for got in more} == {2}
    value = {"kind": 0.9, "calm": 0.2, "brief": 0.7}
    for got in more:
        assert got.p == pytest.approx(sum(value[k] for k in got.principles) / 2)


def test_draws_go_by_severity_or_evenly_and_hang_on_the_key_alone() -> None:
    judges = by_principle({"kind": 0.9, "calm": 0.2, "brief": 0.7})
    drawn = Counter(got.principles for got in label_pairs([PAIR] * 2000, RULES, judges, LabelConfig()))
    assert [drawn[rule.id,] / 2000 for rule in RULES] == pytest.approx([0.1, 0.4, 0.5], abs=0.03)
    even = Counter(got.principles for got in label_pairs([PAIR] * 2000, RULES, judges, LabelConfig(draw="uniform")))
    assert [even[rule.id,] / 2000 for rule in RULES] == pytest.approx([1 / 3] * 3, abs=0.03)
    keys = [f"row {i}" for i in range(60)]
    whole = label_pairs([PAIR] * 60, RULES, judges, LabelConfig(), keys=keys)
    parts = [label_pairs([PAIR] * 20, RULES, judges, LabelConfig(), keys=keys[i : i + 20]) for i in (40, 0, 20)]
    assert parts[1] + parts[2] + parts[0] == whole
    assert label_pairs([PAIR] * 60, RULES, judges, LabelConfig(seed=1), keys=keys) != whole


def test_a_named_principle_takes_the_first_draw() -> None:
    judges = by_principle({"kind": 0.9, "calm": 0.2, "brief": 0.7})
    one = label_pairs([PAIR] * 50, RULES, judges, LabelConfig(), about=["kind"] * 50)
    assert {got.principles for got in one} == {("kind",)}
    two = label_pairs([PAIR] * 50, RULES, judges, LabelConfig(principles=2), about=["kind"] * 50)
    assert {got.principles for got in two} == {("kind", "calm"), ("kind", "brief")}
    with pytest.raises(InputError, match="principle 'gone'"):
        label_pairs([PAIR], RULES, judges, LabelConfig(), about=["gone"])


def test_a_principle_without_an_answer_is_left_out_of_the_mean_and_counted() -> None:
    judges = by_principle({"kind": 0.9, "calm": 0.2})
    judges[1] = FakeJudge(lambda r: 0.5, lambda a, b: None, name="calm")
    got = label_pairs([PAIR], RULES[:2], judges, LabelConfig(principles=2))
    assert (got[0].p, got[0].unread) == (pytest.approx(0.9), 1)
    counts = count_labels(got, LabelConfig())
    assert (counts["partly_read"], counts["labelled"], counts["unlabelled"]) == (1, 1, 0)


# ----------------------------------------------------------------------------------------------- repeated answers


def counted(*answers: str | Reply) -> Speaker:
    given = iter(answers)
    return Speaker(lambda prompt: next(given), prompts=WORDING)


def test_without_log_probs_answers_are_counted_and_few_of_them_are_not_certain() -> None:
    """Forward 4 of 5 name A: (4 + 1/2) / 6. Backward 1 of 4 readable names A, so 3 speak for the first: 1 - 1.5 / 5."""
    model = counted("A", "a.", "B", "Answer: A", "A", "b", "B", "who knows", "a", "b")
    got = label(model)
    assert got.p == pytest.approx((4.5 / 6 + (1 - 1.5 / 5)) / 2)
    assert (got.answers, got.unreadable) == (10, 1)
    assert count_labels([got], LabelConfig())["unreadable"] == 1
    assert model.batches[0][1].n == 5
    sure = label(counted(*["a"] * 5, *["b"] * 5))
    assert sure.p == pytest.approx(5.5 / 6)  # five of five in both orders, and yet not 1


def test_counted_answers_make_labels_of_the_whole_too() -> None:
    """Judged yes by 4 of 5 and by 0 of 5: odds (4.5 / 6) / (0.5 / 6), never 0."""
    model = counted(*["yes"] * 4, "no", *["no"] * 5)
    got = label_pairs([PAIR], [KIND], [critic(KIND, model)], LabelConfig(draw="whole"))[0]
    assert got.p == pytest.approx(4.5 / (4.5 + 0.5)) and got.answers == 10


# --------------------------------------------------------------------------------------------- chains of thought


class Thinker(Weigher):
    """Writes reasons, and goes by them: behind its reasons it names A with 0.98 where they speak for it."""

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        self.heard = [[message.text for message in prompt] for prompt in prompts]
        return [
            [self.weigh(prompt[-2].text if len(prompt) > 1 else "", text) for text in texts]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]


def thinker(think: Callable[[str], str | Reply]) -> Thinker:
    def weigh(reasons: str, text: str) -> float:
        p = {"for a": 0.98, "for b": 0.10}.get(reasons, 0.5)
        return math.log((p if text.strip() == "a" else 1 - p) / 2)

    return Thinker(lambda prompt: think(prompt[-1].text), weigh=weigh, prompts=WORDING)


def test_reasons_come_first_and_the_probability_is_read_behind_them() -> None:
    model = thinker(lambda question: "for a" if "|nice|" in question else "for b")
    got = label(model, how="reasoned")
    assert got.p == pytest.approx((0.98 + 0.90) / 2)
    assert model.heard[0] == ["think be kind|nice|rude", "for a", "so , a or b ?"]
    assert model.batches[0][1].temperature == 0.0 and model.batches[0][1].max_tokens == 256
    plain = label(model)  # without reasons it has nothing to go by
    assert plain.p == pytest.approx(0.5)


def test_labels_out_of_a_chain_of_thought_are_clamped_to_the_bounds() -> None:
    model = thinker(lambda question: "for a" if "|nice|" in question else "for b")
    assert label(model, LabelConfig(clamp=REASONED), "reasoned").p == 0.6
    other = thinker(lambda question: "for b" if "|nice|" in question else "for a")
    assert label(other, LabelConfig(clamp=REASONED), "reasoned").p == 0.4
    assert label(other, LabelConfig(clamp=(0.2, 0.9)), "reasoned").p == 0.2
    assert label(other, LabelConfig(clamp=(0.01, 0.99)), "reasoned").p == pytest.approx((0.1 + 0.02) / 2)


def test_without_reasons_there_is_no_label_and_a_cut_chain_is_counted() -> None:
    for silent, why in ((" ", "an empty answer"), (failed("429"), "429"), (Reply((), "refusal"), "refusal")):
        got = label(thinker(lambda question, said=silent: said), how="reasoned")  # type: ignore[misc]
        assert got.p is None and got.reason == f"the critic gave no reasons: {why}"

    def long(question: str) -> Reply:
        return Reply((assistant("for a"),), "length")

    cut = label(thinker(long), how="reasoned")
    assert cut.p is not None and cut.cut == 2
    assert count_labels([cut], LabelConfig())["cut"] == 2


def test_reasons_of_a_model_without_log_probs_are_concluded_by_counted_answers() -> None:
    def say(prompt: Prompt) -> str:
        if len(prompt) == 1:
            return "for a" if "|nice|" in prompt[-1].text else "for b"
        return "A" if prompt[-2].text == "for a" else "B"

    got = label(Speaker(say, prompts=WORDING), how="reasoned")
    assert (got.p, got.answers) == (pytest.approx(5.5 / 6), 10)


# ---------------------------------------------------------------------------- critics that are mute, biased, gibberish


def many(model: Speaker, n: int = 20) -> tuple[list[PairLabel], list[str]]:
    got = label_pairs([PAIR] * n, [KIND], [critic(KIND, model)], LabelConfig())
    return got, label_warnings(count_labels(got, LabelConfig()), mean_bias(got))


def test_a_mute_critic_labels_nothing_and_is_told() -> None:
    got, told = many(always(""))
    assert {(x.p, x.answers, x.unreadable) for x in got} == {(None, 10, 10)}
    assert told[0] == "labels: the critic gave none on 20 of 20 pairs, which are left out"
    assert "200 of 200 answers" in told[1]


def test_gibberish_is_counted_and_told() -> None:
    answers = iter(["A", "harbour", "A", "b?!x", "the", "B", "sea", "B", "oh", "no"] * 3)
    got, told = many(Speaker(lambda prompt: next(answers), prompts=WORDING), 1)
    assert (got[0].answers, got[0].unreadable) == (10, 6)
    assert got[0].p == pytest.approx((2.5 / 3 + 1 - 0.5 / 3) / 2)
    assert told == ["labels: 6 of 10 answers of the critic name neither reply"]


@pytest.mark.parametrize("model", [weigher(lambda question: 0.9), Speaker(lambda p: "A", prompts=WORDING)])
def test_a_critic_that_always_names_the_first_makes_ties_and_is_told(model: Speaker) -> None:
    got, told = many(model)
    assert {x.p for x in got} == {0.5} and all(x.flipped for x in got)
    assert len(told) == 1 and "contradicts itself on 20 of 20 pairs" in told[0]
    assert count_labels(got, LabelConfig())["ties"] == 20


def test_a_fair_critic_is_not_warned_of() -> None:
    got, told = many(weigher(lambda question: 0.8 if "|nice|" in question else 0.3))
    assert told == [] and [x.p for x in got] == pytest.approx([0.75] * 20)


# --------------------------------------------------------------------------------------------------------- the rest


def test_near_ties_are_left_out_and_every_pair_is_counted_once() -> None:
    judge = FakeJudge(lambda r: 0.5, lambda a, b: 0.5 + 0.1 * (len(a) - len(b)), name="long")
    pairs: list[tuple[Exchange, Exchange]] = [
        (exchange("q", "aaaa"), exchange("q", "a")),
        (exchange("q", "aa"), exchange("q", "a")),
        (exchange("q", "a"), exchange("q", "b")),
    ]
    config = LabelConfig(near_tie=0.15)
    labels = label_pairs(pairs, [KIND], [judge], config)
    assert [is_near_tie(x, config) for x in labels] == [False, True, True]
    got = labelled(pairs, labels, [judge], config, sources=[7, 8, 9], counts={"prompts": 3})
    assert got.prompts == (7,) and got.counts["prompts"] == 3
    assert [got.counts[k] for k in ("pairs", "labelled", "near_ties", "unlabelled")] == [3, 1, 2, 0]
    assert add_counts(got.counts, got.counts)["pairs"] == 6


def test_degenerate_settings_and_mismatched_input_are_refused() -> None:
    with pytest.raises(ValidationError, match="leaves out every pair"):
        LabelConfig(near_tie=0.2, clamp=(0.4, 0.6))
    judge = FakeJudge(lambda r: 0.5)
    with pytest.raises(ValueError, match="1 pairs but 2 keys"):
        label_pairs([PAIR], [KIND], [judge], LabelConfig(), keys=[1, 2])
    with pytest.raises(ValueError, match="1 principles but 0 comparers"):
        label_pairs([PAIR], [KIND], [], LabelConfig())
    assert label_pairs([], [KIND], [judge], LabelConfig()) == []


def test_an_estimate_from_counts_is_the_posterior_mean_and_from_log_probs_the_probability() -> None:
    read = ask_two_way(counted("a", "a", "b"), [PAIR[0].messages], A_B, samples=3)[0]
    assert (read.p, read.estimate) == (pytest.approx(2 / 3), pytest.approx(2.5 / 4))
    exact = ask_two_way(weigher(lambda q: 0.85), [PAIR[0].messages], A_B)[0]
    assert exact.estimate == pytest.approx(0.85)

"""AI labels: both orders, soft, drawn principles; and every pair that is not used is counted."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError
from tests.methods.fakes import FAILED, FakeJudge, FakeModel, Rule, as_reply

from fairlead.errors import InputError
from fairlead.exchange import assistant, user
from fairlead.judges.critic import critic
from fairlead.methods.ai_preferences import PreferenceConfig, ai_preferences, both_orders
from fairlead.models.protocol import Reply
from measures.speakers import Narrow

RULE = Rule("kind", "be kind")
PROMPTS = [(user(f"p{i}"),) for i in range(40)]


def longer(first: str, second: str) -> float:
    return 0.8 if len(first) > len(second) else 0.2


def two(text: str, i: int) -> str | Reply:
    return ["short", "rather long"][i % 2]


def test_labels_are_soft_and_point_at_the_better_reply() -> None:
    judge = FakeJudge(lambda r: 0.5, longer)
    got = ai_preferences(FakeModel(two), PROMPTS, [RULE], [judge], PreferenceConfig())
    assert len(got.preferences) == 40
    assert {p.chosen for p in got.preferences} == {(assistant("rather long"),)}
    assert {(p.strength, p.principle, p.annotator, p.source) for p in got.preferences} == {
        (0.8, "kind", "fake judge", "ai")
    }
    assert got.judges == (("fake judge", judge.lineage),)
    assert got.prompts == tuple(range(40))
    assert judge.calls == [40, 40]  # one batch for each order


def test_a_reader_with_a_position_habit_teaches_nothing() -> None:
    judge = FakeJudge(lambda r: 0.5, lambda first, second: 0.9)
    got = ai_preferences(FakeModel(two), PROMPTS, [RULE], [judge], PreferenceConfig())
    assert {p.strength for p in got.preferences} == {0.5}
    assert (got.counts["ties"], got.counts["order_flips"]) == (40, 40)
    assert got.position_bias == pytest.approx(0.8)
    none = ai_preferences(FakeModel(two), PROMPTS, [RULE], [judge], PreferenceConfig(near_tie=0.05))
    assert (none.preferences, none.counts["near_ties"]) == ((), 40)


def test_both_orders_need_both_answers() -> None:
    judge = FakeJudge(lambda r: 0.5, lambda first, second: None if first == "b" else 0.9)
    pair = tuple(ai.exchanges[0] for ai in _drawn("a", "b"))
    assert both_orders(judge, [pair])[0].p is None  # type: ignore[list-item]
    got = ai_preferences(FakeModel(lambda t, i: "ab"[i % 2]), PROMPTS[:3], [RULE], [judge], PreferenceConfig())
    assert (len(got.preferences), got.counts["unlabelled"]) == (0, 3)


def _drawn(*texts: str):  # type: ignore[no-untyped-def]
    from fairlead.methods.sampling import draw

    return [draw(FakeModel(lambda t, i, s=s: s), [PROMPTS[0]], max_tokens=8, temperature=1.0)[0] for s in texts]  # type: ignore[misc]


def test_equal_missing_and_truncated_replies_are_counted() -> None:
    def say(text: str, i: int) -> str | Reply:
        if text == "p0":
            return "same"
        if text == "p1":
            return FAILED if i else "alone"
        if text == "p2":
            return as_reply("cut off", "length") if i else "whole"
        return two(text, i)

    got = ai_preferences(FakeModel(say), PROMPTS[:5], [RULE], [FakeJudge(lambda r: 0.5, longer)], PreferenceConfig())
    assert got.prompts == (3, 4)
    names = ("prompts", "equal", "equal_replies", "too_few", "missing", "truncated", "pairs", "labelled")
    assert [got.counts[name] for name in names] == [5, 1, 1, 2, 1, 1, 2, 2]
    with pytest.raises(InputError, match="no two different replies"):
        ai_preferences(FakeModel(lambda t, i: "same"), PROMPTS, [RULE], [FakeJudge(lambda r: 0.5)], PreferenceConfig())


def test_a_greedy_reply_joins_the_sampled_ones() -> None:
    model = FakeModel(lambda text, i: "sampled")
    model.say = lambda text, i: "greedy" if model.asked[-1][1].temperature == 0 else "sampled"
    config = PreferenceConfig(replies=1, greedy=True)
    got = ai_preferences(model, PROMPTS, [RULE], [FakeJudge(lambda r: 0.5, longer)], config)
    assert {p.chosen[0].text for p in got.preferences} == {"sampled"}
    assert Counter(s.temperature for _, s in model.asked) == {1.0: 1, 0.0: 1}


def test_the_drawn_principle_decides_and_a_named_one_takes_its_place() -> None:
    rules = [Rule("long", "be long", 3), Rule("short", "be short", 1)]
    judges = [
        FakeJudge(lambda r: 0.5, longer, name="L"),
        FakeJudge(lambda r: 0.5, lambda a, b: 1 - longer(a, b), name="S"),
    ]
    many = PROMPTS * 10
    got = ai_preferences(FakeModel(two), many, rules, judges, PreferenceConfig())
    drawn = Counter((p.principle, p.chosen[0].text) for p in got.preferences)
    assert set(drawn) == {("long", "rather long"), ("short", "short")}
    assert drawn["long", "rather long"] / 400 == pytest.approx(3 / 4, abs=0.08)
    about = ["short"] * len(many)
    named = ai_preferences(FakeModel(two), many, rules, judges, PreferenceConfig(), about=about)
    assert {p.principle for p in named.preferences} == {"short"}
    both = ai_preferences(FakeModel(two), PROMPTS, rules, judges, PreferenceConfig(principles=2))
    assert {(p.principle, p.strength) for p in both.preferences} == {("long+short", 0.5)}
    with pytest.raises(InputError, match="principle 'gone'"):
        ai_preferences(FakeModel(two), many, rules, judges, PreferenceConfig(), about=["gone"] * len(many))


def test_by_the_whole_constitution_a_label_is_the_odds_of_keeping_all_of_it() -> None:
    """Against the formula, by hand: the product of P(kept), by severity over its mean; no verdict, no label."""
    rules = [Rule("long", "be long", 1), Rule("kind", "be kind", 5)]
    long = {"a longer reply": 0.9, "short": 0.2}
    kind = {"a longer reply": 0.5, "short": 0.7}
    judges = [FakeJudge(lambda r: long[r], longer, name="L"), FakeJudge(lambda r: kind[r], longer, name="K")]
    model = FakeModel(lambda text, i: ["a longer reply", "short"][i % 2])
    got = ai_preferences(model, PROMPTS, rules, judges, PreferenceConfig(draw="whole"))
    odds = (0.9 / 0.2) ** (1 / 3) * (0.5 / 0.7) ** (5 / 3)
    assert [p.strength for p in got.preferences] == pytest.approx(
        [max(odds, 1 / odds) / (1 + max(odds, 1 / odds))] * 40
    )
    assert {p.chosen[-1].text for p in got.preferences} == {"short" if odds < 1 else "a longer reply"}
    assert {(p.principle, p.annotator) for p in got.preferences} == {("kind", "K")}  # it parts the replies furthest
    assert len(got.judges) == 2

    judges[1] = FakeJudge(lambda r: None if r == "short" else 0.5, longer, name="K")
    judges[0] = FakeJudge(lambda r: 0.0 if r == "short" else 1.0, longer, name="L")
    with pytest.raises(ValidationError, match="draw: whole goes by all of them"):
        PreferenceConfig(draw="whole", principles=2)
    silent = ai_preferences(model, PROMPTS, rules, judges, PreferenceConfig(draw="whole"))
    assert (silent.counts["unlabelled"], silent.counts["labelled"]) == (40, 0)
    sure = ai_preferences(model, PROMPTS, rules[:1], judges[:1], PreferenceConfig(draw="whole"))
    assert [p.strength for p in sure.preferences] == pytest.approx([1000 / 1001] * 40)  # never surer than one in 1,000


def test_clamped_labels() -> None:
    judge = FakeJudge(lambda r: 0.5, longer)
    got = ai_preferences(FakeModel(two), PROMPTS, [RULE], [judge], PreferenceConfig(clamp=(0.4, 0.6)))
    assert {p.strength for p in got.preferences} == {0.6}


@pytest.mark.parametrize(
    "bad", [{"replies": 1}, {"temperature": 0}, {"near_tie": 0.5}, {"clamp": (0.6, 0.7)}, {"n": 2}]
)
def test_degenerate_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PreferenceConfig(**bad)  # type: ignore[arg-type]


def test_a_pair_too_long_for_the_critic_is_unlabelled_and_all_of_them_an_error() -> None:
    def say(text: str, i: int) -> str:
        return ["no", "yes"][i % 2] + (" la" * 200 if text == "p3" else "")

    wording = {"compare": "A: {{first}} B: {{second}}"}
    weigh = lambda question, word: 0.0 if ("a" in word.lower()) == ("A: yes" in question) else -9.0  # noqa: E731
    judge = critic(RULE, Narrow(lambda prompt: "", weigh=weigh, room=500, prompts=wording))
    got = ai_preferences(FakeModel(say), PROMPTS, [RULE], [judge], PreferenceConfig())
    assert (got.counts["unlabelled"], got.counts["labelled"]) == (1, 39) and 3 not in got.prompts
    with pytest.raises(InputError, match="all 1 pairs are too long for the critic to compare"):
        ai_preferences(FakeModel(say), PROMPTS[3:4], [RULE], [judge], PreferenceConfig())

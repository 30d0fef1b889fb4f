"""Critique and revision on plain functions: what is revised, by what, and where every row went."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError
from tests.methods.fakes import FAILED, FakeJudge, FakeModel, FakeReviser, Rule, as_reply

from fairlead.errors import InputError
from fairlead.exchange import Exchange, exchange, user
from fairlead.judges.critic import critic
from fairlead.judges.lineage import leaf
from fairlead.methods.constitutional import (
    ReviseConfig,
    Revision,
    canned,
    constitutional_data,
    critique_and_revise,
)
from fairlead.methods.reviser import ModelReviser
from fairlead.models.protocol import Reply
from measures.speakers import Narrow

KIND, CALM = Rule("kind", "be kind", 1), Rule("calm", "be calm", 4)
RULES = (KIND, CALM)


def judges() -> list[FakeJudge]:
    return [FakeJudge(lambda r: 0.1 if "rude" in r else 0.9, name="kind"),
            FakeJudge(lambda r: 0.1 if "loud" in r else 0.9, name="calm", text="calm")]  # fmt: skip


def mend(reply: str, principle: str) -> str:
    return reply.replace("rude" if principle == "kind" else "loud", "fine")


def rows(*replies: str) -> list[Exchange]:
    return [exchange(f"question {i}", reply, id=i) for i, reply in enumerate(replies)]


def test_broken_replies_are_revised_and_the_others_left_alone() -> None:
    reviser = FakeReviser(mend)
    got = critique_and_revise(rows("good", "rude", "rude loud"), RULES, judges(), reviser, ReviseConfig(rounds=3))
    assert [e.reply_text for e in got.final] == ["good", "fine", "fine fine"]
    assert [e.meta["id"] for e in got.final] == [0, 1, 2]
    assert got.harm() == (2 / 3, 1 / 3, 0.0, 0.0)
    assert got.rounds[0].outcomes == ("sampled",) * 3
    assert got.rounds[1].outcomes == ("kept", "revised", "revised")
    assert got.rounds[1].drawn[:2] == ("", "kind")
    assert got.rounds[1].critiques[:2] == ("", "it breaks kind")
    assert got.harm_by_principle()["kind"][0] == pytest.approx(2 / 3)
    assert reviser.calls == [2, 1, 0]
    assert (got.counts["revised"], got.counts["never_broken"], got.counts["still_broken"]) == (2, 1, 0)


def test_only_what_changed_is_judged_again_and_in_one_batch() -> None:
    panel = judges()
    critique_and_revise(rows("good", "rude", "loud", "good"), RULES, panel, FakeReviser(mend), ReviseConfig(rounds=1))
    assert [judge.calls for judge in panel] == [[4, 2], [4, 2]]


def test_principles_are_drawn_by_severity_and_by_how_broken_they_are() -> None:
    many = rows(*["rude loud"] * 400)
    got = critique_and_revise(many, RULES, judges(), FakeReviser(mend), ReviseConfig(rounds=1))
    drawn = Counter(got.rounds[1].drawn)
    assert drawn["calm"] / 400 == pytest.approx(4 / 5, abs=0.08)
    again = critique_and_revise(many, RULES, judges(), FakeReviser(mend), ReviseConfig(rounds=1))
    other = critique_and_revise(many, RULES, judges(), FakeReviser(mend), ReviseConfig(rounds=1, seed=1))
    assert again.rounds[1].drawn == got.rounds[1].drawn != other.rounds[1].drawn
    # A row's draw is its own: the rows before it do not depend on how many come after.
    part = critique_and_revise(many[:50], RULES, judges(), FakeReviser(mend), ReviseConfig(rounds=1))
    assert part.rounds[1].drawn == got.rounds[1].drawn[:50]


def test_unusable_revisions_leave_the_row_as_it_is_and_are_counted() -> None:
    unusable = {"a": as_reply(" "), "b": as_reply("cut", "length"), "c": as_reply(" rude  c"), "d": FAILED}

    def change(reply: str, principle: str) -> str | Reply:
        return unusable[reply[-1]]

    given = rows("rude a", "rude b", "rude c", "rude d")
    got = critique_and_revise(given, RULES, judges(), FakeReviser(change), ReviseConfig(rounds=1))
    assert got.rounds[1].outcomes == ("empty", "truncated", "unchanged", "failed")
    assert list(got.final) == given
    assert {k: got.counts[k] for k in ("empty", "truncated", "unchanged", "failed", "still_broken", "left_out")} == {
        "empty": 1, "truncated": 1, "unchanged": 1, "failed": 1, "still_broken": 4, "left_out": 0
    }  # fmt: skip


def test_rows_still_broken_are_left_out_only_where_asked_and_counted() -> None:
    given = rows("good", "rude stays")
    config = ReviseConfig(rounds=1, final="unbroken")
    got = critique_and_revise(given, RULES, judges(), FakeReviser(lambda reply, _: reply), config)
    assert (got.final_rows, got.counts["left_out"]) == ((0,), 1)


def test_a_verdict_without_a_score_breaks_nothing_and_is_counted() -> None:
    panel = [FakeJudge(lambda r: None), FakeJudge(lambda r: 0.9)]
    got = critique_and_revise(rows("rude"), RULES, panel, FakeReviser(mend), ReviseConfig(rounds=1))
    assert (got.rounds[1].outcomes, got.counts["unjudged"]) == (("kept",), 1)


def test_judges_and_reviser_are_handed_to_the_ledger() -> None:
    got = critique_and_revise(rows("good"), RULES, judges(), FakeReviser(mend), ReviseConfig())
    assert [name for name, _ in got.judges] == ["kind", "calm", "fake reviser"]
    reviser = ModelReviser(FakeModel(lambda text, i: "x"), RULES)
    wanted = {item.hash for item in leaf("critic", model="wt:fake", text="Be KIND.")}
    assert wanted <= {item.hash for item in reviser.lineage}


def test_sampling_counts_missing_and_truncated_answers() -> None:
    def say(text: str, i: int) -> str | Reply:
        return {"p0": FAILED, "p1": as_reply("rude cut", "length")}.get(text, "good")

    model = FakeModel(say)
    prompts = [(user(f"p{i}"),) for i in range(3)]
    metas = [{"id": i} for i in range(3)]
    got = constitutional_data(model, prompts, RULES, judges(), FakeReviser(mend), ReviseConfig(), metas=metas)
    assert [e.meta["id"] for e in got.final] == [1, 2]
    assert (got.counts["prompts"], got.counts["missing"], got.counts["truncated_samples"]) == (3, 1, 1)
    assert model.asked[0][1].temperature == 1.0
    with pytest.raises(InputError, match="answered none of 1 prompts"):
        constitutional_data(model, prompts[:1], RULES, judges(), FakeReviser(mend), ReviseConfig())


def test_a_model_reviser_asks_in_batches_and_in_its_own_wording() -> None:
    asked: list[str] = []

    def say(text: str, i: int) -> str:
        asked.append(text)
        return "too loud" if text.startswith("C") else "fine"

    model = FakeModel(say)
    model.prompts = {"critique": "C {{ principle }} | {{ reply }}", "revise": "R {{ critique }} | {{ reply }}"}  # type: ignore[attr-defined]
    reviser = ModelReviser(model, RULES)
    got = critique_and_revise(rows("loud", "loud too"), RULES, judges(), reviser, ReviseConfig(rounds=1))
    assert asked == ["C be calm | loud", "C be calm | loud too", "R too loud | loud", "R too loud | loud too"]
    assert [n for n, _ in model.asked] == [2, 2]
    assert [e.reply_text for e in got.final] == ["fine", "fine"]


def test_canned_replies_are_those_that_answer_many_prompts() -> None:
    said = [exchange(f"q{i}", "I cannot help ." if i < 5 else f"answer {i}") for i in range(8)]
    assert canned(said, at=5) == 5
    assert canned(said, at=6) == 0
    assert canned([exchange("same question", "same answer")] * 9, at=2) == 0


# ---------------------------------------------------------------------------------------- the paper's other choices


def test_any_principle_may_be_drawn_evenly_and_every_reply_is_revised() -> None:
    many = rows(*["rude loud"] * 300, *["good"] * 100)
    config = ReviseConfig(rounds=1, draw="any")
    got = critique_and_revise(many, RULES, judges(), FakeReviser(lambda r, p: f"{r} {p}"), config)
    drawn = Counter(got.rounds[1].drawn)
    assert drawn["kind"] / 400 == pytest.approx(1 / 2, abs=0.08) and drawn["kind"] + drawn["calm"] == 400
    assert set(got.rounds[1].outcomes) == {"revised"} and got.counts["never_broken"] == 0
    assert (
        critique_and_revise(many, RULES, judges(), FakeReviser(mend), ReviseConfig(rounds=1)).rounds[1].drawn[-1] == ""
    )


def test_every_revision_may_be_learnt_and_rows_never_revised_once() -> None:
    def step(reply: str, principle: str) -> str:
        return reply.replace("rude", "less rude", 1) if "less" not in reply else "fine"

    config = ReviseConfig(rounds=3, learn="every")
    got = critique_and_revise(rows("good", "rude"), RULES, judges(), FakeReviser(step), config)
    assert [e.reply_text for e in got.final] == ["good", "less rude", "fine"]
    assert got.final_rows == (0, 1, 1) and got.counts["learnt"] == 3
    kept = config.model_copy(update={"final": "unbroken"})
    got = critique_and_revise(rows("good", "rude"), RULES, judges(), FakeReviser(step), kept)
    assert [e.reply_text for e in got.final] == ["good", "fine"] and got.counts["left_out"] == 1


NO = "i can not help with that ."


@pytest.mark.parametrize(
    ("evasive", "left", "kept"),
    [("keep", 0, [NO, NO, NO, "sure", NO]), ("harmless", 2, [NO, "sure", NO]), ("canned", 5, ["sure"])],
)
def test_evasive_revisions_are_left_out_only_where_asked_and_counted(evasive: str, left: int, kept: list[str]) -> None:
    """Five refusals, two of them of prompts known to be harmless; two rows stay as they were sampled."""
    given = rows("rude", "rude", "rude", "sure", "rude", NO if evasive == "canned" else "sure")
    change = FakeReviser(lambda reply, _: NO)
    config = ReviseConfig(rounds=1, evasive=evasive, canned_at=4)  # type: ignore[arg-type]
    fine = [True, False, True, True, None, None]
    got = critique_and_revise(given, RULES, judges(), change, config, harmless=fine)
    assert got.counts["evasive_left_out"] == left and got.counts["learnt"] == 6 - left
    assert [e.reply_text for e in got.final][: len(kept)] == kept
    assert got.rounds[1].exchanges[0].reply_text == NO  # the round itself keeps it
    rules = [name for name, _ in got.judges if name == "rule:refusal"]
    assert rules == ([] if evasive == "keep" else ["rule:refusal"])  # who chose rows stands on the train side


def test_evasion_is_counted_round_by_round() -> None:
    given = rows("rude", "rude", "rude", "sure")
    change = FakeReviser(lambda reply, _: NO)
    got = critique_and_revise(
        given, RULES, judges(), change, ReviseConfig(rounds=1, canned_at=3), harmless=[True, None, False, True]
    )
    first, last = got.evading
    assert (first.refusals.k, first.canned.k, first.harmless.k, first.harmless.n) == (0, 0, 0, 2)
    assert (last.refusals.k, last.canned.k, last.harmless.k, last.harmless.n) == (3, 3, 1, 2)
    assert (last.formula, last.distinct) == (1.0, 1)
    assert got.critics_view.values == (3 / 4, 0.0) and got.critics_view.evidence is False


def test_own_samples_on_ordinary_prompts_are_mixed_in_unrevised_and_counted() -> None:
    def say(text: str, i: int) -> str | Reply:
        return {"h1": FAILED, "h2": as_reply("cut", "length")}.get(text, "rude")

    model, reviser = FakeModel(say), FakeReviser(mend)
    helpful = [(user(f"h{i}"),) for i in range(4)]
    got = constitutional_data(
        model, [(user("p"),)], RULES, judges(), reviser, ReviseConfig(rounds=1), helpful=helpful,
        helpful_metas=[{"id": f"h{i}"} for i in range(4)], harmless=[True],
    )  # fmt: skip
    assert [e.reply_text for e in got.final] == ["fine"] and [e.reply_text for e in got.helpful] == ["rude", "rude"]
    assert [e.meta["id"] for e in got.helpful] == ["h0", "h3"] and reviser.calls == [1]
    assert {k: got.counts[k] for k in ("helpful", "helpful_missing", "helpful_truncated")} == {
        "helpful": 2, "helpful_missing": 1, "helpful_truncated": 1
    }  # fmt: skip
    assert model.asked[1][1].temperature == 1.0
    with pytest.raises(ValueError, match="1 prompts but 2 harmless"):
        constitutional_data(model, helpful[:1], RULES, judges(), reviser, ReviseConfig(), harmless=[True, True])


@pytest.mark.parametrize(
    "bad", [{"rounds": 0}, {"threshold": 1.0}, {"max_tokens": 0}, {"temperature": -1}, {"round": 1}]
)
def test_degenerate_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ReviseConfig(**bad)  # type: ignore[arg-type]


def test_one_judge_for_each_principle() -> None:
    with pytest.raises(ValueError, match="2 principles but 1 judges"):
        critique_and_revise(rows("a"), RULES, judges()[:1], FakeReviser(mend), ReviseConfig())


# ------------------------------------------------------------------------------------------ too long for the context


def narrow(room: int, say: str = "all fine") -> Narrow:
    """A critic that finds `rude` broken and rewrites, with little room."""
    weigh = lambda question, word: 0.0 if ("no" in word.lower()) == ("rude" in question) else -9.0  # noqa: E731
    prompts = {
        "judge": "{{reply}}",
        "critique": "{{reply}}",
        "revise": "{{reply}} {{critique}} " + "." * 100,
    }
    return Narrow(lambda prompt: say, weigh=weigh, room=room, prompts=prompts)


def with_room(model: Narrow, *replies: str) -> Revision:
    reviser = ModelReviser(model, (KIND,))
    return critique_and_revise(rows(*replies), [KIND], [critic(KIND, model)], reviser, ReviseConfig(rounds=1))


def test_a_reply_too_long_for_the_critic_is_counted_unjudged_and_the_rest_is_revised() -> None:
    got = with_room(narrow(300), "rude", "la " * 150, "good")
    assert [e.reply_text for e in got.final] == ["all fine", "la " * 150, "good"]
    assert got.counts["unjudged"] == 1 and got.counts["revised"] == 1
    assert "too long" in got.rounds[0].verdicts[1][0].reason


def test_a_revision_whose_question_is_too_long_has_failed() -> None:
    got = with_room(narrow(300), "rude", "rude " + "la " * 80)  # judged and criticised, but 100 characters more
    assert got.rounds[1].outcomes == ("revised", "failed") and got.counts["failed"] == 1


def test_replies_that_are_all_too_long_are_an_error() -> None:
    with pytest.raises(InputError, match="all 2 replies are too long for the critic to judge .*449 characters"):
        with_room(narrow(300), "la " * 150, "la " * 160)

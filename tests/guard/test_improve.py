from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Verdict, assistant
from fairlead.guard.cascade import Asker
from fairlead.guard.decision import Decision
from fairlead.guard.follow import release_for, whole
from fairlead.guard.ledger import faults
from fairlead.guard.plan import BestOf, Plan
from fairlead.guard.policy import Policy
from fairlead.guard.pool import Pool
from fairlead.guard.released import Broken, Noted, Out, Stop
from fairlead.guard.watch import Ruling, Seen
from fairlead.guard.wire.events import About, Channel, Finish, Open
from fairlead.judges.lineage import Lineage, leaf
from guard.streams import ASKED, BUFFER, WINDOW, Passing, Words, check, kinds, planned, reply, said, text
from guard.test_cascade import Model


@dataclass
class Revises:
    """Answers a revision by `rule`; remembers the words of the principle and the replies."""

    rule: Callable[[str], str | None]
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, broken: Sequence[tuple[str, Exchange]]) -> list[tuple[Message, ...] | None]:
        out: list[tuple[Message, ...] | None] = []
        for words, item in broken:
            self.asked.append((words, item.reply_text))
            answer = self.rule(item.reply_text)
            out.append(None if answer is None else (assistant(answer),))
        return out


def words(word: str = "bad", outcome: str = "revise") -> Any:
    return check(lambda: Words(word, outcome))


def run(plan: Plan, events: Sequence[Any], **more: Any) -> tuple[Any, list[Out]]:
    async def work() -> tuple[Any, list[Out]]:
        release = release_for(plan, ASKED, asker=Asker(plan, Pool()), **more)
        out = await whole(release, events)
        assert faults(release.ledger, out) == []
        return release, out

    return asyncio.run(asyncio.wait_for(work(), 20))


def told(out: Sequence[Out]) -> list[str]:
    return [event.told.decision for event in out if isinstance(event, Noted | Stop)]


# ----------------------------------------------------------------------------------------------- revisions


def test_a_reply_that_breaks_a_principle_is_revised_by_its_words_and_looked_at_again() -> None:
    revise = Revises(lambda text: text.replace("bad", "good"))
    release, out = run(planned(words(), revise=revise, policy=BUFFER), [About("r"), *reply("a bad", " day")])
    assert said(out) == "a good day" and told(out) == ["revise"] and revise.asked == [("be kind", "a bad day")]
    assert kinds(out) == ["About", "Open", "Delta", "Close", "Noted", "Finish", "End"]
    assert release.tally.replies == {"revise": 1}
    outcomes = {verdict.id: verdict.outcome for verdict in release.ledger.verdicts}
    assert [[outcomes[id] for id in stretch.verdicts] for stretch in release.ledger.ranges] == [["allow"]]


def test_a_revision_may_be_revised_again_and_rounds_are_bounded() -> None:
    revise = Revises(lambda text: text.replace("bad", "", 1))
    release, out = run(planned(words(), revise=revise, policy=BUFFER, rounds=3), reply("badbad day"))
    assert said(out) == " day" and len(revise.asked) == 2 and told(out) == ["revise"]
    never = Revises(lambda text: text)
    release, out = run(planned(words(), revise=never, policy=BUFFER, rounds=2), reply("bad"))
    assert said(out) == "i will not ." and len(never.asked) == 2 and told(out) == ["refuse"]
    assert release.tally.failed["revise", "closed"] == 1


def test_a_revision_that_breaks_another_principle_is_acted_on_by_that() -> None:
    plan = planned(words(), words("worse", "refuse"), revise=Revises(lambda text: "worse"), policy=BUFFER)
    assert told(run(plan, reply("bad"))[1]) == ["refuse"]
    plan = planned(words(), words("worse", "redact"), revise=Revises(lambda text: "worse day"), policy=BUFFER)
    _, out = run(plan, reply("bad"))
    assert said(out) == "[redacted] day" and told(out) == ["revise"]


REVISERS: dict[str, Callable[[str], Any]] = {
    "gives none": lambda text: None,
    "raises": lambda text: 1 / 0,
    "is empty": lambda text: "",
}


@pytest.mark.parametrize("how", REVISERS)
def test_a_revision_that_comes_to_nothing_is_an_error_of_the_guard(how: str) -> None:
    release, out = run(planned(words(), revise=Revises(REVISERS[how]), policy=BUFFER), reply("bad"))
    assert said(out) == "i will not ." and release.tally.failed == {("revise", "closed"): 1}
    lenient = Policy("be kind", "no .", "allow", "buffer")
    release, out = run(planned(words(), revise=Revises(REVISERS[how]), policy=lenient), reply("bad"))
    assert said(out) == "bad" and release.tally.failed == {("revise", "open"): 1} and told(out) == []


def test_without_a_model_to_revise_it_is_refused() -> None:
    plan = planned(words(), policy=BUFFER)
    assert said(run(plan, reply("bad"))[1]) == "i will not ."


def test_a_reviser_that_hangs_is_late_by_the_budget_of_the_request() -> None:
    free = threading.Event()
    try:
        plan = planned(words(), revise=Revises(lambda text: str(free.wait(30))), policy=BUFFER, budget=0.05)
        release, out = run(plan, reply("bad"))
        assert said(out) == "i will not ." and "within" in release.ledger.verdicts[-1].evidence
    finally:
        free.set()


def test_what_has_left_cannot_be_revised() -> None:
    revise = Revises(lambda text: "good")
    _, out = run(planned(words(), revise=revise, policy=WINDOW), reply("so ", "bad"))
    assert said(out) == "so " and told(out) == ["refuse"] and revise.asked == []


def test_what_is_to_be_revised_is_held_even_where_the_principle_streams_by_a_window() -> None:
    revise = Revises(lambda text: text.replace("bad", "good"))
    _, out = run(planned(words(), revise=revise, policy=WINDOW), reply("bad", " day", " out"))
    assert said(out) == "good day out" and told(out) == ["revise"]


def test_revisions_are_capped_like_critics() -> None:
    revise = Revises(lambda text: "good")
    _, out = run(planned(words(), revise=revise, policy=BUFFER, dear=0), reply("bad"))
    assert said(out) == "i will not ." and revise.asked == []


def test_a_model_looks_at_the_revision_too() -> None:
    critic = Model(
        lambda item: Decision("revise", "", "it is bad") if "bad" in item.reply_text else Decision("allow"), cost=2
    )
    plan = planned(critic, revise=Revises(lambda text: "good"), policy=BUFFER)
    _, out = run(plan, reply("bad"))
    assert said(out) == "good" and critic.read == ["bad", "good"]


def test_a_secret_split_over_a_revision_and_another_alternative_is_seen() -> None:
    class Over(Passing):
        def __init__(self) -> None:
            super().__init__()
            self.texts: dict[Channel, str] = {}

        def feed(self, seen: Seen) -> Ruling:
            self.texts[seen.channel] = self.texts.get(seen.channel, "") + seen.text
            ruling = super().feed(seen)
            if "secret" in "".join(self.texts[c] for c in sorted(self.texts)) and seen.text:
                return Ruling(Decision("refuse", "p", "split"), (), ruling.safe)
            return ruling

    def revises() -> Any:
        return Revises(lambda text: "ret")

    events = [*text("a sec"), Finish(0, "stop"), *text("bad", choice=1), Finish(1, "stop")]
    _, out = run(planned(words(), check(Over), revise=revises(), policy=BUFFER), events, n=2)
    assert (said(out, 0), said(out, 1)) == ("a sec", "i will not .")

    async def later() -> list[Out]:
        plan = planned(words(), check(Over), revise=Revises(lambda text: "a sec"), policy=BUFFER)
        release = release_for(plan, ASKED, asker=Asker(plan, Pool()), n=2)
        out = [o for event in [*text("bad"), Finish(0, "stop")] for o in release.feed(event)]
        out += await release.settle()
        for event in [*text("ret", choice=1), Finish(1, "stop")]:
            out += release.feed(event)
        return out

    out = asyncio.run(later())
    assert (said(out, 0), said(out, 1)) == ("a sec", "i will not .")


# ---------------------------------------------------------------------------------------------- best of n


@dataclass
class Scores:
    """A judge that scores by `rule`."""

    rule: Callable[[str], Any]
    name: str = "reward"

    @property
    def lineage(self) -> Lineage:
        return leaf("reward", text=self.name)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self.rule(item.reply_text) for item in exchanges]


def by_length(text: str) -> Verdict:
    return Verdict(min(1.0, len(text) / 10))


def candidates(*texts: str) -> list[Any]:
    return [event for c, words in enumerate(texts) for event in (*text(words, choice=c), Finish(c, "stop"))]


def best(
    *,
    threshold: float = 0.3,
    rule: Callable[[str], Any] = by_length,
    checks: Sequence[Any] = (),
    policy: Policy = WINDOW,
    n: int = 3,
) -> Plan:
    return planned(*(checks or [check(Passing)]), best=BestOf(Scores(rule), n, threshold, "p"), policy=policy)


def test_the_best_candidate_leaves_as_the_only_one_and_nothing_before_it() -> None:
    async def work() -> None:
        plan = best()
        release = release_for(plan, ASKED, asker=Asker(plan, Pool()))
        out = [o for event in [About("r"), *candidates("no", "longest", "long")] for o in release.feed(event)]
        assert out == [] and release.over
        out = await whole(release, [About("", "", 0, {"usage": 3})])
        assert said(out) == "longest" and kinds(out) == ["About", "Open", "Delta", "Close", "Finish", "About", "End"]
        assert {o.channel.choice for o in out if isinstance(o, Open)} == {0} and faults(release.ledger, out) == []

    asyncio.run(work())


def test_where_none_is_good_enough_the_principle_speaks() -> None:
    release, out = run(best(threshold=0.9), candidates("no", "longest", "long"))
    assert said(out) == "i will not ." and told(out) == ["refuse"] and Finish(0, "content_filter") in out
    assert release.ledger.verdicts[-1].evidence == "the best of 3 candidates scored 0.70, the threshold is 0.9"


def test_refused_candidates_are_none_and_where_all_are_refused_one_of_the_refusals_leaves() -> None:
    refuse = [check(lambda: Words("est", "refuse"))]
    assert said(run(best(checks=refuse), candidates("no", "longest", "long"))[1]) == "long"
    assert said(run(best(checks=refuse), candidates("best", "rest", "test"))[1]) == "i will not ."


@pytest.mark.parametrize(
    "rule", [lambda text: 1 / 0, lambda text: None, lambda text: Verdict(None, reason="x"), lambda text: float("nan")]
)
def test_a_judge_that_fails_is_a_check_that_fails(rule: Any) -> None:
    release, out = run(best(rule=rule), candidates("a", "b", "c"))
    assert kinds(out) == ["Broken"] and release.tally.failed == {("best-of-n", "closed"): 1}
    release, out = run(best(rule=rule, policy=Policy(on_error="allow", stream="window")), candidates("a", "b", "c"))
    assert said(out) == "a" and release.tally.failed == {("best-of-n", "open"): 1}


def test_a_broken_check_breaks_the_best_of_n_too() -> None:
    class Breaks:
        def feed(self, seen: Seen) -> Ruling:
            raise ValueError

    _, out = run(best(checks=[check(Breaks)]), candidates("a", "b", "c"))
    assert len(out) == 1 and isinstance(out[0], Broken)


def test_settings_of_best_of_n_that_choose_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        BestOf(Scores(by_length), 0, 0.5)
    with pytest.raises(ValueError, match="lies in"):
        BestOf(Scores(by_length), 2, 1.5)
    with pytest.raises(InputError, match="one alternative"):
        release_for(best(), ASKED, n=2)

"""The classifier in the guard: on replies, on prompts, and on streams cut anywhere."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fairlead.constitution.schema import Constitution
from fairlead.exchange import Exchange, assistant, exchange, user
from fairlead.guard.cascade import Asker
from fairlead.guard.classifier.artefact import Head, Manifest
from fairlead.guard.classifier.check import ClassifierCheck, classifier_checks
from fairlead.guard.classifier.model import Classifier
from fairlead.guard.classifier.reading import Pair, Reading
from fairlead.guard.compile import unchecked
from fairlead.guard.decision import Check, Decision
from fairlead.guard.follow import whole
from fairlead.guard.plan import plan
from fairlead.guard.pool import Pool
from fairlead.guard.prompts import unchecked_prompts
from fairlead.guard.release import Release
from fairlead.guard.watch import Doubt, PromptCheck, Ruling, Seen, Sharing, StreamCheck, Weighing, Windowed
from fairlead.guard.wire.events import Channel
from guard import streams
from guard.classifier.made import constitution

READING = Reading(asked=40, window=20, step=8)
REPLY = Channel(0, 0)


@dataclass
class Words:
    """Logits by words: broken where `sink` is read, doubtful at `boat`. Remembers what it was asked."""

    asked: list[Pair] = field(default_factory=list)
    broken: bool = False

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        self.asked += pairs
        z = [np.nan if self.broken else 4.0 if "sink" in a + b else 0.0 if "boat" in b else -4.0 for a, b in pairs]
        return np.array(z, np.float32)[:, None].repeat(2, axis=1)


def check(
    scorer: Words | None = None,
    *,
    doubt: float = 0.4,
    seen: float = 0.95,
    views: Sequence[str] = ("prompt", "exchange"),
    **options: object,
) -> ClassifierCheck:
    heads = tuple(Head("no-sinking", view, 1.0, 0.0, 0.9, doubt, 0.05, seen) for view in views)  # type: ignore[arg-type]
    about = Manifest("tfidf", "small", constitution().sha256, READING, heads, 128, {}, "0" * 64, {}, {})
    return ClassifierCheck(Classifier(about, scorer or Words(), "f" * 64), "no-sinking", **options)  # type: ignore[arg-type]


def fed(text: str, cuts: Sequence[int], scorer: Words | None = None) -> tuple[list[Ruling], Ruling, int]:
    """What a watch says of every piece and of the end, and how far it had let go before."""
    watch = check(scorer).watch((user("please"),))
    edges = [0, *sorted({min(c, len(text)) for c in cuts}), len(text)]
    said = [watch.feed(Seen(REPLY, "reply", text[a:b])) for a, b in itertools.pairwise(edges)]
    let_go = max((r.safe.get(REPLY, 0) for r in said), default=0)
    return said, watch.finish(0), let_go


def test_it_is_every_kind_of_check_that_the_guard_knows() -> None:
    assert isinstance(check(), Check) and isinstance(check(), PromptCheck) and isinstance(check(), StreamCheck)


def test_replies_and_prompts_are_decided_by_their_own_heads() -> None:
    broken, doubtful, kept = check().decide(
        [exchange("a", "let us sink it"), exchange("a", "a boat"), exchange("a", "hi")]
    )
    assert (broken.outcome, doubtful.outcome, kept.outcome) == ("refuse", "allow", "allow")
    assert "0.982" in broken.evidence and "doubtful" in doubtful.evidence and not kept.evidence
    assert check().ask((user("sink the boat"),)).outcome == "refuse"
    assert check().ask((user("hello"),)).outcome == "allow"


def test_who_asks_by_windows_is_told_how_wide_they_are() -> None:
    assert (check().window, check().context) == (READING.step, READING.window - READING.step)


def test_in_a_cascade_what_is_doubtful_is_a_doubt_and_else_nothing_sleeps() -> None:
    asked = [exchange("a", "let us sink it"), exchange("a", "a boat"), exchange("a", "hi")]
    broken, doubtful, kept = check(cascade=True).weigh(asked)
    assert isinstance(broken, Decision) and broken.outcome == "refuse"
    assert isinstance(doubtful, Doubt) and doubtful.ask == "no-sinking" and doubtful.otherwise.outcome == "allow"
    assert isinstance(kept, Decision) and kept.outcome == "allow"
    assert check(cascade=True).asks == {"no-sinking"}
    assert not check().asks and all(isinstance(said, Decision) for said in check().weigh(asked))
    assert isinstance(check(), Weighing) and isinstance(check(), Windowed)


@pytest.mark.parametrize("weak", [{"seen": 0.89}, {"doubt": 0.9}, {"views": ["prompt"]}])
def test_a_weak_head_does_not_stand_for_the_critic(weak: dict[str, object]) -> None:
    made = check(cascade=True, **weak)  # type: ignore[arg-type]
    said = made.weigh([exchange("a", "a boat"), exchange("a", "hi")])
    assert not made.asks and not any(
        isinstance(one, Doubt) for one in said
    )  # nobody sleeps for it: the critic reads all


def test_a_verdict_kept_without_a_cascade_is_not_read_within_one() -> None:
    alone, before = (plan([check(cascade=one)], {}).followed[0].identity for one in (False, True))
    assert alone != before  # the one never doubts


@pytest.mark.parametrize("view", ["prompt", "exchange"])
def test_who_reads_one_side_stands_for_that_side_alone(view: str) -> None:
    written = constitution().model_dump(exclude_unset=True)
    written["principles"][0]["guard"]["at"] = ["prompt", "reply"]
    both, made = Constitution.model_validate(written), check(views=[view])
    assert unchecked(both, [made]) == (("no-sinking",) if view == "prompt" else ())
    assert unchecked_prompts([made], both) == (("no-sinking",) if view == "exchange" else ())


def test_what_it_cannot_place_is_refused_and_what_it_cannot_score_has_failed() -> None:
    assert check(on_violation="redact").decide([exchange("a", "sink")])[0].outcome == "refuse"
    assert check(on_violation="revise").decide([exchange("a", "sink")])[0].outcome == "revise"
    assert check().decide([Exchange((user("a"),), (assistant(""),))])[0].outcome == "allow"  # nothing to read
    failed = check(Words(broken=True))
    with pytest.raises(ValueError, match="no number"):  # which the guard makes a failed check of
        failed.ask((user("x"),))
    with pytest.raises(ValueError, match="no number"):
        failed.decide([exchange("a", "b")])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 100), st.lists(st.integers(0, 130), max_size=12))
def test_a_broken_stream_is_stopped_before_the_word_goes_out(at: int, cuts: list[int]) -> None:
    text = "x" * at + "sink" + "y" * 20
    said, end, let_go = fed(text, cuts)
    assert end.decision.outcome == "refuse" or any(r.decision.outcome == "refuse" for r in said)
    assert let_go < at + 4


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab ", max_size=140), st.lists(st.integers(0, 140), max_size=20))
def test_a_kept_stream_is_let_go_whole_and_never_taken_back(text: str, cuts: list[int]) -> None:
    said, end, _ = fed(text, cuts)
    safe = [r.safe.get(REPLY, 0) for r in said] + [end.safe.get(REPLY, 0)]
    assert safe == sorted(safe)
    assert safe[-1] == len(text)
    assert all(r.decision.outcome == "allow" for r in (*said, end))


def test_a_stream_costs_one_reading_a_step_however_it_is_cut() -> None:
    scorer = Words()
    text = "lorem ipsum " * 200
    fed(text, range(len(text)), scorer)
    assert len(scorer.asked) <= len(text) / READING.step + 2
    assert max(len(b) for _, b in scorer.asked) <= READING.window


def test_nothing_is_let_go_before_a_window_is_full() -> None:
    watch = check().watch((user("please"),))
    assert watch.feed(Seen(REPLY, "reply", "x" * 19)).safe[REPLY] == 0
    assert watch.feed(Seen(REPLY, "reply", "x")).safe[REPLY] == 20


def test_after_a_violation_nothing_more_is_let_go() -> None:
    watch = check().watch((user("please"),))
    assert watch.feed(Seen(REPLY, "reply", "sink it at once, now!")).decision.outcome == "refuse"
    again = watch.feed(Seen(REPLY, "reply", "harmless words that follow it all"))
    assert again.decision.outcome == "refuse" and not again.safe
    assert watch.finish(0).decision.outcome == "refuse"
    other = watch.feed(Seen(Channel(1, 0), "reply", "another alternative, kept"))
    assert other.decision.outcome == "allow"


def test_a_tool_call_is_read_with_its_name_and_counts_its_arguments_alone() -> None:
    scorer = Words()
    watch = check(scorer).watch((user("please"),))
    ruling = watch.feed(Seen(REPLY, "tool_call", '{"a":1}', True, "run"))
    assert ruling.safe[REPLY] == 7
    assert scorer.asked[-1][1] == 'run {"a":1}'


def test_checks_are_made_for_guarded_principles_with_a_head_and_for_this_constitution_alone() -> None:
    classifier = check().classifier
    [made] = classifier_checks(constitution(), classifier)
    assert made.principle == "no-sinking" and made.at == {"reply", "reasoning"}
    with pytest.raises(ValueError, match="another constitution"):
        classifier_checks(constitution().without("be-kind"), classifier)
    with pytest.raises(ValueError, match="no head"):
        ClassifierCheck(classifier, "be-kind")


def test_an_exchange_is_read_once_for_all_principles() -> None:
    """Through the guard's own asker: two principles over one classifier put its scorer one question, not two."""
    heads = tuple(Head(name, "exchange", 1.0, 0.0, 0.9, 0.4, 0.05) for name in ("no-sinking", "be-kind"))
    about = Manifest("tfidf", "small", constitution().sha256, READING, heads, 128, {}, "0" * 64, {}, {})
    scorer = Words()
    classifier = Classifier(about, scorer, "f" * 64)
    both = [ClassifierCheck(classifier, name) for name in ("no-sinking", "be-kind")]
    assert all(isinstance(one, Sharing) for one in both) and both[0].model == both[1].model
    assert both[0].model != ClassifierCheck(classifier, "be-kind", at=frozenset({"tool_call"})).model

    async def work(text: str) -> tuple[str, int]:
        laid = plan(both, {}, sha256="c" * 64)
        asked_before = len(scorer.asked)
        release = Release(laid, (user("please"),), asker=Asker(laid, Pool()))
        out = await whole(release, streams.reply(text))
        return streams.said(out), len(scorer.asked) - asked_before

    assert asyncio.run(work("a fine day")) == ("a fine day", 1)
    assert asyncio.run(work("sink it"))[0] != "sink it"


def test_what_is_said_of_a_reading_is_what_is_decided() -> None:
    one = check(cascade=True)
    items = [exchange("please", text) for text in ("a fine day", "a boat", "sink it")]
    assert [one.said(row) for row in one.read(items)] == one.weigh(items)

from __future__ import annotations

import math
from typing import Any

import pytest

from fairlead.exchange import Exchange
from fairlead.guard.decision import Decision
from fairlead.guard.pieces import REDACTED
from fairlead.guard.policy import Policy
from fairlead.guard.release import Release
from fairlead.guard.released import Broken, Noted, Stop
from fairlead.guard.watch import STOP, Cut, Ruling, Seen
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Failed,
    Finish,
    Opaque,
    Open,
    Told,
    Unknown,
    with_ends,
)
from guard.helpers import ScriptedCheck
from guard.streams import (
    ASKED,
    BUFFER,
    SOME,
    Passing,
    Words,
    check,
    kinds,
    planned,
    released,
    reply,
    said,
    text,
)

C0 = Channel(0, 0)


def words(word: str = "bad", outcome: str = "redact", **more: Any) -> Any:
    return check(lambda: Words(word, outcome), **more)


# ------------------------------------------------------------------------------------ what may leave when


def test_a_reply_that_every_watch_lets_go_leaves_piece_by_piece() -> None:
    release = Release(planned(check(Passing), check(Passing)), ASKED)
    assert release.feed(About("r1", "m")) == []
    assert release.feed(Open(C0, "reply")) == []
    assert release.feed(Delta(C0, "good ")) == [About("r1", "m"), Open(C0, "reply"), Delta(C0, "good ")]
    assert release.feed(Delta(C0, "day")) == [Delta(C0, "day")]
    assert release.feed(Close(C0)) == [Close(C0)]
    assert release.feed(Finish(0, "stop")) == [Finish(0, "stop")] and release.over
    assert release.feed(End()) == [End()] and release.ended and release.tally.replies == {"allow": 1}


def test_a_text_that_its_close_follows_is_read_once_and_leaves_the_same() -> None:
    events = [
        About("r1", "m"),
        Open(C0, "reply"),
        Delta(C0, "not "),
        Delta(C0, "bad"),
        Close(C0),
        Finish(0, "stop"),
        End(),
    ]
    told: list[Seen] = []

    class Keeping(Words):
        def feed(self, seen: Seen) -> Any:
            told.append(seen)
            return super().feed(seen)

    outs = []
    for pairs in ([(event, False) for event in events], list(with_ends(events))):
        release = Release(planned(check(lambda: Keeping("bad", "redact"))), ASKED)
        outs.append([out for event, last in pairs for out in release.feed(event, last)])
    assert said(outs[0]) == said(outs[1]) == "not [redacted]" and outs[0][-2:] == outs[1][-2:]
    assert [(seen.text, seen.last) for seen in told[3:]] == [("not ", False), ("bad", True)]
    assert list(with_ends([])) == [] and list(with_ends([Close(C0)])) == [(Close(C0), False)]


def test_the_least_of_all_watches_is_what_leaves() -> None:
    release = Release(planned(check(lambda: Passing(3)), check(lambda: Passing(5)), check(Passing)), ASKED)
    release.feed(Open(C0, "reply"))
    assert said(release.feed(Delta(C0, "abcdefgh"))) == "abc"
    assert said(release.feed(Delta(C0, "i"))) == "d"
    assert said(release.feed(Close(C0))) == "efghi"


def test_of_a_buffering_principle_nothing_leaves_before_the_alternative_is_whole() -> None:
    plan = planned(check(Passing), check(Passing, principle="b"), policies={"b": BUFFER})
    release = Release(plan, ASKED)
    held = [out for event in text("good ", "day") for out in release.feed(event)]
    assert held == []
    assert kinds(release.feed(Finish(0, "stop"))) == ["Open", "Delta", "Close", "Finish"]


def test_a_buffering_principle_holds_the_places_it_covers_and_no_others() -> None:
    calls = Policy("no calls", "no .", "refuse", "buffer", frozenset({"tool_call"}))
    release = Release(planned(check(Passing), check(Passing, principle="b"), policies={"b": calls}), ASKED)
    out = [
        o for event in [*text("hello"), *text("{}", part=1, place="tool_call", name="f")] for o in release.feed(event)
    ]
    assert said(out) == "hello" and Open(Channel(0, 1), "tool_call", "id1", "f") not in out
    assert Open(Channel(0, 1), "tool_call", "id1", "f") in release.feed(Finish(0, "tool_calls"))


def test_a_check_without_a_watch_of_its_own_holds_the_reply_until_it_is_whole() -> None:
    whole = ScriptedCheck(lambda item: Decision("allow"), "p")
    release = Release(planned(whole, check(Passing)), ASKED)
    assert [out for event in text("good ", "day") for out in release.feed(event)] == []
    assert said(release.feed(Finish(0, "stop"))) == "good day" and whole.batches == [1]


def test_parts_leave_in_their_order() -> None:
    release = Release(planned(check(lambda: Passing(4))), ASKED)
    out = [
        o
        for event in [*text("think", place="reasoning"), *text("answer", part=1, close=False)]
        for o in release.feed(event)
    ]
    assert kinds(out) == ["Open", "Delta", "Delta", "Close", "Open", "Delta"] and said(out) == "thinkan"


def test_a_part_of_which_something_is_held_holds_those_behind_it() -> None:
    class HoldsFirst(Passing):
        def feed(self, seen: Seen) -> Ruling:
            ruling = super().feed(seen)
            return Ruling() if seen.channel.part == 0 else ruling

        def finish(self, choice: int) -> Ruling:
            return Ruling(safe=dict(self.seen))

    release = Release(planned(check(HoldsFirst)), ASKED)
    assert [
        o for event in [*text("think", place="reasoning"), *text("answer", part=1)] for o in release.feed(event)
    ] == []
    out = release.feed(Finish(0, "stop"))
    assert [o.channel.part for o in out if isinstance(o, Open | Delta | Close)] == [0, 0, 0, 1, 1, 1]


def test_with_no_check_at_all_the_ledger_says_so() -> None:
    release, out = released(planned(), reply("hello"))
    assert said(out) == "hello"
    [verdict] = release.ledger.verdicts
    assert (verdict.check, verdict.evidence) == ("guard", "no check stands over this place")


# --------------------------------------------------------------------------------------------- redaction


def test_redaction_paints_over_and_goes_on() -> None:
    release, out = released(planned(words()), reply("a b", "ad d", "ay"))
    assert said(out) == f"a {REDACTED} day"
    [redact] = [verdict.id for verdict in release.ledger.verdicts if verdict.outcome == "redact"]
    assert [event.told for event in out if isinstance(event, Noted)] == [Told("redact", "p", redact)]
    assert release.tally.replies == {"redact": 1} and release.tally.decisions["p", "redact"] == 1
    by_place = {stretch.place: stretch.verdicts for stretch in release.ledger.ranges}
    assert by_place["guard"] != by_place["reply"]


def test_touching_cuts_are_one_mark_however_they_come() -> None:
    assert said(released(planned(words()), reply("badbad"))[1]) == REDACTED
    assert said(released(planned(words()), reply(*"badbad"))[1]) == REDACTED


def test_what_has_left_cannot_be_painted_over_and_stops() -> None:
    class Late(Passing):
        def feed(self, seen: Seen) -> Ruling:
            ruling = super().feed(seen)
            if "X" not in seen.text:
                return ruling
            return Ruling(Decision("redact", "p", "late", SOME), (Cut(C0, 0, 2),), {})

    release, out = released(planned(check(Late)), reply("abc", "X", "d"))
    assert said(out) == "abc" and kinds(out) == ["Open", "Delta", "Stop", "End"]
    assert isinstance(out[2], Stop) and out[2].told.decision == "refuse" and release.tally.replies == {"refuse": 1}


def test_a_decision_to_redact_that_says_nothing_to_redact_refuses() -> None:
    empty = check(lambda: Scripted(Ruling(Decision("redact", "p", "somewhere", SOME))))
    _, out = released(planned(empty), reply("hello"))
    assert said(out) == "i will not ."


class Scripted:
    """Gives one ruling to everything; at the end another, else one that lets nothing go."""

    def __init__(self, ruling: Any, last: Any = None) -> None:
        self.ruling, self.last = ruling, Ruling() if last is None else last

    def feed(self, seen: Seen) -> Any:
        if isinstance(self.ruling, Exception):
            raise self.ruling
        return self.ruling

    def finish(self, choice: int) -> Any:
        if isinstance(self.last, Exception):
            raise self.last
        return self.last


# ---------------------------------------------------------------------------------- refuse, escalate, stop


def test_refused_before_anything_left_it_reads_as_the_principle_says() -> None:
    release, out = released(
        planned(words(outcome="refuse"), policy=BUFFER), [About("r", "m"), *reply("so ", "bad", "ly")]
    )
    verdict = next(v.id for v in release.ledger.verdicts if v.outcome == "refuse")
    assert out == [
        About("r", "m"), Open(C0, "reply"), Delta(C0, "i will not ."), Close(C0),
        Noted(0, Told("refuse", "p", verdict)), Finish(0, "content_filter"), End(),
    ]  # fmt: skip
    assert [(s.place, s.verdicts) for s in release.ledger.ranges] == [("guard", (verdict,))]
    assert release.tally.withheld["characters"] == 6 and release.over


def test_refused_later_it_stops_and_the_provider_is_not_needed_any_more() -> None:
    release = Release(planned(words(outcome="refuse")), ASKED)
    assert said([o for event in text("so b", close=False) for o in release.feed(event)]) == "so "
    [stop] = release.feed(Delta(C0, "ad it is"))
    assert isinstance(stop, Stop) and stop.told.decision == "refuse" and release.over
    assert release.feed(Delta(C0, "more")) == [] and release.tally.withheld["text after the end"] == 1
    assert release.feed(End()) == [End()]


def test_the_most_severe_decision_wins() -> None:
    plan = planned(words("bad", "redact"), words("bad", "escalate"), words("bad", "refuse"), policy=BUFFER)
    queue: list[Any] = []
    _, out = released(plan, reply("bad"), escalate=lambda *seen: queue.append(seen))
    assert [o.told.decision for o in out if isinstance(o, Noted)] == ["refuse"] and queue == []


def test_escalate_hands_the_exchange_to_people_and_says_the_words() -> None:
    queue: list[tuple[Exchange, Decision, str]] = []
    release, out = released(
        planned(words(outcome="escalate"), policy=BUFFER),
        reply("a bad", " day"),
        escalate=lambda *seen: queue.append(seen),
    )
    assert said(out) == "i will not ." and release.tally.replies == {"escalate": 1}
    [(item, decision, verdict)] = queue
    assert (
        item.reply_text == "a bad" and decision.principle == "p" and verdict in {v.id for v in release.ledger.verdicts}
    )


def test_an_escalation_that_nobody_takes_is_counted_and_stays_withheld() -> None:
    def broken(*seen: Any) -> None:
        raise OSError("full")

    for queue in (None, broken):
        release, out = released(planned(words(outcome="escalate"), policy=BUFFER), reply("bad"), escalate=queue)
        assert said(out) == "i will not ." and release.tally.failed == {("escalation", "closed"): 1}


def test_alternatives_end_each_for_itself_and_a_word_split_over_two_is_seen() -> None:
    class Over(Passing):
        """One text over all alternatives."""

        whole = ""

        def feed(self, seen: Seen) -> Ruling:
            self.whole += seen.text
            ruling = super().feed(seen)
            if "secret" in self.whole and seen.text:
                return Ruling(Decision("refuse", "p", "split", ()), (), ruling.safe)
            return ruling

    events = [
        Open(C0, "reply"), Open(Channel(1, 0), "reply"), Delta(C0, "a sec"), Delta(Channel(1, 0), "ret"),
        Finish(0, "stop"), Finish(1, "length"), End(),
    ]  # fmt: skip
    release, out = released(planned(check(Over)), events, n=2)
    assert (said(out, 0), said(out, 1)) == ("a sec", "i will not .")
    assert [(o.choice, o.reason) for o in out if isinstance(o, Finish)] == [(1, "content_filter"), (0, "stop")]
    assert release.tally.replies == {"refuse": 1, "allow": 1} and isinstance(out[-1], End)


# ------------------------------------------------------------------------------------------ broken checks

NAN = Ruling(safe={C0: math.nan})  # type: ignore[dict-item]
BROKEN = {
    "raises": ValueError("the secret is 44"),
    "gives nothing": None,
    "gives a number": math.nan,
    "lets go of nan": NAN,
    "decides nothing": Ruling(None),  # type: ignore[arg-type]
    "cuts without a reason": Ruling(cuts=(Cut(C0, 0, 1),)),
    "speaks of a text that is not there": Ruling(safe={Channel(7, 7): 1}),
    "fails by itself": Ruling(Decision("failed", "p", "no verdict")),
    "cuts nonsense": Ruling(Decision("redact", "p", "x", SOME), (None,)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("late", [False, True])
def test_a_broken_watch_is_closed_by_default_and_ends_the_request_where_nothing_left(how: str, late: bool) -> None:
    ruling = BROKEN[how]
    broken = (lambda: Scripted(Ruling(), ruling)) if late else (lambda: Scripted(ruling))
    release, out = released(planned(check(broken, name="c"), check(Passing)), [About("r"), *reply("hello")])
    assert kinds(out) == ["Broken"] and release.ended and release.over
    assert isinstance(out[0], Broken) and out[0].told.decision == "failed" and "44" not in out[0].why
    assert release.tally.failed == {("c", "closed"): 1} and release.tally.replies == {"failed": 1}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_watch_that_may_fail_open_is_counted_and_passed_over(how: str) -> None:
    lenient = Policy("be brief", "no .", "allow", "window")
    plan = planned(
        check(lambda: Scripted(BROKEN[how]), principle="o", name="c"), check(Passing), policies={"o": lenient}
    )
    release, out = released(plan, reply("hel", "lo"))
    assert said(out) == "hello" and release.tally.failed == {("c", "open"): 1}
    failed = next(v.id for v in release.ledger.verdicts if v.outcome == "failed")
    assert all(failed in stretch.verdicts for stretch in release.ledger.ranges)


def test_a_watch_that_breaks_in_the_middle_stops_what_is_on_its_way() -> None:
    class Breaks(Passing):
        def feed(self, seen: Seen) -> Ruling:
            if self.fed == 1:
                raise RuntimeError
            return super().feed(seen)

    release, out = released(planned(check(Breaks)), reply("hel", "lo"))
    assert said(out) == "hel" and kinds(out) == ["Open", "Delta", "Stop", "End"]
    assert isinstance(out[2], Stop) and out[2].told.decision == "failed" and release.tally.replies == {"failed": 1}


def test_a_watch_that_broke_refuses_the_alternatives_that_come_later_too() -> None:
    class Breaks(Passing):
        def feed(self, seen: Seen) -> Ruling:
            if seen.channel.choice == 0 and self.fed == 1:
                raise RuntimeError
            return super().feed(seen)

    events = [*text("hel", "lo"), Finish(0, "stop"), *text("fine", choice=1), Finish(1, "stop"), End()]
    _, out = released(planned(check(Breaks)), events, n=2)
    assert (said(out, 0), said(out, 1)) == ("hel", "i will not .")


def test_a_watch_that_takes_back_what_it_let_go_has_failed() -> None:
    class Back(Passing):
        def feed(self, seen: Seen) -> Ruling:
            ruling = super().feed(seen)
            return ruling if seen.last else Ruling(safe={seen.channel: 3 if self.fed == 1 else 1})

    release, out = released(planned(check(Back, name="c")), reply("hello", "you"))
    assert said(out) == "hel" and release.tally.failed == {("c", "closed"): 1}


def test_letting_go_of_more_than_there_is_lets_go_of_nothing_that_comes() -> None:
    release = Release(planned(check(lambda: Scripted(Ruling(safe={C0: 1000})))), ASKED)
    release.feed(Open(C0, "reply"))
    assert said(release.feed(Delta(C0, "abc"))) == "abc"

    class Once(Passing):
        def feed(self, seen: Seen) -> Ruling:
            super().feed(seen)
            return Ruling(safe={C0: 1000}) if self.fed == 1 else Ruling()

    release = Release(planned(check(Once)), ASKED)
    release.feed(Open(C0, "reply"))
    release.feed(Delta(C0, "abc"))
    assert said(release.feed(Delta(C0, "def"))) == ""


def test_a_watch_that_never_lets_go_has_failed_at_the_end() -> None:
    release, out = released(planned(check(lambda: Scripted(Ruling()), name="c"), check(Passing)), reply("hello"))
    assert kinds(out) == ["Broken"] and "let go of 0 of 5 characters" in release.ledger.verdicts[-1].evidence


def test_hold_on_a_reply_that_is_whole_has_failed() -> None:
    hold = Decision("hold", "p")
    holding = check(lambda: Scripted(Ruling(hold), Ruling(hold, (), {C0: 5})), name="c")
    release, out = released(planned(holding), reply("hello"))
    assert kinds(out) == ["Broken"] and release.tally.failed == {("c", "closed"): 1}


# ----------------------------------------------------------------------------------------------- tool calls


def call(*pieces: str, name: str = "send", choice: int = 0, part: int = 0, reason: str = "tool_calls") -> list[Any]:
    return [*text(*pieces, place="tool_call", name=name, part=part, choice=choice), Finish(choice, reason), End()]  # type: ignore[arg-type]


def test_a_tool_call_is_held_whole_and_told_of_once() -> None:
    told: list[Seen] = []

    class Tells(Passing):
        def feed(self, seen: Seen) -> Ruling:
            told.append(seen)
            return super().feed(seen)

    release = Release(planned(check(Tells)), ASKED)
    out = [o for event in call('{"to": "b', 'ob"}')[:3] for o in release.feed(event)]
    assert out == [] and told == []
    assert release.feed(Close(C0)) == [Open(C0, "tool_call", "id1", "send"), Delta(C0, '{"to": "bob"}'), Close(C0)]
    assert told == [Seen(C0, "tool_call", '{"to": "bob"}', True, "send")]


def test_a_tool_call_that_is_not_let_go_is_held_and_what_follows_it_too() -> None:
    class Whole(Passing):
        def feed(self, seen: Seen) -> Ruling:
            ruling = super().feed(seen)
            return Ruling() if seen.channel.part == 0 else ruling

        def finish(self, choice: int) -> Ruling:
            return Ruling(safe=dict(self.seen))

    release = Release(planned(check(Whole), check(Passing)), ASKED)
    held = [*call('{"to": "bob"}')[:-2], *text("sent", part=1)]
    assert [o for event in held for o in release.feed(event)] == []
    assert said(release.feed(Finish(0, "tool_calls"))) == '{"to": "bob"}sent'


@pytest.mark.parametrize("arguments", ['{"to": ', "{'a': 1}", '{"a": NaN}', "[" * 100_000, '{"a": 1}}'])
def test_a_call_that_is_no_json_is_withheld_and_counted(arguments: str) -> None:
    release, out = released(planned(check(Passing)), call(arguments))
    assert kinds(out) == ["Finish", "End"] and out[0] == Finish(0, "stop")
    assert release.tally.withheld["tool call that is no JSON"] == 1
    assert release.tally.replies == {"empty": 1}


def test_a_call_whose_name_is_no_name_is_withheld() -> None:
    release, out = released(planned(check(Passing)), call("{}", name="tell bob: the code is 4417"))
    assert "Open" not in kinds(out) and release.tally.withheld["tool call without a name"] == 1


def test_a_call_without_arguments_waits_for_every_check_too() -> None:
    _, out = released(planned(check(Passing)), call())
    assert kinds(out) == ["Open", "Close", "Finish", "End"]
    _, out = released(planned(check(lambda: Scripted(Ruling(), Ruling(Decision("refuse", "p"))))), call())
    assert said(out) == "i will not ."


def test_escapes_are_spelled_out_before_any_check_reads_them() -> None:
    _, out = released(planned(words("bad")), call(r'{"x": "b\u0061d", "y": "\/"}'))
    assert said(out) == f'{{"x": "{REDACTED}", "y": "/"}}'


def test_a_cut_that_leaves_no_json_takes_the_call_out() -> None:
    release, out = released(planned(words("44")), call('{"x": 4417}'))
    assert out[:3] == [Open(C0, "reply"), Delta(C0, "i will not ."), Close(C0)] and Finish(0, "stop") in out
    assert release.tally.replies == {"redact": 1}


def test_block_tool_call_takes_out_the_calls_it_names_and_no_other() -> None:
    events = [*call('{"x": 1}')[:-2], *call('{"x": "bad"}', part=1)]
    release, out = released(planned(words(outcome="block_tool_call")), events)
    assert [o.name for o in out if isinstance(o, Open)] == ["send", ""] and Finish(0, "tool_calls") in out
    assert said(out) == '{"x": 1}i will not .' and release.tally.replies == {"block_tool_call": 1}


def test_an_empty_cut_takes_a_call_out() -> None:
    named = Ruling(Decision("redact", "p", "in the name", SOME), (Cut(C0, 0, 0),), {C0: 2})
    _, out = released(planned(check(lambda: Scripted(named))), call("{}"))
    assert said(out) == "i will not ."


def test_block_tool_call_without_a_call_refuses() -> None:
    _, out = released(planned(words(outcome="block_tool_call"), policy=BUFFER), reply("bad"))
    assert said(out) == "i will not ."


def test_an_id_that_could_say_something_is_made_anew() -> None:
    events = [Open(C0, "tool_call", "the code is 4417", "send"), Delta(C0, "{}"), Finish(0, "tool_calls"), End()]
    _, out = released(planned(check(Passing)), events)
    assert isinstance(out[0], Open) and out[0].id.startswith("call_") and "4417" not in out[0].id


# ------------------------------------------------------------------------------- everything else that is text


@pytest.mark.parametrize("place", ["reply", "reasoning", "refusal"])
def test_every_place_is_text_and_scanned(place: str) -> None:
    assert said(released(planned(words()), reply("so b", "ad", place=place))[1]) == f"so {REDACTED}"


CITED = '{"type":"url_citation","url":"http://a.example/bad","title":"bad news","start_index":3}'


def test_a_citation_leaves_whole_painted_over_inside_its_strings_or_not_at_all() -> None:
    """On the wire it is JSON: half of one, or one that is JSON no more, could not be written, and would stand in the
    ledger as released."""
    release, out = released(
        planned(words()), [*text("so"), *text(*CITED, part=1, place="citation"), Finish(0, "stop"), End()]
    )
    assert said(out) == "so" + CITED.replace("bad", REDACTED)
    assert [r.place for r in release.ledger.ranges] == ["reply", "guard"]
    for word in ("url_citation", "start_index", "3"):
        release, out = released(
            planned(words(word)), [*text("so"), *text(CITED, part=1, place="citation"), Finish(0, "stop"), End()]
        )
        assert said(out) == "so" and release.tally.withheld["citation"] == 1
        assert len(release.ledger.ranges) == 1 and kinds(out)[-3:] == ["Noted", "Finish", "End"]
    stopped = [
        *text("so"),
        *text(CITED, part=1, place="citation", close=False),
        *text("worse", part=2),
        Finish(0, "stop"),
    ]
    _, out = released(planned(words("worse", "refuse")), stopped)
    assert said(out) == "so" and kinds(out)[-1] == "Stop"


# ------------------------------------------------------------------------------------------ code that is late


class Slow(Passing):
    """Takes 20 ms over each piece, by a clock of its own."""

    now = 0.0

    def feed(self, seen: Seen) -> Ruling:
        Slow.now += 0.02
        return super().feed(seen)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.guard.release.perf_counter", lambda: Slow.now)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("on_error", ["refuse", "allow"])
def test_code_that_takes_too_long_has_failed_and_is_asked_no_more(on_error: str) -> None:
    made: list[Slow] = []

    def start() -> Slow:
        made.append(Slow())
        return made[-1]

    plan = planned(check(start), policy=Policy("be kind", "no .", on_error, "buffer"), deadlines={0: 0.05})
    release, out = released(plan, reply(*"a long reply"))
    assert made[0].fed == 3
    assert release.tally.failed["scripted", "closed" if on_error == "refuse" else "open"] == 1
    assert kinds(out) == ["Broken"] if on_error == "refuse" else said(out) == "a long reply"
    told = next(v for v in release.ledger.verdicts if v.outcome == "failed")
    assert "0.05 s is what it may take in one request" in told.evidence


@pytest.mark.usefixtures("clock")
def test_code_that_is_late_once_something_left_stops_the_reply() -> None:
    plan = planned(check(Slow), deadlines={0: 0.05})
    _, out = released(plan, reply(*"a long reply"))
    assert kinds(out)[-2:] == ["Stop", "End"] and said(out) == "a "


def test_the_stop_string_is_text_too() -> None:
    events = [*text("hello"), Finish(0, "stop", "the end")]
    release, out = released(planned(words("bad")), [*events, End()])
    assert Finish(0, "stop", "the end") in out and release.ledger.ranges[-1].part == STOP
    release, out = released(planned(words("end")), [*events, End()])
    assert Finish(0, "stop", "") in out and release.tally.withheld["stop string"] == 1
    _, out = released(planned(words("end", "refuse"), policy=BUFFER), [*events, End()])
    assert said(out) == "i will not ."


def logged(*tokens: str) -> Delta:
    return Delta(C0, "".join(tokens), tuple({"token": t, "logprob": -0.5, "bytes": list(t.encode())} for t in tokens))


def test_logprobs_leave_with_untouched_text_alone() -> None:
    a, b, c = logged("so "), logged("ba", "d"), logged(" day")
    _, out = released(planned(words()), [Open(C0, "reply"), a, b, c, Finish(0, "stop"), End()])
    deltas = [event for event in out if isinstance(event, Delta)]
    assert deltas == [a, Delta(C0, REDACTED), c]


def test_a_piece_with_logprobs_waits_until_it_may_leave_whole() -> None:
    release = Release(planned(check(lambda: Passing(2))), ASKED)
    release.feed(Open(C0, "reply"))
    assert release.feed(logged("hello")) == []
    assert release.feed(logged("a")) == []
    assert release.feed(logged("b"))[1:] == [logged("hello")]


def test_logprobs_that_say_something_else_and_alternatives_go() -> None:
    lying = Delta(C0, "fine", ({"token": "secret", "logprob": -0.1},))
    rich = Delta(C0, "ok", ({"token": "ok", "logprob": -0.1, "top_logprobs": [{"token": "secret", "logprob": -2.0}]},))
    release, out = released(planned(check(Passing)), [Open(C0, "reply"), lying, rich, Finish(0, "stop"), End()])
    assert "secret" not in repr(out)
    assert (release.tally.withheld["log-probs of another text"], release.tally.withheld["log-prob alternatives"]) == (
        1,
        1,
    )


def test_opaque_is_dropped_or_passed_in_its_place_and_counted() -> None:
    events = [
        *text("think", place="reasoning"),
        Opaque(0, "signature", "abc"),
        *text("hi", part=1),
        Finish(0, "stop"),
        End(),
    ]
    release, out = released(planned(check(Passing)), events)
    assert "Opaque" not in kinds(out) and release.tally.withheld["opaque signature"] == 1
    release, out = released(planned(check(Passing), opaque="pass"), events)
    assert kinds(out)[:5] == ["Open", "Delta", "Close", "Opaque", "Open"] and release.tally.passed == {
        "opaque signature": 1
    }
    for came in (events, [Opaque(0, "signature", "abc"), *events]):
        _, out = released(planned(words("hi", "refuse"), policy=BUFFER, opaque="pass"), came)
        assert "Opaque" not in kinds(out) and said(out) == "i will not ."


def test_an_unknown_event_ends_the_stream_or_is_dropped_and_never_leaves() -> None:
    events = [*text("hello"), Unknown("response.surprise"), *text("more", part=1), Finish(0, "stop"), End()]
    release, out = released(planned(check(Passing)), events)
    assert said(out) == "hello" and kinds(out)[-2:] == ["Stop", "End"] and release.tally.withheld["unknown event"] == 1
    assert kinds(released(planned(check(Passing)), [Unknown("x"), *events], n=3)[1]) == ["Broken"]
    release, out = released(planned(check(Passing), unknown="drop"), events)
    assert said(out) == "hellomore" and release.tally.withheld["unknown event"] == 1


def test_names_that_could_say_something_do_not_leave() -> None:
    _, out = released(planned(check(Passing)), [About("the code is 4417", "m-1"), *reply("hi")])
    assert out[0] == About("", "m-1")


def test_half_of_a_surrogate_pair_is_no_text_and_leaves_as_a_mark() -> None:
    assert said(released(planned(check(Passing)), reply("a\ud800b"))[1]) == "a\ufffdb"


def test_a_provider_that_breaks_off_takes_what_is_held_with_it() -> None:
    release, out = released(planned(check(lambda: Passing(3))), [*text("hello", close=False), Failed("gone"), End()])
    assert kinds(out) == ["Open", "Delta", "Failed"] and said(out) == "he" and release.ended
    assert release.tally.replies == {"cut off": 1} and release.tally.withheld["characters"] == 3


def test_an_end_without_any_reply_is_a_provider_that_broke_off() -> None:
    assert kinds(released(planned(check(Passing)), [About("r"), End()])[1]) == ["About", "Failed"]


def test_an_end_in_the_middle_is_a_provider_that_broke_off() -> None:
    _, out = released(planned(check(Passing)), [*text("hel", close=False), End()])
    assert kinds(out) == ["Open", "Delta", "Failed"]


def test_a_mute_model_is_counted_as_mute_and_one_that_is_always_refused_as_refused() -> None:
    release, out = released(planned(check(Passing)), [Finish(0, "stop"), End()])
    assert kinds(out) == ["Finish", "End"] and release.tally.replies == {"empty": 1}
    never = check(lambda: Scripted(Ruling(), Ruling(Decision("refuse", "p", "never"))))
    release, out = released(planned(never), [Finish(0, "stop"), End()])
    assert release.tally.replies == {"refuse": 1} and said(out) == "i will not ."


def test_who_stops_reading_leaves_nothing_behind() -> None:
    release = Release(planned(check(lambda: Passing(9))), ASKED)
    for event in text("hello"):
        release.feed(event)
    release.close()
    assert release.ended and release.feed(Finish(0, "stop")) == [] and release.tally.replies == {"cut off": 1}


# -------------------------------------------------------------------------------------------------- shadow


def test_shadow_mode_changes_nothing_and_counts_what_would_have_been_done() -> None:
    from fairlead.guard.tally import Tally

    tally = Tally()
    for pieces in (["so b", "ad"], ["good"], ["fine"], ["a bad", " bad day"]):
        plan = planned(words(outcome="refuse"), words("good", "redact"), shadow=True)
        release, out = released(plan, reply(*pieces), tally=tally)
        assert said(out) == "".join(pieces) and "Noted" not in kinds(out)
        assert all(verdict.outcome == "allow" for verdict in release.ledger.verdicts)
    [(principle, told)] = tally.would_have().items()
    assert (principle, told["n"], told["acted"], told["outcomes"]) == ("p", 4, 3, {"redact": 1, "refuse": 2})
    assert told["low"] < told["rate"] == 0.75 < told["high"] and tally.replies == {"allow": 4}


def test_a_broken_check_in_shadow_mode_harms_nobody_and_is_counted() -> None:
    plan = planned(check(lambda: Scripted(ValueError())), shadow=True)
    release, out = released(plan, reply("hello"))
    assert said(out) == "hello" and release.tally.shadow == {("p", "failed"): 1}


# -------------------------------------------------------------------------------------------------- linear


def test_work_is_linear_in_the_length_of_a_stream() -> None:
    """Characters copied, and calls of watches: operations, not time."""
    n = 100_000
    passing = Passing(200)
    release = Release(planned(check(lambda: passing)), ASKED)
    release.feed(Open(C0, "reply"))
    event, out = Delta(C0, "ab"), 0
    for _ in range(n):
        out += sum(len(e.text) for e in release.feed(event) if isinstance(e, Delta))
    release.feed(Finish(0, "stop"))
    held = release.texts[C0]
    assert out == 2 * n - 200 and held.moved == held.out == 2 * n and passing.fed == n + 1
    assert not held.pieces and len(release.ledger.ranges) == 1


def test_a_long_piece_that_leaves_bit_by_bit_is_not_copied_for_each_bit() -> None:
    class Slowly(Passing):
        n = 0

        def feed(self, seen: Seen) -> Ruling:
            self.n += 1
            return Ruling(safe={C0: min(self.n, 1000 + self.n) * 10})

    release = Release(planned(check(Slowly)), ASKED)
    release.feed(Open(C0, "reply"))
    release.feed(Delta(C0, "x" * 10_000))
    for _ in range(500):
        release.feed(Delta(C0, "y"))
    assert release.texts[C0].moved == release.texts[C0].out == 5010

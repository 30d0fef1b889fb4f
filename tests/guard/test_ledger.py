from __future__ import annotations

import hashlib
from typing import Any

import pytest

from fairlead.exchange import Message, Text, assistant, user
from fairlead.guard.decision import Decision, Span
from fairlead.guard.holding import readable
from fairlead.guard.ledger import Ledger, faults
from fairlead.guard.plan import plan
from fairlead.guard.policy import Policy
from fairlead.guard.verdict_cache import VerdictCache, base, key
from fairlead.guard.watch import STOP, Cut, Doubt, Seen, Whole, watched
from fairlead.guard.wire.events import Channel, Close, Delta, Finish, Open
from guard.helpers import ScriptedCheck
from guard.streams import Passing, check

C0 = Channel(0, 0)
WRITTEN = [Open(C0, "reply"), Delta(C0, "héllo"), Delta(C0, " day"), Close(C0), Finish(0, "stop", "END")]


def ledger() -> Ledger:
    kept = Ledger()
    a, b = kept.verdict("c", "p", "allow"), kept.verdict("d", "p", "allow")
    kept.write(0, 0, "reply", "hé", (a,))
    kept.write(0, 0, "reply", "llo", (a,))
    kept.write(0, 0, "reply", " day", (a, b))
    kept.write(0, STOP, "reply", "END", (b,))
    return kept


def test_stretches_lie_end_to_end_and_grow_while_the_same_verdicts_cover_them() -> None:
    kept = ledger()
    assert [(r.part, r.start, r.end, r.bytes) for r in kept.ranges] == [(0, 0, 5, 6), (0, 5, 9, 4), (STOP, 0, 3, 3)]
    assert kept.bytes == 13 and faults(kept, WRITTEN) == []
    assert len({v.id for v in kept.verdicts}) == 2 and all(len(v.id) == 14 and v.id[:2] == "v-" for v in kept.verdicts)


@pytest.mark.parametrize(
    "written",
    [
        WRITTEN[:2] + WRITTEN[3:],
        [*WRITTEN, Delta(C0, "x")],
        [*WRITTEN, Delta(Channel(1, 0), "x")],
        [Delta(C0, "hellö"), *WRITTEN[2:]],
        WRITTEN[:-1],
        [],
    ],
)
def test_what_was_written_and_not_let_go_or_let_go_and_not_written_is_a_fault(written: Any) -> None:
    assert faults(ledger(), written)


def test_a_stretch_without_a_verdict_is_a_fault() -> None:
    for verdicts in ((), ("v-000000000000",)):
        kept = Ledger()
        kept.write(0, 0, "reply", "x", verdicts)
        assert faults(kept, [Delta(C0, "x")]) == ["choice 0 part 0: a stretch at 0 has no verdict"]


def test_of_several_candidates_one_is_kept() -> None:
    kept = ledger()
    kept.write(1, 0, "reply", "other", (kept.verdicts[0].id,))
    kept.keep_only(1)
    assert [(r.choice, r.end) for r in kept.ranges] == [(0, 5)]


def test_what_was_let_go_counts_once_it_is_sent_and_what_was_not_sent_is_forgotten() -> None:
    kept = ledger()
    before = [(r.start, r.end) for r in kept.ranges]
    ids = (kept.verdicts[0].id,)
    kept.write(5, 0, "reply", "one ", ids)
    kept.sent()
    kept.write(5, 0, "reply", "two", ids)
    kept.forget()
    kept.write(5, 0, "reply", "three", ids)
    assert [(r.start, r.end) for r in kept.ranges] == [*before, (0, 9)]
    assert kept.ranges[-1].sha256 == hashlib.sha256(b"one three").hexdigest()


# ------------------------------------------------------------------------------------------ the verdict cache


def test_the_cache_forgets_what_was_asked_longest_ago_and_stays_within_its_bytes() -> None:
    cache = VerdictCache(limit=1300)
    keys = [bytes([n]) for n in range(5)]
    for k in keys[:3]:
        cache.put(k, Decision("allow"))
    assert cache.get(keys[0]) and len(cache) == 3 and cache.bytes == 1200
    cache.put(keys[3], Decision("allow"))
    assert cache.get(keys[1]) is None and cache.get(keys[0]) is not None and len(cache) == 3
    cache.put(keys[0], Doubt("p", Decision("refuse"), "x" * 1000))
    assert len(cache) == 0 and cache.bytes == 0
    cache.put(keys[0], Decision("failed"))
    assert cache.get(keys[0]) is None and (cache.hits, cache.misses) == (2, 2)
    cache.put(keys[0], Decision("allow"))
    cache.put(keys[0], Decision("refuse"))
    assert cache.bytes == 400
    cache.clear()
    assert cache.bytes == len(cache) == 0


def test_keys_differ_where_anything_differs() -> None:
    asked = (user("hello"),)
    seen = {
        key(base(tenant, sha, classifier, messages), name, reply)
        for tenant in ("a", "b")
        for sha in ("c", "d")
        for classifier in ("e", "f")
        for messages in (asked, (user("hello'"),), (Message("user", (Text("hel"), Text("lo"))),))
        for name in ("g", "h")
        for reply in ((), (assistant("x"),), (assistant("x\ud800"),), (assistant("x', 'y"),))
    }
    assert len(seen) == 2 * 2 * 2 * 3 * 2 * 4
    assert key(base("a", "bc", "d", asked), "g", ()) != key(base("ab", "c", "d", asked), "g", ())


# ---------------------------------------------------------------------------------------- log-probs, plans, watches


def test_entries_are_read_by_their_bytes_where_a_token_ends_inside_a_character() -> None:
    data = "é".encode()
    log = [
        {"token": "?", "logprob": -1.0, "bytes": [data[0]]},
        {"token": "?", "logprob": None, "bytes": [data[1]], "secret": 44},
    ]
    kept, hidden = readable("é", log)
    assert (
        hidden == 0
        and [e["bytes"] for e in kept] == [[data[0]], [data[1]]]
        and "44" not in repr(kept)
        and "?" not in repr(kept)
    )
    assert readable("e", log) == ((), 0) == readable("é", [{"token": "é"}])


def test_alternatives_may_pass_where_the_policy_says_so() -> None:
    log = [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0, "x": 1}]}]
    assert readable("a", log, alternatives=True) == (
        ({"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]},),
        1,
    )


def test_a_plan_orders_checks_by_cost_and_knows_what_is_held() -> None:
    window = Policy(stream="window")
    dear = ScriptedCheck(lambda item: Decision("allow"), cost=2)
    made = plan([dear, check(Passing)], {"p": window})
    assert (made.models, made.codes, made.buffered, made.followed[1].deadline) == ((1,), (0,), frozenset(), 20.0)
    assert plan([check(Passing)], {"p": Policy(at=frozenset({"reply"}))}).buffered == {"reply", "refusal", "citation"}
    assert plan([check(Passing)], {"p": Policy()}, shadow=True).buffered == frozenset()
    assert plan([check(Passing)], {}).buffered > {"reply", "tool_call", "reasoning"}


def test_policies_that_say_nothing_known_are_refused() -> None:
    with pytest.raises(ValueError, match="stream is some"):
        Policy(stream="some")


def test_a_watch_over_the_whole_points_into_texts_and_at_calls() -> None:
    def rule(item: Any) -> Decision:
        return Decision("redact", "p", "x", (Span((0, 0), 1, 2), Span((0, 1), 5, 7), Span((0, 1), 0, 3)))

    watch = watched(ScriptedCheck(rule), (user("hello"),))
    assert isinstance(watch, Whole)
    call = Channel(0, 1)
    assert watch.feed(Seen(C0, "reply", "abc")).safe == {}
    watch.feed(Seen(call, "tool_call", '{"a": 1}', True, "send"))
    ruling = watch.finish(0)
    assert ruling.cuts == (Cut(C0, 1, 2), Cut(call, 0, 2), Cut(call, 0, 0)) and ruling.safe == {C0: 3, call: 8}


@pytest.mark.parametrize("at", [(0, 5), (1, 0)])
def test_a_span_of_a_part_that_is_not_there_is_a_fault_of_the_check(at: tuple[int, ...]) -> None:
    watch = Whole(ScriptedCheck(lambda item: Decision("redact", "p", "x", (Span(at, 0, 1),))), ())
    watch.feed(Seen(C0, "reply", "abc"))
    with pytest.raises(ValueError, match="does not have"):
        watch.finish(0)

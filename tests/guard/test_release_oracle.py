"""Random watches over random streams, against a naive oracle that sees the whole text and cuts it with indices."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.exchange import Exchange
from fairlead.guard.decision import Decision
from fairlead.guard.ledger import faults
from fairlead.guard.release import Release
from fairlead.guard.released import Noted, Stop
from fairlead.guard.watch import Cut, Ruling, Seen
from fairlead.guard.wire.events import Channel, Close, Delta, End, Finish, Open
from guard.streams import ASKED, BUFFER, SOME, WINDOW, check, planned
from guard.test_cascade import ByWindows

MARK = "[redacted]"


@dataclass(frozen=True)
class Script:
    """What one watch does to one text: how far behind it lets go, what it cuts, and where it stops everything."""

    behind: int
    cuts: tuple[tuple[int, int], ...]
    stop: int | None = None
    late: bool = False  # it holds back until the alternative is whole, not until the text is


@dataclass
class Drawn:
    """A watch that follows a script by position: it lets go `behind` characters, never into a cut it has yet to name,
    and names a cut once all of it was seen."""

    scripts: dict[Channel, Script]
    seen: dict[Channel, int] = field(default_factory=dict)
    named: dict[Channel, int] = field(default_factory=dict)
    safe: dict[Channel, int] = field(default_factory=dict)
    stopped: set[Channel] = field(default_factory=set)

    def feed(self, seen: Seen) -> Ruling:
        c = seen.channel
        script = self.scripts[c]
        n = self.seen[c] = self.seen.get(c, 0) + len(seen.text)
        ready = [cut for cut in script.cuts[self.named.get(c, 0) :] if cut[1] <= n]
        ready = list(script.cuts[self.named.get(c, 0) :][: len(ready)])
        self.named[c] = self.named.get(c, 0) + len(ready)
        waiting = [start for start, _ in script.cuts[self.named[c] :]]
        let = min(
            [
                n if seen.last and not script.late else max(0, n - script.behind),
                *waiting,
                *([script.stop] if script.stop is not None else []),
            ]
        )
        self.safe[c] = max(self.safe.get(c, 0), let)
        if script.stop is not None and n > script.stop and c not in self.stopped:
            self.stopped.add(c)
            return Ruling(Decision("refuse", "p", "here"), (), {c: self.safe[c]})
        if ready:
            cuts = tuple(Cut(c, a, b) for a, b in ready)
            return Ruling(Decision("redact", "p", "here", SOME), cuts, {c: self.safe[c]})
        return Ruling(safe={c: self.safe[c]})

    def finish(self, choice: int) -> Ruling:
        late = {c: n for c, n in self.seen.items() if c.choice == choice and c not in self.stopped}
        self.safe.update(late)
        return Ruling(safe=late)


def expected(text: str, cuts: list[tuple[int, int]]) -> str:
    """Every character under a cut is gone; a mark stands for each stretch of such characters that is not broken by a
    character that stays."""
    gone = [any(a <= k < b for a, b in cuts) for k in range(len(text))]
    return "".join(("" if k and gone[k - 1] else MARK) if gone[k] else c for k, c in enumerate(text))


@st.composite
def scripts(draw: Any, length: int, *, stops: bool) -> Script:
    bounds = draw(st.lists(st.tuples(st.integers(0, length), st.integers(1, 6)), max_size=3))
    cuts = sorted({(a, min(length, a + n)) for a, n in bounds if a < length})
    ordered: list[tuple[int, int]] = []
    for cut in cuts:  # in the order in which they can be named: ends do not go back
        if not ordered or cut[1] >= ordered[-1][1]:
            ordered.append(cut)
    stop = draw(st.one_of(st.none(), st.integers(0, max(0, length - 1)))) if stops and length else None
    return Script(draw(st.integers(0, 8)), tuple(ordered), stop, draw(st.booleans()))


@st.composite
def streams(draw: Any, *, stops: bool = False) -> Any:
    texts = draw(st.lists(st.text("abcé𝄞 ", max_size=24), min_size=1, max_size=3))
    places = draw(
        st.lists(st.sampled_from(["reply", "reasoning", "citation"]), min_size=len(texts), max_size=len(texts))
    )
    watches = draw(st.integers(1, 4))
    per_watch = [
        {Channel(0, p): draw(scripts(len(t), stops=stops and w == 0)) for p, t in enumerate(texts)}
        for w in range(watches)
    ]
    chunks = []
    for t in texts:
        marks = sorted(draw(st.sets(st.integers(0, len(t)), max_size=6)) | {0, len(t)})
        chunks.append([t[a:b] for a, b in pairwise(marks)] or [""])
    return texts, places, per_watch, chunks


def events(places: list[str], chunks: list[list[str]]) -> Any:
    for p, pieces in enumerate(chunks):
        yield Open(Channel(0, p), places[p])  # type: ignore[arg-type]
        yield from (Delta(Channel(0, p), piece) for piece in pieces)
        yield Close(Channel(0, p))
    yield Finish(0, "stop")
    yield End()


def let_go(release: Release) -> dict[Channel, int]:
    return {channel: min(held.let) for channel, held in release.texts.items()}


@settings(max_examples=300, deadline=None)
@given(streams(), st.booleans())
def test_what_leaves_is_what_an_oracle_that_sees_the_whole_lets_go(stream: Any, buffer: bool) -> None:
    texts, places, per_watch, chunks = stream
    watches = [Drawn(scripts_) for scripts_ in per_watch]
    plan = planned(*(check(lambda w=w: w) for w in watches), policy=BUFFER if buffer else WINDOW)  # type: ignore[misc]
    release = Release(plan, ASKED)
    out: list[Any] = []
    left: dict[Channel, str] = {}
    whole = False
    for event in events(places, chunks):
        whole = whole or isinstance(event, Finish)
        for gone in release.feed(event):
            out.append(gone)
            if isinstance(gone, Delta):
                left[gone.channel] = left.get(gone.channel, "") + gone.text
                assert not buffer or whole
                # never ahead of what every watch has let go by now
                for w, watch in enumerate(watches):
                    allowed = watch.safe.get(gone.channel, 0)
                    text, cuts = texts[gone.channel.part], [c for ws in per_watch for c in ws[gone.channel].cuts]
                    assert expected(text, cuts).startswith(left[gone.channel])
                    assert len(left[gone.channel].replace(MARK, "")) <= allowed, w
                    assert release.texts[gone.channel].out <= allowed
    for p, text in enumerate(texts):
        cuts = [cut for scripts_ in per_watch for cut in scripts_[Channel(0, p)].cuts]
        gone_whole = bool(cuts) and places[p] == "citation"  # what is no JSON cannot be painted over as JSON
        assert left.get(Channel(0, p), "") == ("" if gone_whole else expected(text, cuts))
    order = [e.channel.part for e in out if isinstance(e, Open | Delta | Close)]
    assert order == sorted(order)
    assert faults(release.ledger, out) == []
    cut = any(s.cuts for scripts_ in per_watch for s in scripts_.values())
    assert [e.told.decision for e in out if isinstance(e, Noted)] == (["redact"] if cut else [])


@settings(max_examples=200, deadline=None)
@given(streams(stops=True))
def test_nothing_leaves_at_or_after_the_place_where_a_watch_refuses(stream: Any) -> None:
    texts, places, per_watch, chunks = stream
    plan = planned(*(check(lambda w=w: Drawn(w)) for w in per_watch), policy=WINDOW)  # type: ignore[misc]
    release = Release(plan, ASKED)
    out = [gone for event in events(places, chunks) for gone in release.feed(event)]
    assert faults(release.ledger, out) == []
    stopped = [
        p for p in range(len(texts)) if (s := per_watch[0][Channel(0, p)].stop) is not None and s < len(texts[p])
    ]
    ends = [e for e in out if isinstance(e, Stop | Finish)]
    assert len(ends) == 1 and isinstance(out[-1], End)
    if not stopped:
        assert isinstance(ends[0], Finish) and ends[0].reason == "stop"
        return
    first = stopped[0]
    left = {p: "".join(e.text for e in out if isinstance(e, Delta) and e.channel.part == p) for p in range(len(texts))}
    if isinstance(ends[0], Finish):
        assert ends[0].reason == "content_filter" and left[0] == "i will not ." and not any(list(left.values())[1:])
        return
    cuts = [cut for scripts_ in per_watch for cut in scripts_[Channel(0, first)].cuts]
    stop = per_watch[0][Channel(0, first)].stop
    assert stop is not None
    assert expected(texts[first][:stop], [(a, min(b, stop)) for a, b in cuts if a < stop]).startswith(left[first])
    assert not any(left[p] for p in range(first + 1, len(texts)))


@settings(max_examples=100, deadline=None)
@given(streams(), st.data())
def test_how_a_stream_is_cut_into_pieces_changes_nothing(stream: Any, data: Any) -> None:
    texts, places, per_watch, chunks = stream

    def left(pieces: list[list[str]]) -> list[str]:
        plan = planned(*(check(lambda w=w: Drawn(w)) for w in per_watch), policy=WINDOW)  # type: ignore[misc]
        release = Release(plan, ASKED)
        out = [gone for event in events(places, pieces) for gone in release.feed(event)]
        return ["".join(e.text for e in out if isinstance(e, Delta) and e.channel.part == p) for p in range(len(texts))]

    assert left(chunks) == left([[t] for t in texts]) == left([list(t) for t in texts])


@settings(max_examples=100, deadline=None)
@given(streams(), streams(), st.data())
def test_alternatives_that_come_interleaved_leave_as_they_would_alone(one: Any, two: Any, data: Any) -> None:
    def of(stream: Any, choice: int) -> tuple[dict[Channel, Script], list[Any]]:
        _, places, per_watch, chunks = stream
        scripts_ = {Channel(choice, c.part): script for c, script in per_watch[0].items()}
        moved = []
        for event in list(events(places, chunks))[:-1]:
            channel = getattr(event, "channel", None)
            moved.append(
                Finish(choice, "stop") if channel is None else replace(event, channel=Channel(choice, channel.part))
            )
        return scripts_, moved

    def left(scripts_: dict[Channel, Script], came: list[Any], n: int) -> dict[int, list[Any]]:
        release = Release(planned(check(lambda: Drawn(scripts_))), ASKED, n=n)
        out = [gone for event in [*came, End()] for gone in release.feed(event)]
        assert faults(release.ledger, out) == [] and isinstance(out[-1], End)
        by: dict[int, list[Any]] = {}
        for e in out[:-1]:
            if isinstance(e, Delta):
                by.setdefault(e.channel.choice, []).append((e.channel, e.text))
            elif isinstance(e, Finish | Noted):
                by.setdefault(e.choice, []).append(type(e))
        return by

    (a, first), (b, second) = of(one, 0), of(two, 1)
    order = data.draw(st.permutations([0] * len(first) + [1] * len(second)))
    queues = [iter(first), iter(second)]
    together = left(a | b, [next(queues[k]) for k in order], 2)
    alone = left(a, first, 1) | left(b, second, 1)
    assert together == alone


class Later:
    """Answers questions when the test says so."""

    def __init__(self) -> None:
        self.open: list[tuple[str, asyncio.Future[Decision]]] = []

    def ask(self, one: Any, exchange: Exchange, deadline: float) -> asyncio.Future[Decision]:
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self.open.append((exchange.reply_text, future))
        return future


@settings(max_examples=200, deadline=None)
@given(
    st.text("abX", max_size=30),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=3),
    st.booleans(),
    st.data(),
)
def test_nothing_leaves_before_every_model_has_answered_for_it(
    text: str, models: list[tuple[int, int]], buffer: bool, data: Any
) -> None:
    async def work() -> None:
        checks = [
            ByWindows(name=f"m{k}", window=window, context=context, cost=1 + k % 2)
            for k, (window, context) in enumerate(models)
        ]
        plan = planned(*checks, policy=BUFFER if buffer else WINDOW)
        later = Later()
        asker = SimpleNamespace(cache=None, batchers=dict.fromkeys(plan.models, later), pool=None)
        release = Release(plan, ASKED, asker=asker)  # type: ignore[arg-type]
        marks = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
        came = [Delta(Channel(0, 0), text[a:b]) for a, b in pairwise(marks)]
        queue: list[Any] = [Open(Channel(0, 0), "reply"), *came, Finish(0, "stop"), End()]
        out: list[Any] = []
        while queue or later.open:
            if queue and (not later.open or data.draw(st.booleans())):
                out += release.feed(queue.pop(0))
            else:
                read, future = later.open.pop(data.draw(st.integers(0, len(later.open) - 1)))
                future.set_result(Decision("refuse", "p", "X") if "X" in read else Decision("allow"))
                await asyncio.sleep(0)
                out += release.take()
            left = "".join(e.text for e in out if isinstance(e, Delta) and e.text != "i will not .")
            assert text.startswith(left) and "X" not in left
            held = release.texts.get(Channel(0, 0))
            assert held is None or release.choices[0].ended or held.out <= min(held.let)
        assert release.ended and faults(release.ledger, out) == []
        if "X" not in text:
            assert left == text and isinstance(out[-2], Finish) and out[-2].reason == "stop"
        else:
            assert any(isinstance(e, Stop) or (isinstance(e, Finish) and e.reason == "content_filter") for e in out)

    asyncio.run(work())

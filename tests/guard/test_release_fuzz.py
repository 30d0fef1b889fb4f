"""Any events, any checks: what leaves is well-formed, covered by the ledger, and never runs ahead of what was let go."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.guard.decision import Decision
from fairlead.guard.ledger import faults
from fairlead.guard.policy import Policy
from fairlead.guard.release import Release
from fairlead.guard.released import Broken, Noted, Stop
from fairlead.guard.watch import Cut, Doubt, Ruling, Seen
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
    Unknown,
    with_ends,
)
from guard.streams import ASKED, SOME, check, planned

PLACES = ["reply", "reasoning", "refusal", "citation", "tool_call"]
ACTS = [
    "let go",
    "let go",
    "let go",
    "hold back",
    "redact",
    "refuse",
    "escalate",
    "block",
    "revise",
    "raise",
    "fail",
    "doubt",
    "nonsense",
]


class Any_:
    """A watch that does what was drawn, in turn; at the end it lets go of everything, or does one thing more."""

    def __init__(self, acts: list[tuple[str, int, int]], last: tuple[str, int, int]) -> None:
        self.acts, self.last, self.seen, self.safe = list(acts), last, Counter[Channel](), Counter[Channel]()

    def _do(self, act: tuple[str, int, int], channel: Channel, everything: bool) -> Any:
        name, a, b = act
        safe = (
            dict(self.seen)
            if everything
            else {channel: max(self.safe[channel], self.seen[channel] - (a if name == "hold back" else 0))}
        )
        self.safe.update({c: n - self.safe[c] for c, n in safe.items()})
        match name:
            case "redact" | "block":
                outcome: Any = "redact" if name == "redact" else "block_tool_call"
                return Ruling(Decision(outcome, "", "drawn", SOME), (Cut(channel, a, a + b),), safe)
            case "refuse" | "escalate" | "revise":
                return Ruling(Decision(name, "", "drawn"), (), safe)  # type: ignore[arg-type]
            case "raise":
                raise ValueError
            case "fail":
                return Ruling(Decision("failed", "", "drawn"))
            case "doubt":
                return Ruling(safe=safe, doubt=Doubt("nobody", Decision("refuse", "", "drawn")))
            case "nonsense":
                return [None, 3, Ruling(safe={channel: float("nan")})][a % 3]  # type: ignore[dict-item]
        return Ruling(safe=safe)

    def feed(self, seen: Seen) -> Any:
        self.seen[seen.channel] += len(seen.text)
        return self._do(self.acts.pop(0) if self.acts else ("let go", 0, 0), seen.channel, False)

    def finish(self, choice: int) -> Any:
        return self._do(self.last, Channel(choice, 0), True)


@st.composite
def replies(draw: Any) -> list[Any]:
    out: list[Any] = [About("r", "m")]
    for choice in range(draw(st.integers(1, 2))):
        for part in range(draw(st.integers(0, 3))):
            channel, place = Channel(choice, part), draw(st.sampled_from(PLACES))
            name = "send" if place == "tool_call" else ""
            out.append(Open(channel, place, name, name))
            body = draw(st.text("ab é\U0001d11e", max_size=12))
            if place == "tool_call":
                body = draw(st.sampled_from([json.dumps({"x": body}), json.dumps({"x": 44, "y": [body]}), body, ""]))
            size = draw(st.integers(1, 8))
            out += [Delta(channel, body[k : k + size]) for k in range(0, len(body), size)]
            if draw(st.booleans()):
                out.append(Close(channel))
            extra = draw(st.sampled_from([None] * 8 + [Opaque(choice, "signature", "x"), Unknown("x")]))
            out += [extra] if extra is not None else []
        if draw(st.integers(0, 9)):
            out.append(
                Finish(
                    choice,
                    draw(st.sampled_from(["stop", "length", "tool_calls"])),
                    draw(st.sampled_from(["", "", "END"])),
                )
            )
    if not draw(st.integers(0, 9)):
        out.insert(draw(st.integers(0, len(out))), Failed("gone"))
    return [*out, End()]


acts = st.tuples(st.sampled_from(ACTS), st.integers(0, 6), st.integers(0, 4))
rare = st.one_of(st.just(("let go", 0, 0)), st.just(("let go", 0, 0)), acts)


@settings(max_examples=600, deadline=None)
@given(
    replies(),
    st.lists(
        st.tuples(
            st.lists(rare, max_size=8),
            rare,
            st.sampled_from(["refuse", "allow"]),
            st.sampled_from(["window", "buffer"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["drop", "pass"]),
    st.sampled_from(["stop", "drop"]),
    st.booleans(),
)
def test_whatever_comes_and_whatever_checks_say_what_leaves_is_well_formed_and_covered(
    events: list[Any], drawn: list[Any], opaque: Any, unknown: Any, together: bool
) -> None:
    policies = {
        f"p{k}": Policy("be kind", "no .", on_error, stream, shadow=shadow)
        for k, (_, _, on_error, stream, shadow) in enumerate(drawn)
    }
    checks = [
        check(lambda a=a, last=last: Any_(a, last), principle=f"p{k}", name=f"c{k}")
        for k, (a, last, *_) in enumerate(drawn)
    ]  # type: ignore[misc]
    n = 1 + max((e.channel.choice for e in events if isinstance(e, Open)), default=0)
    release = Release(planned(*checks, policies=policies, opaque=opaque, unknown=unknown), ASKED, n=n)
    out: list[Any] = []
    for event, last in with_ends(events) if together else ((event, False) for event in events):
        out += release.feed(event, last)
        for held in release.texts.values():
            assert held.out <= held.seen and (release.choices[held.channel.choice].ended or held.out <= min(held.let))
    assert release.ended and not release.pending
    assert faults(release.ledger, out) == []
    _well_formed(out)
    assert release.tally.replies.total() >= (0 if isinstance(out[-1], Failed) else 1)


def _well_formed(out: list[Any]) -> None:
    assert isinstance(out[-1], End | Failed | Broken)
    assert not any(isinstance(e, End | Failed | Broken) for e in out[:-1])
    if isinstance(out[-1], Broken):
        assert len(out) == 1
        return
    opened: set[Channel] = set()
    closed: set[Channel] = set()
    over: set[int] = set()
    noted: set[int] = set()
    for e in out:
        choice = getattr(getattr(e, "channel", e), "choice", None)
        assert choice not in over
        if isinstance(e, Open):
            assert e.channel not in opened
            opened.add(e.channel)
        elif isinstance(e, Delta | Close):
            assert e.channel in opened and e.channel not in closed
            if isinstance(e, Close):
                closed.add(e.channel)
        elif isinstance(e, Noted):
            assert e.choice not in noted
            noted.add(e.choice)
        elif isinstance(e, Finish):
            assert {c for c in opened if c.choice == e.choice} <= closed
            over.add(e.choice)
        elif isinstance(e, Stop):
            over.add(e.choice)
        assert not noted - over or isinstance(e, Noted)  # a note stands right before its finish

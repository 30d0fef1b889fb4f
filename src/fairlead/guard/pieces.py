"""The texts of a reply: all that a reader or a tool could see, where each stands, and how to change it.

Nothing is left out in silence: what cannot be read (opaque reasoning, media) is listed by `unreadable` and withheld.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairlead.exchange import Media, Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult
from fairlead.guard.decision import Span

REDACTED = "[redacted]"
PLACES = frozenset({"reply", "reasoning", "tool_call", "tool_result"})


@dataclass(frozen=True, slots=True)
class Piece:
    """One text of a reply. `place` is reply, tool_call, tool_result or reasoning."""

    at: tuple[int, ...]
    place: str
    text: str


def pieces(reply: Sequence[Message]) -> list[Piece]:
    """Every readable text of the reply, in order."""
    return [
        piece
        for m, message in enumerate(reply)
        for piece in _of_parts(message.parts, (m,), "tool_result" if message.role == "tool" else "")
    ]


def _of_parts(parts: Iterable[Part], at: tuple[int, ...], inside: str) -> Iterable[Piece]:
    for p, part in enumerate(parts):
        here = (*at, p)
        match part:
            case Text(text) | Refusal(text):
                yield Piece(here, inside or "reply", text)
            case ToolCall(_, name, arguments):
                yield Piece(here, "tool_call", f"{name}\n{arguments}")
            case Reasoning(text, _):
                if text is not None:
                    yield Piece(here, "reasoning", text)
            case ToolResult(_, inner, _):
                yield from _of_parts(inner, here, "tool_result")
            case Media():
                pass


def unreadable(reply: Sequence[Message]) -> list[str]:
    """What of the reply no check here can read, in words."""
    found: list[str] = []

    def look(parts: Iterable[Part]) -> None:
        for part in parts:
            if isinstance(part, Reasoning) and part.opaque is not None:
                found.append("opaque reasoning")
            elif isinstance(part, Media):
                found.append(f"media ({part.kind})")
            elif isinstance(part, ToolResult):
                look(part.parts)

    for message in reply:
        look(message.parts)
    return found


def without_unreadable(reply: Sequence[Message]) -> tuple[Message, ...]:
    """The reply without its media and without opaque reasoning; readable reasoning stays."""

    def keep(part: Part) -> Part | None:
        match part:
            case Media():
                return None
            case Reasoning(text, opaque) if opaque is not None:
                return None if text is None else Reasoning(text)
            case ToolResult(_, inner, _):
                return dataclasses.replace(part, parts=tuple(p for p in map(keep, inner) if p is not None))
            case _:
                return part

    return tuple(
        dataclasses.replace(message, parts=tuple(p for p in map(keep, message.parts) if p is not None))
        for message in reply
    )


def only(reply: Sequence[Message], places: Collection[str]) -> tuple[Message, ...]:
    """The reply's texts at these places; a message of which nothing is left is dropped."""

    def keep(part: Part, at: tuple[int, ...], inside: str) -> Part | None:
        if isinstance(part, ToolResult):
            inner = (keep(p, at, "tool_result") for p in part.parts)
            kept = tuple(p for p in inner if p is not None)
            return dataclasses.replace(part, parts=kept) if kept else None
        return part if any(piece.place in places for piece in _of_parts((part,), at, inside)) else None

    out = []
    for m, message in enumerate(reply):
        inside = "tool_result" if message.role == "tool" else ""
        parts = tuple(p for p in (keep(part, (m,), inside) for part in message.parts) if p is not None)
        if parts == message.parts:
            out.append(message)
        elif parts:
            out.append(dataclasses.replace(message, parts=parts))
    return tuple(out)


def redact(reply: Sequence[Message], spans: Iterable[Span], mark: str = REDACTED) -> tuple[Message, ...]:
    """The reply with every span replaced by `mark`; touching and overlapping spans become one mark.

    A span in a tool call is not text to be painted over (the call would do something else): the call is dropped, see
    `drop_calls`.
    """
    by_place: dict[tuple[int, ...], list[Span]] = {}
    for span in spans:
        by_place.setdefault(span.at, []).append(span)
    return _map_parts(reply, {at: _painter(found, mark) for at, found in by_place.items()})


def drop_calls(reply: Sequence[Message], places: Iterable[tuple[int, ...]], say: str) -> tuple[Message, ...]:
    """The reply with the tool calls at `places` replaced by the text `say`."""
    return _map_parts(reply, {at: lambda _: Text(say) for at in places})


def _painter(spans: Sequence[Span], mark: str) -> Callable[[Part], Part]:
    def paint(part: Part) -> Part:
        if isinstance(part, Text | Refusal):
            return dataclasses.replace(part, text=_paint(part.text, spans, mark))
        if isinstance(part, Reasoning) and part.text is not None:
            return dataclasses.replace(part, text=_paint(part.text, spans, mark))
        raise ValueError(f"a span of a decision points at a {type(part).__name__}, which cannot be redacted")

    return paint


def _paint(text: str, spans: Sequence[Span], mark: str) -> str:
    out: list[str] = []
    done = 0
    last: Span | None = None
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        if span.end > len(text):
            raise ValueError(f"a span ends at {span.end}, the text at {len(text)}")
        if last is None or span.start > done:
            out += [text[done : span.start], mark]
        last, done = span, max(done, span.end)
    return "".join([*out, text[done:]])


def _map_parts(
    reply: Sequence[Message], changes: Mapping[tuple[int, ...], Callable[[Part], Part]]
) -> tuple[Message, ...]:
    left = set(changes)

    def walk(parts: Iterable[Part], at: tuple[int, ...]) -> tuple[Part, ...]:
        out: list[Part] = []
        for p, part in enumerate(parts):
            here = (*at, p)
            if here in changes:
                left.discard(here)
                part = changes[here](part)
            elif isinstance(part, ToolResult):
                part = dataclasses.replace(part, parts=walk(part.parts, here))
            out.append(part)
        return tuple(out)

    changed = tuple(dataclasses.replace(m, parts=walk(m.parts, (i,))) for i, m in enumerate(reply))
    if left:
        raise ValueError(f"no part of the reply stands at {sorted(left)[0]}")
    return changed

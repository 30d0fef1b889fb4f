"""A reply gathered from its events: alternatives, and in each its parts in the order in which they were opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from fairlead.guard.wire.events import About, Channel, Delta, Event, Failed, Finish, Opaque, Open, Place, Told

Entries = Sequence[Mapping[str, Any]]  # log-probs of tokens


@dataclass(slots=True)
class Grown:
    """A part with all its text."""

    place: Place
    id: str
    name: str
    texts: list[str] = field(default_factory=list)
    logprobs: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else "".join(self.texts)


@dataclass(slots=True)
class Alternative:
    parts: list[Grown | Opaque] = field(default_factory=list)
    finish: Finish | None = None


@dataclass(slots=True)
class Reply:
    alternatives: dict[int, Alternative] = field(default_factory=dict)
    about: About = field(default_factory=About)


def gathered(events: Iterable[Event]) -> Reply:
    """Raises ValueError on a reply that the provider broke off: it has no body, answer with the format's `error`."""
    reply = Reply()
    parts: dict[Channel, Grown] = {}
    choices = reply.alternatives
    for event in events:
        match event:
            case Delta():
                part = parts[event.channel]
                part.texts.append(event.text)
                part.logprobs.extend(event.logprobs)
            case Open():
                part = parts[event.channel] = Grown(event.place, event.id, event.name)
                choices.setdefault(event.channel.choice, Alternative()).parts.append(part)
            case Finish():
                choices.setdefault(event.choice, Alternative()).finish = event
            case Opaque():
                choices.setdefault(event.choice, Alternative()).parts.append(event)
            case About():
                reply.about = joined(reply.about, event)
            case Failed():
                raise ValueError("a reply that the provider broke off has no body: answer with the format's error()")
    return reply


def joined(before: About, after: About) -> About:
    """What is known of a reply after one more `About`."""
    numbers = {**before.numbers, **after.numbers} if before.numbers else after.numbers
    return About(after.id or before.id, after.model or before.model, after.created or before.created, numbers)


def spelled(entries: Entries) -> bytes:
    """The text that tokens spell: by their bytes where these are given (a token may end inside a character)."""
    return b"".join(bytes(e["bytes"]) if e.get("bytes") is not None else str(e["token"]).encode() for e in entries)


def entries(given: Any) -> tuple[dict[str, Any], ...] | None:
    """Log-probs as OpenAI's chat and responses routes write them, field by field; None where they are not that."""
    if not isinstance(given, list):
        return None
    out = []
    for one in given:
        entry = _entry(one)
        if entry is None:
            return None
        others = one.get("top_logprobs")
        if isinstance(others, list):
            entry["top_logprobs"] = [read for read in map(_entry, others) if read is not None]
        out.append(entry)
    return tuple(out)


def _entry(one: Any) -> dict[str, Any] | None:
    if not isinstance(one, dict):
        return None
    token, logprob, raw = one.get("token"), one.get("logprob"), one.get("bytes")
    if not isinstance(token, str) or not isinstance(logprob, int | float):
        return None
    if raw is not None and not (isinstance(raw, list) and all(type(b) is int and 0 <= b < 256 for b in raw)):
        return None
    return {"token": token, "logprob": logprob, "bytes": raw}


def written(given: Entries, text: str, alternatives: bool) -> list[dict[str, Any]]:
    """Log-probs as they leave: none where the tokens do not spell `text`; alternatives only where they may pass."""
    if not given or spelled(given) != text.encode():
        return []
    return [
        {
            "token": _token(e),
            "logprob": e["logprob"],
            "bytes": e.get("bytes"),
            "top_logprobs": e.get("top_logprobs", []) if alternatives else [],
        }
        for e in given
    ]


def _token(entry: Mapping[str, Any]) -> str:
    """The token in letters. Where bytes are given they were checked, and the provider's letters were not."""
    given = entry.get("bytes")
    if given is None:
        return str(entry["token"])
    try:
        return bytes(given).decode()
    except UnicodeDecodeError:  # a token that ends inside a character, as OpenAI writes it
        return "bytes:" + "".join(f"\\x{one:02x}" for one in given)


# ------------------------------------------------------------------------------------------------ decisions

_GRAVE = ("allow", "redact", "revise", "block_tool_call", "escalate", "refuse", "failed")


def note(tolds: Sequence[tuple[int, Told]]) -> dict[str, Any] | None:
    """What stands under `fairlead`: the gravest decision, and under `others` the rest, each with its alternative."""
    if not tolds:
        return None
    first = max(range(len(tolds)), key=lambda i: (_rank(tolds[i][1]), -i))
    found = said(tolds[first][1])
    if len(tolds) > 1:
        found["choice"] = tolds[first][0]
        found["others"] = [{**said(told), "choice": c} for i, (c, told) in enumerate(tolds) if i != first]
    return found


def said(told: Told) -> dict[str, Any]:
    return {"decision": told.decision, "principle": told.principle, "verdict": told.verdict}


def _rank(told: Told) -> int:
    return _GRAVE.index(told.decision) if told.decision in _GRAVE else len(_GRAVE)


# ------------------------------------------------------------------------------------------------ numbers


def numbers(given: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `given` under known names. `known` maps a name to None, or to the names of an object inside."""
    if not isinstance(given, dict):
        return {}
    out: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            continue
        if known[name] is not None:
            inner = numbers(value, known[name])
            if inner:
                out[name] = inner
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[name] = value
    return out


def parsed(text: str) -> Any:
    """JSON, or None."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None

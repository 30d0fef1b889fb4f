"""What comes over the wire, in one shape for every route: a reply is a sequence of events, streamed or not.

A format (`wire/`) reads a provider's bytes into these events and writes bytes from these events, and nothing else: what
leaves the guard is built anew from text that was released, so that what the guard does not know cannot pass through it.
An answer that is not streamed is the same sequence, read from one body and written into one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

Place: TypeAlias = Literal["reply", "reasoning", "tool_call", "refusal", "citation"]
Reason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter", "refusal", "pause"]


class Channel(NamedTuple):
    """One text that grows: a part of one of the alternatives (`choice`) that a reply has.

    choice   index of the alternative, 0 where a format has one
    part     running number of the part within it, in the order in which the parts were opened
    """  # a tuple, since it is the key of a dictionary some fifty times in a request

    choice: int
    part: int


@dataclass(frozen=True, slots=True)
class Open:
    """A part begins. Of a tool call `id` and `name` are known from here on; its arguments follow as text.

    Of other parts `name` is empty, or one of the few words by which the Responses API tells parts of a place apart
    (`responses_read.SUMMARY`, `PHASES`). `id` is the provider's; what is written is made anew (`ids.py`).
    """

    channel: Channel
    place: Place
    id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of a part. `logprobs` are the provider's entries for exactly this text, where it gave any."""

    channel: Channel
    text: str
    logprobs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Close:
    """A part is whole."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Finish:
    """An alternative is whole. `stop` is the stop string that ended it: text, and scanned like text."""

    choice: int
    reason: Reason
    stop: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """Of the whole reply: id, model, and numbers by their names in the format (usage)."""

    id: str = ""
    model: str = ""
    created: int = 0
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opaque:
    """What no check can read (encrypted reasoning, its signature): dropped, unless the policy lets it pass uncounted as
    scanned. `kind` is the format's own word for it; `data` is the JSON value that would stand on the wire."""

    choice: int
    kind: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that this format has no name for, withheld and counted. `what` names it and never repeats it.

    `what` begins with "field of", "log-probs", "finish_reason", "stop_reason" or "incomplete_details" where something
    stood beside text that was read; else it was an event, a part or a text of its own that is missing from the reply.
    """

    what: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider broke off. `why` is the guard's own sentence, never the provider's text."""

    why: str
    status: int = 502


@dataclass(frozen=True, slots=True)
class End:
    """The provider says that nothing more will come."""


Event: TypeAlias = Open | Delta | Close | Finish | About | Opaque | Unknown | Failed | End


@dataclass(frozen=True, slots=True)
class Told:
    """What the guard did about a reply, for the client: put beside the format's own terms under `fairlead`.

    decision    allow, redact, revise, refuse, escalate, block_tool_call, failed
    principle   id of the principle ("" for none)
    verdict     id under which the audit log holds why
    """

    decision: str
    principle: str
    verdict: str


def with_ends(events: Sequence[Event]) -> Iterator[tuple[Event, bool]]:
    """Each event, and whether it is the last text of its channel, which its `Close` follows at once: that `Close` is
    left out then, so that a reply in one body is read once."""
    ended = False
    for n, event in enumerate(events):
        if ended:
            ended = False
            continue
        if isinstance(event, Delta) and n + 1 < len(events):
            following = events[n + 1]
            ended = isinstance(following, Close) and following.channel == event.channel
        yield event, ended

"""OpenAI's `/v1/responses`: bodies and streams from events.

The response object, which the stream says three times, is built from released parts alone: what it would repeat of
the request (instructions, tools) is left out. Each part of a reply becomes an item; parts of reasoning that follow each
other share one, up to the encrypted form that ends it. An item is closed on the wire when the next one begins, since
citations and encrypted reasoning are released after the text they belong to.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fairlead.guard.wire import citation, errors, ids, reply, responses_request, sse
from fairlead.guard.wire.asked import Asked
from fairlead.guard.wire.events import About, Close, Delta, Event, Failed, Finish, Opaque, Open, Place, Reason, Told
from fairlead.guard.wire.format import Format, Tolds
from fairlead.guard.wire.responses_read import PHASES, SUMMARY, Reads, events

_REFERS = frozenset(("store", "previous_response_id", "background", "conversation"))
_SETTINGS = ("temperature", "top_p", "max_output_tokens")
_NO_USAGE: dict[str, Any] = {
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}  # fmt: skip


@dataclass(slots=True)
class _Part:
    """A part of an item as it stands on the wire."""

    item: _Item
    index: int  # among the parts of its item
    place: Place
    summary: bool
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    cited: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False
    shut: bool = False

    def object(self) -> dict[str, Any]:
        text = "".join(self.texts)
        match self.place:
            case "refusal":
                return {"type": "refusal", "refusal": text}
            case "reasoning":
                return {"type": "summary_text" if self.summary else "reasoning_text", "text": text}
            case _:
                return {"type": "output_text", "text": text, "annotations": self.cited, "logprobs": self.logprobs}


@dataclass(slots=True)
class _Item:
    index: int
    id: str
    kind: str
    head: dict[str, Any]  # what does not change: the call's id and name, the phase
    parts: list[_Part] = field(default_factory=list)
    encrypted: str | None = None
    status: str = "in_progress"

    def object(self) -> dict[str, Any]:
        out: dict[str, Any] = {"id": self.id, "type": self.kind, "status": self.status, **self.head}
        match self.kind:
            case "message":
                out |= {"role": "assistant", "content": [part.object() for part in self.parts]}
            case "function_call":
                out["arguments"] = "".join(self.parts[0].texts) if self.parts else ""
            case _:
                del out["status"]
                out["summary"] = [part.object() for part in self.parts if part.summary]
                thoughts = [part.object() for part in self.parts if not part.summary]
                if thoughts:
                    out["content"] = thoughts
                if self.encrypted is not None:
                    out["encrypted_content"] = self.encrypted
        return out


class Writer:
    """`format.Writer`. The decisions about a reply stand in its last response object, under `fairlead`."""

    def __init__(self, asked: Asked, quiet: bool = False) -> None:
        self._asked = asked
        self._quiet = quiet  # no bytes are wanted, only the object
        self._about = About()
        self._items: list[_Item] = []
        self._parts: dict[int, _Part] = {}  # by number of the part
        self._open: list[_Item] = []  # items that are not shut
        self._last: _Part | None = None  # the latest part of a reply
        self._cited: dict[int, list[str]] = {}
        self._finish: Finish | None = None
        self._told: list[tuple[int, Told]] = []
        self._id = ""
        self._created = 0
        self._sequence = 0
        self._over = self._ended = False

    # ---------------------------------------------------------------------------------------- events

    def write(self, event: Event) -> bytes:
        if self._over and not isinstance(event, About):
            return b""
        match event:
            case Delta():
                return self._delta(event)
            case Open():
                return self._opened(event)
            case Close():
                return self._closed(event.channel.part)
            case About():
                self._about = reply.joined(self._about, event)
            case Opaque():
                return self._opaque(event)
            case Finish():
                return self._cut(event, "completed" if event.reason in ("stop", "tool_calls") else "incomplete")
            case Failed():
                out = self._cut(Finish(0, "stop"), "incomplete")
                self._ended = True
                error = {"code": "server_error", "message": event.why}
                return out + self._say("response.failed", response=self._object("failed", error))
        return b""

    def _say(self, kind: str, **rest: Any) -> bytes:
        if self._quiet:
            return b""
        self._sequence += 1
        return sse.named({"type": kind, "sequence_number": self._sequence - 1, **rest})

    def _start(self) -> bytes:
        if self._id:
            return b""
        self._begun()
        if self._quiet:
            return b""
        begun = self._object("in_progress")
        return self._say("response.created", response=begun) + self._say("response.in_progress", response=begun)

    def _begun(self) -> None:
        keep = bool(self._asked.policy.fields & _REFERS)
        self._id = ids.made("resp_", self._about.id, keep)
        self._created = self._about.created or int(time.time())

    def _opened(self, event: Open) -> bytes:
        number, place = event.channel.part, event.place
        if place == "citation":
            self._cited[number] = []
            return b""
        out = self._start()
        if place == "reasoning":
            item = next((one for one in self._open if one.kind == "reasoning"), None)
            if item is None:
                out += self._shut_whole()
                item, begun = self._begin("reasoning", "rs_", {})
                out += begun
            return out + self._part(item, number, place, event.name == SUMMARY)
        out += self._shut_whole()
        if place == "tool_call":
            head = {"call_id": ids.of_call("call_", event.id, event.name), "name": event.name}
            item, begun = self._begin("function_call", "fc_", head)
        else:
            item, begun = self._begin("message", "msg_", {"phase": event.name} if event.name in PHASES else {})
        return out + begun + self._part(item, number, place, False)

    def _begin(self, kind: str, prefix: str, head: dict[str, Any]) -> tuple[_Item, bytes]:
        index = len(self._items)
        item = _Item(index, ids.made(prefix, f"{self._id}/{index}"), kind, head)
        self._items.append(item)
        self._open.append(item)
        return item, self._say("response.output_item.added", output_index=index, item=item.object())

    def _part(self, item: _Item, number: int, place: Place, summary: bool) -> bytes:
        index = sum(part.summary == summary for part in item.parts)
        part = self._parts[number] = _Part(item, index, place, summary)
        item.parts.append(part)
        if place == "tool_call":
            return b""
        if place in ("reply", "refusal"):
            self._last = part
        name = "response.reasoning_summary_part.added" if summary else "response.content_part.added"
        return self._say(name, **self._where(part), part=part.object())

    def _where(self, part: _Part) -> dict[str, Any]:
        where: dict[str, Any] = {"item_id": part.item.id, "output_index": part.item.index}
        if part.place != "tool_call":
            where["summary_index" if part.summary else "content_index"] = part.index
        return where

    def _delta(self, event: Delta) -> bytes:
        number = event.channel.part
        if number in self._cited:
            self._cited[number].append(event.text)
            return b""
        part = self._parts[number]
        if not event.text:
            return b""
        part.texts.append(event.text)
        if part.place != "reply":
            return self._say(f"{_name(part)}.delta", **self._where(part), delta=event.text)
        found = _logprobs(event, self._asked)
        part.logprobs += found
        return self._say("response.output_text.delta", **self._where(part), delta=event.text, logprobs=found)

    def _closed(self, number: int) -> bytes:
        if number not in self._cited:
            self._parts[number].whole = True
            return b""
        cited = citation.write_responses("".join(self._cited.pop(number)))
        part = self._last
        if cited is None or part is None or part.shut or part.place != "reply":
            return b""
        part.cited.append(cited)
        name, index = "response.output_text.annotation.added", len(part.cited) - 1
        return self._say(name, **self._where(part), annotation_index=index, annotation=cited)

    def _opaque(self, event: Opaque) -> bytes:
        if event.kind != "encrypted_content" or not isinstance(event.data, str):
            return b""
        out = self._start()
        item = next((one for one in self._open if one.kind == "reasoning"), None)
        if item is None:
            out += self._shut_whole()
            item, begun = self._begin("reasoning", "rs_", {})
            out += begun
        item.encrypted = event.data
        return out + self._shut_item(item, "completed")

    # ---------------------------------------------------------------------------------------- ends

    def _shut_whole(self) -> bytes:
        """The ends of the items that are whole."""
        done = [one for one in self._open if all(part.whole for part in one.parts)]
        return b"".join(self._shut_item(one, "completed") for one in done)

    def _shut_item(self, item: _Item, status: str) -> bytes:
        item.status = status
        self._open.remove(item)
        for part in item.parts:
            part.shut = True
        if self._quiet:
            return b""
        out = []
        for part in item.parts:
            made = part.object()
            match part.place:
                case "tool_call":
                    rest: dict[str, Any] = {"name": item.head["name"], "arguments": "".join(part.texts)}
                case "refusal":
                    rest = {"refusal": made["refusal"]}
                case "reasoning":
                    rest = {"text": made["text"]}
                case _:
                    rest = {"text": made["text"], "logprobs": made["logprobs"]}
            out.append(self._say(f"{_name(part)}.done", **self._where(part), **rest))
            if part.place != "tool_call":
                name = "response.reasoning_summary_part.done" if part.summary else "response.content_part.done"
                out.append(self._say(name, **self._where(part), part=made))
        out.append(self._say("response.output_item.done", output_index=item.index, item=item.object()))
        return b"".join(out)

    def _cut(self, finish: Finish, status: str) -> bytes:
        self._finish, self._over = finish, True
        out = self._start()
        for item in list(self._open):
            out += self._shut_item(item, "completed" if all(part.whole for part in item.parts) else status)
        return out

    def ping(self) -> bytes:
        return b": wait\n\n"

    def told(self, choice: int, told: Told) -> bytes:
        self._told.append((choice, told))
        return b""

    def stop(self, choice: int, reason: Reason, told: Told) -> bytes:
        if self._over:
            return b""
        self._told.append((choice, told))
        return self._cut(Finish(choice, reason), "incomplete")

    def end(self) -> bytes:
        if self._ended:
            return b""
        out = b"" if self._over else self._cut(Finish(0, "content_filter"), "incomplete")
        self._ended = True
        status = _status(self._finish)
        return out + self._say(f"response.{status}", response=self._object(status))

    def gathered(self) -> dict[str, Any]:
        """The response object of all that was written, as it ends."""
        self._start()
        if not self._over:
            self._cut(Finish(0, "content_filter"), "incomplete")
        return self._object(_status(self._finish))

    def _object(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The response object."""
        asked, over = self._asked.upstream, status != "in_progress"
        why = _why(self._finish) if status == "incomplete" else None
        out: dict[str, Any] = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": error,
            "incomplete_details": why and {"reason": why},
            "instructions": None,
            "metadata": {},
            "model": ids.model(self._asked.model, self._about.model),
            "output": [item.object() for item in self._items] if over else [],
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            **{name: asked[name] for name in _SETTINGS if isinstance(asked.get(name), int | float)},
            "tool_choice": "auto",
            "tools": [],
            "usage": _usage(self._about) if over else None,
        }
        said = reply.note(self._told)
        if said and over:
            out["fairlead"] = said
        return out


def _name(part: _Part) -> str:
    match part.place:
        case "tool_call":
            return "response.function_call_arguments"
        case "reasoning":
            return "response.reasoning_summary_text" if part.summary else "response.reasoning_text"
        case "refusal":
            return "response.refusal"
        case _:
            return "response.output_text"


def _logprobs(event: Delta, asked: Asked) -> list[dict[str, Any]]:
    found = reply.written(event.logprobs, event.text, asked.policy.top_logprobs) if event.logprobs else []
    return [{**one, "bytes": list(one["token"].encode()) if one["bytes"] is None else one["bytes"]} for one in found]


def _status(finish: Finish | None) -> str:
    return "completed" if finish and finish.reason in ("stop", "tool_calls") else "incomplete"


def _why(finish: Finish | None) -> str:
    return "max_output_tokens" if finish and finish.reason in ("length", "pause") else "content_filter"


def _usage(about: About) -> dict[str, Any] | None:
    if not about.numbers:
        return None
    return {name: {**zero, **about.numbers.get(name, {})} if isinstance(zero, dict) else about.numbers.get(name, zero)
            for name, zero in _NO_USAGE.items()}  # fmt: skip


def body(released: Iterable[Event], asked: Asked, told: Tolds = ()) -> dict[str, Any]:
    """The reply in one body. Raises ValueError where the provider broke off."""
    writer = Writer(asked, quiet=True)
    for event in released:
        if isinstance(event, Failed):
            raise ValueError("a reply that the provider broke off has no body: answer with the format's error()")
        writer.write(event)
    for choice, one in told:
        writer.told(choice, one)
    return writer.gathered()


FORMAT = Format(
    "responses",
    responses_request.read_request,
    events,
    body,
    lambda: sse.Stream(Reads()),
    Writer,
    errors.openai,
)

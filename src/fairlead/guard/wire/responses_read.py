"""Replies and streams of OpenAI's `/v1/responses` as events, by `Response` and `ResponseStreamEvent` (openai 3.57).

The route says every text up to four times: in deltas, and whole at the end of the part, of the item and of the
response. What was said in deltas is not read again; where the whole text differs in length it is counted, never used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fairlead.guard.wire import citation, reply, sse
from fairlead.guard.wire.chat_read import REPORTED, count
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Opaque,
    Open,
    Place,
    Reason,
    Unknown,
)

SUMMARY = "summary"  # the name of a part of reasoning that sums it up, in `Open.name`
PHASES = frozenset(("commentary", "final_answer"))  # the names that a part of a reply may have there
USAGE: dict[str, Any] = {
    "input_tokens": None, "output_tokens": None, "total_tokens": None,
    "input_tokens_details": dict.fromkeys(("cached_tokens", "cache_write_tokens")),
    "output_tokens_details": dict.fromkeys(("reasoning_tokens",)),
}  # fmt: skip

# What is known of a response and says nothing that a client needs: settings repeated from the request, dates, costs.
_RESPONSE = frozenset((
    "id", "object", "created_at", "completed_at", "status", "error", "incomplete_details", "instructions", "metadata",
    "model", "output", "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p", "background",
    "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier", "store", "text", "top_logprobs",
    "truncation", "usage", "user", "frequency_penalty", "presence_penalty", "output_text",
))  # fmt: skip
_ITEMS: dict[str, frozenset[str]] = {
    "message": frozenset(("type", "id", "status", "role", "content", "phase")),
    "function_call": frozenset(("type", "id", "status", "call_id", "name", "arguments")),
    "reasoning": frozenset(("type", "id", "status", "summary", "content", "encrypted_content")),
}
_PART = frozenset(("type", "text", "refusal", "annotations", "logprobs"))
_EVENT = frozenset((
    "type", "sequence_number", "item_id", "output_index", "content_index", "summary_index", "delta", "text", "refusal",
    "arguments", "name", "logprobs", "obfuscation", "part", "item", "annotation", "annotation_index", "status",
))  # fmt: skip

Key: TypeAlias = tuple[str, int]  # list of the item, and index in it

# event: list of the item, index in it, place, field of the text
_DELTAS: dict[str, tuple[str, str, Place, str]] = {
    "response.output_text": ("content", "content_index", "reply", "text"),
    "response.refusal": ("content", "content_index", "refusal", "refusal"),
    "response.reasoning_text": ("content", "content_index", "reasoning", "text"),
    "response.reasoning_summary_text": ("summary", "summary_index", "reasoning", "text"),
    "response.function_call_arguments": ("arguments", "", "tool_call", "arguments"),
}
_PARTS: dict[str, tuple[Place, str]] = {
    "output_text": ("reply", "text"), "refusal": ("refusal", "refusal"), "reasoning_text": ("reasoning", "text"),
    "text": ("reasoning", "text"), "summary_text": ("reasoning", "text"),
}  # fmt: skip
_OF_ITEM: dict[str, tuple[Place, ...]] = {
    "message": ("reply", "refusal"), "reasoning": ("reasoning",), "function_call": ("tool_call",)
}  # fmt: skip


@dataclass(slots=True)
class _Part:
    channel: Channel
    place: Place
    length: int = 0
    cited: int = 0
    open: bool = True


@dataclass(slots=True)
class _Item:
    kind: str  # "" for one that is withheld
    phase: str = ""
    parts: dict[Key, _Part] = field(default_factory=dict)
    open: bool = True


class Reads:
    """Stream events to events. A whole response is read as its last event, before which nothing was said."""

    def __init__(self) -> None:
        self._items: dict[int, _Item] = {}
        self._number = 0
        self._known = False
        self._called = False

    def take(self, said: dict[str, Any], out: list[Event]) -> None:
        kind = said.get("type")
        name, _, what = kind.rpartition(".") if isinstance(kind, str) else ("", "", "")
        if what in ("delta", "done") and name in _DELTAS:
            count(said, _EVENT, "field of an event", out)
            self._text(said, what, *_DELTAS[name], out)
            return
        match kind:
            case "response.output_item.added" | "response.output_item.done":
                index = said.get("output_index")
                if type(index) is int and 0 <= index < 100_000:
                    self._item(index, said.get("item"), what == "done", out)
                else:
                    out.append(Unknown("item without a place"))
            case (
                "response.content_part.added"
                | "response.content_part.done"
                | "response.reasoning_part.added"  # vLLM's name for a part of reasoning
                | "response.reasoning_part.done"
            ):
                self._piece(said, "content", what == "done", out)
            case "response.reasoning_summary_part.added" | "response.reasoning_summary_part.done":
                self._piece(said, "summary", what == "done", out)
            case "response.output_text.annotation.added":
                part = self._found(said, "content", "content_index", out)
                if part is not None:
                    self._cite(part, said.get("annotation"), out)
            case "response.created" | "response.in_progress" | "response.queued":
                self._head(said.get("response"), out)
            case "response.completed" | "response.incomplete" | "response.failed":
                self.last(said.get("response"), out)
            case "error":
                out.append(Failed(REPORTED))
            case _:
                out.append(Unknown("event of an unknown type"))

    # -------------------------------------------------------------------------------------- the response

    def _head(self, said: Any, out: list[Event]) -> None:
        if not isinstance(said, dict):
            out.append(Unknown("response that is no object"))
            return
        if self._known:
            return
        self._known = True
        given, model, created = said.get("id"), said.get("model"), said.get("created_at")
        out.append(
            About(
                given if isinstance(given, str) else "",
                model if isinstance(model, str) else "",
                int(created) if isinstance(created, int | float) and 0 <= created < 1e11 else 0,
                reply.numbers(said.get("usage"), USAGE),
            )
        )

    def last(self, said: Any, out: list[Event]) -> None:
        """The response as it ended: what of it was not said before, then its end."""
        known = self._known
        self._head(said, out)
        if not isinstance(said, dict):
            out.append(Failed("the provider's reply is not a response"))
            return
        count(said, _RESPONSE, "field of a response", out)
        status = said.get("status")
        if said.get("error") or status not in ("completed", "incomplete"):
            out.append(Failed(REPORTED if status == "failed" else "the reply is not finished"))
            return
        output = said.get("output")
        for index, item in enumerate(output if isinstance(output, list) else ()):
            self._item(index, item, True, out)
        for one in self._items.values():
            self._end_item(one, out)
        numbers = reply.numbers(said.get("usage"), USAGE)
        if numbers and known:
            out.append(About(numbers=numbers))
        out.append(Finish(0, self._reason(status, said.get("incomplete_details"), out)))
        out.append(End())

    def _reason(self, status: Any, details: Any, out: list[Event]) -> Reason:
        if status == "completed":
            return "tool_calls" if self._called else "stop"
        why = details.get("reason") if isinstance(details, dict) else None
        if why not in ("max_output_tokens", "content_filter"):
            out.append(Unknown("incomplete_details.reason"))
        return "content_filter" if why == "content_filter" else "length"

    # ------------------------------------------------------------------------------------------- items

    def _item(self, index: int, given: Any, whole: bool, out: list[Event]) -> None:
        """An item that begins, or (`whole`) as it ended."""
        kind = given.get("type") if isinstance(given, dict) else None
        item = self._items.get(index)
        if item is None:
            known = kind if isinstance(kind, str) and kind in _ITEMS else ""
            phase = given.get("phase") if isinstance(given, dict) else None
            item = self._items[index] = _Item(known, phase if isinstance(phase, str) and phase in PHASES else "")
            if not known:
                out.append(Unknown("item of an unknown type"))
        if not item.kind or not item.open:
            return
        if kind != item.kind:
            out.append(Unknown("item that changed its type"))
            return
        count(given, _ITEMS[item.kind], "field of an item", out)
        if kind == "function_call":
            self._call(item, given, whole, out)
        else:
            for name in ("summary", "content"):
                listed = given.get(name)
                for i, one in enumerate(listed if isinstance(listed, list) else ()):
                    self._said(item, (name, i), one, whole, out)
        if whole:
            self._end_item(item, out)
            if kind == "reasoning" and given.get("encrypted_content"):
                out.append(Opaque(0, "encrypted_content", given["encrypted_content"]))

    def _call(self, item: _Item, given: dict[str, Any], whole: bool, out: list[Event]) -> None:
        part = item.parts.get(("arguments", 0))
        if part is None:
            name, call = given.get("name"), given.get("call_id")
            if not isinstance(name, str) or not name:
                item.kind = ""
                out.append(Unknown("tool call without a name"))
                return
            self._called = True
            part = item.parts["arguments", 0] = _Part(self._channel(), "tool_call")
            out.append(Open(part.channel, "tool_call", call if isinstance(call, str) else "", name))
        arguments = given.get("arguments")
        if whole:
            self._whole(part, arguments, (), out)
        elif arguments:
            self._more(part, arguments, (), out)

    def _end_item(self, item: _Item, out: list[Event]) -> None:
        for part in item.parts.values():
            self._end(part, out)
        item.open = False

    # ------------------------------------------------------------------------------------------- parts

    def _piece(self, said: dict[str, Any], name: str, whole: bool, out: list[Event]) -> None:
        item = self._items.get(_whole_number(said.get("output_index")))
        index = _whole_number(said.get(f"{name}_index"))
        if item is None or index < 0:
            out.append(Unknown("part without a place"))
        elif item.kind:
            self._said(item, (name, index), said.get("part"), whole, out)

    def _said(self, item: _Item, key: Key, given: Any, whole: bool, out: list[Event]) -> None:
        """A part that begins, or (`whole`) as it ended."""
        kind = given.get("type") if isinstance(given, dict) else None
        found = _PARTS.get(kind) if isinstance(kind, str) else None
        if not found or found[0] not in _OF_ITEM[item.kind] or (key[0] == "summary") != (kind == "summary_text"):
            out.append(Unknown("part of an unknown type"))
            return
        place, name = found
        part = self._part(item, key, place, out)
        if part is None:
            return
        count(given, _PART, "field of a part", out)
        text, logprobs = given.get(name), given.get("logprobs")
        if not whole:
            self._more(part, text, logprobs, out)
        elif part.open:
            self._whole(part, text, logprobs, out)
        cited = given.get("annotations")
        for one in (cited if isinstance(cited, list) else ())[part.cited :]:
            self._cite(part, one, out)
        if whole:
            self._end(part, out)

    def _text(
        self, said: dict[str, Any], what: str, where: str, at: str, place: Place, name: str, out: list[Event]
    ) -> None:
        item = self._items.get(_whole_number(said.get("output_index")))
        index = _whole_number(said.get(at)) if at else 0
        if item is None or index < 0:
            out.append(Unknown("text without a place"))
            return
        if not item.kind:
            return
        part = item.parts.get((where, index))
        if part is None:
            if place not in _OF_ITEM[item.kind] or place == "tool_call":
                out.append(Unknown("text in an item of another type"))
                return
            part = self._part(item, (where, index), place, out)
        if part is None or part.place != place:
            out.append(Unknown("text in a part of another type"))
        elif not part.open:
            if what == "delta":
                out.append(Unknown("text after the end of a part"))
        elif what == "delta":
            self._more(part, said.get("delta"), said.get("logprobs"), out)
        else:
            self._whole(part, said.get(name), said.get("logprobs"), out)

    def _part(self, item: _Item, key: Key, place: Place, out: list[Event]) -> _Part | None:
        part = item.parts.get(key)
        if part is None:
            if not item.open:
                out.append(Unknown("part after the end of an item"))
                return None
            part = item.parts[key] = _Part(self._channel(), place)
            out.append(Open(part.channel, place, "", SUMMARY if key[0] == "summary" else item.phase))
        return part

    def _found(self, said: dict[str, Any], where: str, at: str, out: list[Event]) -> _Part | None:
        item = self._items.get(_whole_number(said.get("output_index")))
        part = item.parts.get((where, _whole_number(said.get(at)))) if item else None
        if part is None:
            out.append(Unknown("event of a part that was not started"))
        return part

    def _channel(self) -> Channel:
        self._number += 1
        return Channel(0, self._number - 1)

    def _more(self, part: _Part, text: Any, logprobs: Any, out: list[Event]) -> None:
        if isinstance(text, str):
            if text:
                part.length += len(text)
                out.append(Delta(part.channel, text, _entries(logprobs, text, out) if logprobs else ()))
        elif text is not None:
            out.append(Unknown("text that is none"))

    def _whole(self, part: _Part, text: Any, logprobs: Any, out: list[Event]) -> None:
        if not part.length:
            self._more(part, text, logprobs, out)
        elif not isinstance(text, str) or len(text) != part.length:
            out.append(Unknown("repeated text that differs"))

    def _end(self, part: _Part, out: list[Event]) -> None:
        if part.open:
            part.open = False
            if part.place == "tool_call" and not part.length:
                out.append(Delta(part.channel, "{}"))  # a call without arguments
            out.append(Close(part.channel))

    def _cite(self, part: _Part, given: Any, out: list[Event]) -> None:
        part.cited += 1
        for text in citation.read_responses(given, out):
            channel = self._channel()
            out += Open(channel, "citation"), Delta(channel, text), Close(channel)

    def done(self, out: list[Event]) -> None:
        """`[DONE]` is not of this route; a server that says it after the last event is not read any more."""
        out.append(Unknown("event of an unknown type"))

    def eof(self, out: list[Event]) -> None:
        out.append(Failed(sse.BROKE_OFF))


def _whole_number(given: Any) -> int:
    return given if type(given) is int else -1


def _entries(given: Any, text: str, out: list[Event]) -> tuple[dict[str, Any], ...]:
    found = reply.entries(given)
    if found is None or reply.spelled(found) != text.encode():
        out.append(Unknown("log-probs of another text"))
        return ()
    return found


def events(body: Any) -> list[Event]:
    """The events of a reply in one body."""
    if not isinstance(body, dict) or not (isinstance(body.get("output"), list) or body.get("error")):
        return [Failed("the provider's reply is not a response")]
    out: list[Event] = []
    Reads().last(body, out)
    return out

"""`/v1/completions`: the older route, one prompt and its continuation, by `Completion` (openai 3.57)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairlead.guard.wire import chat, chat_read, chat_request, errors, fields, ids, reply, sse
from fairlead.guard.wire.asked import Allow, Asked, Refused
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Open,
    Reason,
    Told,
    Unknown,
)
from fairlead.guard.wire.fields import FLAG, LABEL, NUMBER, NUMBERS, READ, SWITCHES, TEXT, TEXTS, Kind
from fairlead.guard.wire.format import Format, Tolds

ROUTE = "/v1/completions"
FIELDS: dict[str, Kind] = {
    "model": TEXT, "prompt": READ, "suffix": TEXT, "stream": FLAG, "n": NUMBER, "best_of": NUMBER, "echo": FLAG,
    "stream_options": SWITCHES, "logprobs": NUMBER, "logit_bias": NUMBERS, "stop": TEXTS, "max_tokens": NUMBER,
    "temperature": NUMBER, "top_p": NUMBER, "frequency_penalty": NUMBER, "presence_penalty": NUMBER, "seed": NUMBER,
    "user": LABEL, "response_format": fields.ANYTHING,
    **{name: chat_request.FIELDS[name] for name in ("store", "chat_template", "documents", "previous_response_id")},
}  # fmt: skip
FINISHES: dict[Reason, str] = {**chat.FINISHES, "tool_calls": "stop"}

_CHOICE = frozenset(("index", "text", "finish_reason", "logprobs", "stop_reason", "matched_stop"))


def read_request(body: Any, policy: Allow) -> Asked:
    """Raises `Refused`, naming the field. A prompt of token ids cannot be read, and several prompts are several
    conversations: both are refused."""
    model = fields.model_of(body)
    fields.check(body, FIELDS, policy)
    prompt = body.get("prompt")
    turns = fields.Turns()
    if isinstance(prompt, str):
        turns.text("user", "user", prompt, ("prompt",))
    elif isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        turns.text("user", "user", prompt[0], ("prompt", 0))
    elif isinstance(prompt, list) and prompt and all(isinstance(one, str) for one in prompt):
        raise Refused(400, "prompt", f"prompt: {len(prompt)} prompts in one request; send one at a time")
    elif isinstance(prompt, list) and prompt:
        raise Refused(400, "prompt", "prompt: token ids cannot be read by the guard; send the text")
    else:
        raise fields.wrong("prompt", "a text", prompt)
    if body.get("suffix"):
        turns.text("user", "user", body["suffix"], ("suffix",))
    options = body.get("stream_options")
    return Asked(
        ROUTE,
        "completions",
        model,
        tuple(turns.messages),
        fields.flag_of(body, "stream"),
        fields.count_of(body, "n"),
        (),
        isinstance(options, dict) and options.get("include_usage") is True,
        dict(body),
        turns.paths,
        (),
        policy,
    )


# ------------------------------------------------------------------------------------------------- reading


class _Reads:
    def __init__(self) -> None:
        self._about = False
        self._open: set[int] = set()
        self._finished: set[int] = set()

    def take(self, said: dict[str, Any], out: list[Event]) -> None:
        if chat_read.head(said, self._about, out):
            self._about = True
            for choice in chat_read.listed(said, out):
                self._choice(choice, out)
                if out and isinstance(out[-1], Failed):
                    return

    def _choice(self, choice: Any, out: list[Event]) -> None:
        index = chat_read.index_of(choice, out)
        if index is None:
            return
        chat_read.count(choice, _CHOICE, "field of a choice", out)
        text = choice.get("text")
        if text and index in self._finished:
            out.append(Unknown("text after the end of an alternative"))
        elif isinstance(text, str) and text:
            channel = Channel(index, 0)
            if index not in self._open:
                self._open.add(index)
                out.append(Open(channel, "reply"))
            out.append(Delta(channel, text, _entries(choice.get("logprobs"), text, out)))
        elif text:
            out.append(Unknown("text that is none"))
        reason = choice.get("finish_reason")
        if reason and index not in self._finished:
            stop = choice.get("stop_reason")
            self._finish(index, reason, stop if isinstance(stop, str) else "", out)

    def _finish(self, index: int, reason: Any, stop: str, out: list[Event]) -> None:
        self._finished.add(index)
        if reason == "error":
            out.append(Failed(chat_read.REPORTED))
            return
        if index in self._open:
            out.append(Close(Channel(index, 0)))
        out.append(Finish(index, chat_read.reason_of(reason, out), stop))

    def done(self, out: list[Event]) -> None:
        for index in sorted(self._open - self._finished):
            self._finish(index, "stop", "", out)
        out.append(End())

    def eof(self, out: list[Event]) -> None:
        whole = self._finished and self._finished >= self._open
        out.append(End() if whole else Failed(sse.BROKE_OFF))


def _entries(given: Any, text: str, out: list[Event]) -> tuple[dict[str, Any], ...]:
    """Log-probs, which this route keeps in columns, as the rows of the other routes."""
    if not given:
        return ()
    found = _rows(given)
    if found is None or reply.spelled(found) != text.encode():
        out.append(Unknown("log-probs of another text"))
        return ()
    return found


def _rows(given: Any) -> tuple[dict[str, Any], ...] | None:
    tokens, values = (given.get("tokens"), given.get("token_logprobs")) if isinstance(given, dict) else (None, None)
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return None
    tops = given.get("top_logprobs")
    if not isinstance(tops, list) or len(tops) != len(tokens):
        tops = [None] * len(tokens)
    out = []
    for token, value, top in zip(tokens, values, tops, strict=True):
        # the first token of an echoed prompt has no log-prob
        if not isinstance(token, str) or not (value is None or isinstance(value, int | float)):
            return None
        entry: dict[str, Any] = {"token": token, "logprob": value, "bytes": None}
        if isinstance(top, dict):
            others = [(t, p) for t, p in top.items() if isinstance(p, int | float)]
            entry["top_logprobs"] = [{"token": t, "logprob": p, "bytes": None} for t, p in others]
        out.append(entry)
    return tuple(out)


def events(body: Any) -> list[Event]:
    """The events of a reply in one body."""
    if not isinstance(body, dict) or not (isinstance(body.get("choices"), list) or body.get("error")):
        return [Failed("the provider's reply is not a completion")]
    out: list[Event] = []
    reads = _Reads()
    reads.take(body, out)
    if not isinstance(out[-1], Failed):
        reads.done(out)
    return out


# ------------------------------------------------------------------------------------------------- writing


def _columns(given: Sequence[Mapping[str, Any]], text: str, start: int, asked: Asked) -> dict[str, Any] | None:
    rows = reply.written(given, text, asked.policy.top_logprobs)
    if not rows:
        return None
    offsets = []
    for row in rows:
        offsets.append(start)
        start += len(row["token"])
    return {
        "tokens": [row["token"] for row in rows],
        "token_logprobs": [row["logprob"] for row in rows],
        "text_offset": offsets,
        "top_logprobs": [{top["token"]: top["logprob"] for top in row["top_logprobs"]} for row in rows]
        if asked.policy.top_logprobs
        else None,
    }


def _texts(one: reply.Alternative) -> list[reply.Grown]:
    return [part for part in one.parts if isinstance(part, reply.Grown) and part.place in ("reply", "refusal")]


def body(released: Iterable[Event], asked: Asked, told: Tolds = ()) -> dict[str, Any]:
    """The reply in one body. Raises ValueError where the provider broke off."""
    found = reply.gathered(released)
    choices = []
    for index, one in sorted(found.alternatives.items()):
        parts = _texts(one)
        text = "".join(part.text for part in parts)
        rows = [row for part in parts for row in part.logprobs]
        reason = FINISHES[one.finish.reason] if one.finish else "content_filter"
        columns = _columns(rows, text, 0, asked)
        choices.append({"index": index, "text": text, "logprobs": columns, "finish_reason": reason})
    out: dict[str, Any] = {**_head(found.about, asked), "choices": choices}
    if found.about.numbers:
        out["usage"] = found.about.numbers
    said = reply.note(told)
    if said:
        out["fairlead"] = said
    return out


def _head(about: About, asked: Asked) -> dict[str, Any]:
    return {
        "id": ids.made("cmpl-", about.id),
        "object": "text_completion",
        "created": about.created or int(time.time()),
        "model": ids.model(asked.model, about.model),
    }


class Writer:
    """`format.Writer`."""

    __slots__ = ("_about", "_asked", "_ended", "_head", "_lengths", "_over")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._about = About()
        self._head: dict[str, Any] = {}
        self._lengths = dict.fromkeys(range(asked.n), 0)  # characters written, by alternative
        self._ended: set[int] = set()
        self._over = False

    def write(self, event: Event) -> bytes:
        if self._over:
            return b""
        match event:
            case Delta():
                index = event.channel.choice
                if index in self._ended or not event.text:
                    return b""
                start = self._lengths.get(index, 0)
                self._lengths[index] = start + len(event.text)
                columns = _columns(event.logprobs, event.text, start, self._asked) if event.logprobs else None
                return self._chunk(index, event.text, columns)
            case Finish():
                return self._finish(event.choice, event.reason, None)
            case About():
                self._about = reply.joined(self._about, event)
            case Failed():
                self._over = True
                return sse.data(errors.openai(event.status, event.why, "upstream"))
        return b""

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
        told: Told | None = None,
    ) -> bytes:
        if not self._head:
            self._head = _head(self._about, self._asked)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "choices": [choice]}
        if told is not None:
            chunk["fairlead"] = reply.said(told)
        return sse.data(chunk)

    def _finish(self, index: int, reason: Reason, told: Told | None) -> bytes:
        if index in self._ended:
            return b""
        self._ended.add(index)
        return self._chunk(index, "", None, FINISHES[reason], told)

    def ping(self) -> bytes:
        return b": wait\n\n"

    def told(self, choice: int, told: Told) -> bytes:
        return b"" if self._over else self._chunk(choice, "", told=told)

    def stop(self, choice: int, reason: Reason, told: Told) -> bytes:
        return b"" if self._over else self._finish(choice, reason, told)

    def end(self) -> bytes:
        """Alternatives without an end are said to have been cut: `content_filter`."""
        out = []
        if not self._over:
            out = [self._finish(index, "content_filter", None) for index in self._lengths]
            if self._asked.include_usage and self._about.numbers:
                out.append(sse.data({**self._head, "choices": [], "usage": self._about.numbers}))
        self._over = True
        return b"".join((*out, b"data: [DONE]\n\n"))


FORMAT = Format("completions", read_request, events, body, lambda: sse.Stream(_Reads()), Writer, errors.openai)

"""The official SDKs as clients, and every byte that came to them.

`heard(sdk, cell)` asks what a cell asks and reads the answer to its end, through the SDK's own types and stream
helpers; `Tap` keeps the bytes as they came from the socket, status line and headers included.
"""

from __future__ import annotations

import importlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai

from guard.conformance.cells import Cell
from guard.conformance.said import tools

# The library that both SDKs speak HTTP through, and the one under it that holds the sockets.
_HTTP = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
_http: Any = importlib.import_module(_HTTP)
_core: Any = importlib.import_module(_HTTP.replace("httpx", "httpcore"))


class Tap(_core.SyncBackend):  # type: ignore[misc]
    """Connections whose bytes are kept: `data` since it was last emptied."""

    def __init__(self) -> None:
        self.data = bytearray()

    def connect_tcp(self, *args: Any, **how: Any) -> Any:
        return _Tapped(super().connect_tcp(*args, **how), self)


class _Tapped:
    def __init__(self, stream: Any, tap: Tap) -> None:
        self._stream, self._tap = stream, tap

    def read(self, *args: Any, **how: Any) -> bytes:
        data: bytes = self._stream.read(*args, **how)
        self._tap.data += data
        return data

    def close(self) -> None:
        """The SDKs hang up at the last event: what frames the end of the body may still be on its way."""
        with suppress(_core.TimeoutException, _core.NetworkError):
            while b"transfer-encoding: chunked" in self._tap.data and not self._tap.data.endswith(b"\r\n0\r\n\r\n"):
                if not self.read(2**16, timeout=5.0):
                    break
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclass
class Alternative:
    """What a client read of one alternative."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    finish: str = ""
    stop: str = ""
    tokens: str = ""
    chosen: list[Any] = field(default_factory=list)  # alternatives to tokens


@dataclass
class Heard:
    """One answer. `raw` are its bytes, `told` what stands under `fairlead` (of a stream: all of them)."""

    alternatives: dict[int, Alternative] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    error: Any = None
    raw: bytes = b""

    def at(self, index: int) -> Alternative:
        return self.alternatives.setdefault(index, Alternative())

    def tell(self, extra: dict[str, Any] | None) -> None:
        if extra and extra.get("fairlead"):
            self.told.append(extra["fairlead"])

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").lower()

    @property
    def request(self) -> str:
        return re.search(r"\nx-request-id: ([0-9a-f]{16})", self.head)[1]  # type: ignore[index]


class Sdk:
    """Both SDKs on one proxy, with the retries that they come with where not said otherwise."""

    def __init__(self, url: str, retries: int = 2) -> None:
        self.tap = Tap()
        transport = _http.HTTPTransport(verify=False)
        transport._pool = _core.ConnectionPool(network_backend=self.tap)
        self._http = _http.Client(transport=transport)
        how: dict[str, Any] = {"http_client": self._http, "timeout": 60, "max_retries": retries}
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="k", **how)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key="k", **how)

    def close(self) -> None:
        self._http.close()


def heard(sdk: Sdk, cell: Cell) -> Heard:
    sdk.tap.data.clear()
    found = Heard()
    try:
        _ASKS[cell.endpoint](sdk, cell, found)
    except (openai.APIError, anthropic.APIError) as error:
        found.status, found.error = getattr(error, "status_code", 200), error.body
    found.raw = bytes(sdk.tap.data)
    return found


_SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
_ASKED: list[Any] = [{"role": "user", "content": "what is the hour of the ferry ?"}]


def _chat(sdk: Sdk, cell: Cell, out: Heard) -> None:
    more: dict[str, Any] = {"n": int(cell.n)}
    if cell.logprobs == "on":
        more |= {"logprobs": True, "top_logprobs": 1}
    if names := tools(cell):
        more["tools"] = [{"type": "function", "function": {"name": name, "parameters": _SCHEMA}} for name in names]
    if cell.stream:
        more["stream_options"] = {"include_usage": True}
    said = sdk.openai.chat.completions.create(model="mock", messages=_ASKED, stream=cell.stream, **more)
    calls: dict[tuple[int, int], list[str]] = {}
    for part in said if cell.stream else [said]:
        out.tell(part.model_extra)
        assert part.model == "mock" and not part.system_fingerprint
        for choice in part.choices:
            one = out.at(choice.index)
            message = choice.delta if cell.stream else choice.message
            extra = message.model_extra or {}
            one.text += message.content or ""
            one.refusal += message.refusal or ""
            one.reasoning += extra.get("reasoning_content") or ""
            one.finish = choice.finish_reason or one.finish
            cited = extra.get("annotations") if cell.stream else message.annotations
            for c in cited or ():
                one.titles.append(c["url_citation"]["title"] if cell.stream else c.url_citation.title)
            for n, call in enumerate(message.tool_calls or ()):
                at = choice.index, call.index if cell.stream else n
                kept = calls.setdefault(at, ["", ""])
                kept[0] += call.function.name or ""
                kept[1] += call.function.arguments or ""
            for token in (choice.logprobs and choice.logprobs.content) or ():
                one.tokens += token.token
                one.chosen += token.top_logprobs
    for (index, _), (name, arguments) in sorted(calls.items()):
        out.at(index).calls.append((name, arguments))


def _completions(sdk: Sdk, cell: Cell, out: Heard) -> None:
    more: dict[str, Any] = {"logprobs": 1} if cell.logprobs == "on" else {}
    said = sdk.openai.completions.create(
        model="mock", prompt="what is the hour of the ferry ?", stream=cell.stream, n=int(cell.n), **more
    )
    for part in said if cell.stream else [said]:
        out.tell(part.model_extra)
        for choice in part.choices:
            one = out.at(choice.index)
            one.text += choice.text
            one.finish = choice.finish_reason or one.finish
            if choice.logprobs:
                one.tokens += "".join(choice.logprobs.tokens or ())
                one.chosen += choice.logprobs.top_logprobs or ()


def _responses(sdk: Sdk, cell: Cell, out: Heard) -> None:
    more: dict[str, Any] = {}
    if cell.logprobs == "on":
        more |= {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    if names := tools(cell):
        more["tools"] = [{"type": "function", "name": name, "parameters": _SCHEMA, "strict": False} for name in names]
    if cell.stream:
        grown = Alternative()
        last: Any = None
        with sdk.openai.responses.stream(model="mock", input="what ?", **more) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    grown.text += event.delta
                elif event.type == "response.refusal.delta":
                    grown.refusal += event.delta
                elif event.type == "response.reasoning_summary_text.delta":
                    grown.reasoning += event.delta
                last = event
        said = last.response
    else:
        said = sdk.openai.responses.create(model="mock", input="what ?", **more)
    out.tell(said.model_extra)
    one = out.at(0)
    for item in said.output:
        if item.type == "function_call":
            one.calls.append((item.name, item.arguments))
        elif item.type == "reasoning":
            one.reasoning += "".join(part.text for part in item.summary)
        else:
            for part in item.content:
                one.refusal += getattr(part, "refusal", "")
                one.text += getattr(part, "text", "")
                one.titles += [cited.title for cited in getattr(part, "annotations", ())]
                for token in getattr(part, "logprobs", None) or ():
                    one.tokens += token.token
                    one.chosen += token.top_logprobs
    one.finish = said.status
    if said.incomplete_details is not None:
        one.finish += f" ({said.incomplete_details.reason})"
    if cell.stream:
        assert (grown.text, grown.refusal, grown.reasoning) == (one.text, one.refusal, one.reasoning)
    assert said.model == "mock" and said.instructions is None


def _messages(sdk: Sdk, cell: Cell, out: Heard) -> None:
    more: dict[str, Any] = {}
    if names := tools(cell):
        more["tools"] = [{"name": name, "input_schema": _SCHEMA} for name in names]
    asked: dict[str, Any] = {"model": "mock", "max_tokens": 50, "messages": _ASKED, "stop_sequences": ["END"], **more}
    if cell.stream:
        with sdk.anthropic.messages.stream(**asked) as stream:
            for event in stream:
                if event.type == "message_delta":
                    out.tell(event.model_extra)
            said = stream.get_final_message()
    else:
        said = sdk.anthropic.messages.create(**asked)
        out.tell(said.model_extra)
    one = out.at(0)
    for block in said.content:
        if block.type == "tool_use":
            one.calls.append((block.name, json.dumps(block.input, separators=(",", ":"), ensure_ascii=False)))
        elif block.type == "thinking":
            one.reasoning += block.thinking
        else:
            one.text += block.text
            one.titles += [cited.document_title for cited in block.citations or ()]
    one.finish, one.stop = said.stop_reason or "", said.stop_sequence or ""
    assert said.model == "mock"


_ASKS: dict[str, Any] = {
    "chat": _chat, "completions": _completions, "responses": _responses, "messages": _messages
}  # fmt: skip

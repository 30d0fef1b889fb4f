"""OpenAI's responses API through the official SDK: `openai-responses/NAME[@URL]`.

The newer of OpenAI's two formats. It answers once per call, so n replies are n calls, and has neither stop nor seed.
Nothing is stored with the provider (`store: false`); reasoning comes encrypted and goes back as it came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult
from fairlead.models import wire
from fairlead.models.access import Transient, filtered
from fairlead.models.batch import BatchEnd
from fairlead.models.capabilities import capabilities_of
from fairlead.models.protocol import Alternative, CapabilityError, Finish, Prompt, Reply, Sampling, TopLogprobs, Usage
from fairlead.models.remote import Answer
from fairlead.models.sdk_openai import FILTER_CODES, OpenAIConnection

_FILTERED = (*FILTER_CODES, "invalid_prompt", "image_content_policy_violation")
_PASSING = ("server_error", "rate_limit_exceeded", "vector_store_timeout")
_BUSY = "rate_limit_exceeded"


class Responses:
    """One server's responses. `official`: the provider's own address."""

    replies_per_call: int | None = 1
    limit_field = "max_output_tokens"

    def __init__(self, connection: OpenAIConnection, *, official: bool, records: Path | None) -> None:
        self.connection = connection
        who = self._who = connection.who
        self.identity: Mapping[str, Any] = {"api": "responses", "url": who.url, "model": who.model}
        self.has = frozenset({"max_tokens", "temperature", "top_p", "top_logprobs", "batch"})
        self.capabilities = capabilities_of(
            "responses", who.model, who.url, self.has, official=official, records=records
        )

    def __repr__(self) -> str:
        return f"Responses({self._who})"

    def ready(self) -> None:
        self.connection.ready()
        import openai.types.responses  # noqa: F401  # hundreds of types, which take long once

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The request, as it goes out alone or in a batch."""
        body: dict[str, Any] = {"model": self._who.model, "input": to_items(prompt), "store": False}
        body["include"] = ["reasoning.encrypted_content"]
        if sampling.max_tokens is not None:
            body["max_output_tokens"] = sampling.max_tokens
        for field in ("temperature", "top_p"):
            if getattr(sampling, field) is not None:
                body[field] = getattr(sampling, field)
        if sampling.top_logprobs is not None:
            body["top_logprobs"] = sampling.top_logprobs
            body["include"].append("message.output_text.logprobs")
        return body

    async def ask(self, prompt: Prompt, n: int, sampling: Sampling, timeout: float) -> Answer:
        data = await self.connection.post("/responses", self.body(prompt, sampling), timeout)
        if data is None:
            return Answer((filtered("the provider's content filter refused the prompt", Usage()),), Usage())
        return self.read(data)

    def read(self, data: Mapping[str, Any]) -> Answer:
        """The reply in an answer. Raises Transient for one of another shape or with an error that may pass."""
        from openai.types.responses import Response

        url = self._who.url
        if not isinstance(data.get("output"), list):
            raise Transient(f"{url} answered without output", billed=True)
        try:
            parsed = Response.construct(**data)
            if parsed.status == "failed" or parsed.error is not None:
                return self._failed(parsed)
            reply = _reply(parsed)
        except (AttributeError, TypeError, KeyError) as error:
            raise Transient(f"{url} answered in another shape ({error})", billed=True) from None
        return Answer((reply,), reply.usage if parsed.usage is not None else None)

    def _failed(self, parsed: Any) -> Answer:
        code, words = parsed.error.code, str(parsed.error.message)[:300]
        if code in _FILTERED:
            usage = _usage(parsed)
            return Answer((filtered(words or "the provider's filter stopped this reply", usage),), usage)
        if code in _PASSING:
            raise Transient(f"{self._who.url} answered {code}: {words}", billed=True, busy=code == _BUSY)
        raise InputError(f"{self._who.name}: {self._who.url} failed ({code}): {words}")

    def batches(self) -> BatchEnd:
        from fairlead.models.batch_ends import OpenAIBatches

        return OpenAIBatches(self.connection, "/v1/responses", self)

    async def longest(self) -> int | None:
        """OpenAI's list of models does not say it."""
        return None

    async def score(
        self, prompt: Prompt, continuations: Sequence[str], timeout: float
    ) -> tuple[tuple[float, ...], Usage]:
        raise CapabilityError(f"model {self._who.name} cannot do 'logprobs'")


def to_items(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The input items of a responses request. Readable reasoning without its item has no place there."""
    out: list[dict[str, Any]] = []
    for message in messages:
        wire.refuse_media(message)
        texts: list[str] = []
        for part in message.parts:
            if isinstance(part, Text | Refusal):
                texts.append(part.text)
                continue
            item = _item(part)
            if item is not None:
                if texts:
                    out.append({"role": message.role, "content": "".join(texts)})
                    texts = []
                out.append(item)
        if texts:
            out.append({"role": message.role, "content": "".join(texts)})
    return out


def _item(part: Part) -> dict[str, Any] | None:
    if isinstance(part, ToolCall):
        return {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": part.arguments}
    if isinstance(part, ToolResult):
        output = wire.text_of(part, "OpenAI's responses")
        return {"type": "function_call_output", "call_id": part.call_id, "output": output}
    if isinstance(part, Reasoning) and part.opaque is not None:
        try:
            item = json.loads(part.opaque)
        except json.JSONDecodeError:
            return None  # another provider's
        if isinstance(item, dict) and item.get("type") == "reasoning":
            return {
                key: item[key] for key in ("id", "type", "summary", "encrypted_content") if item.get(key) is not None
            }
    return None


def _usage(parsed: Any) -> Usage:
    used = parsed.usage
    return Usage() if used is None else Usage(int(used.input_tokens), int(used.output_tokens))


def _reply(parsed: Any) -> Reply:
    parts: list[Part] = []
    logprobs: list[float] = []
    top: list[tuple[Alternative, ...]] = []
    for item in parsed.output:
        if item.type == "message":
            for piece in item.content:
                if piece.type == "refusal":
                    parts.append(Refusal(str(piece.refusal)))
                    continue
                parts.append(Text(str(piece.text)))
                for token in piece.logprobs or ():
                    logprobs.append(float(token.logprob))
                    top.append(tuple(Alternative(str(o.token), float(o.logprob)) for o in token.top_logprobs))
        elif item.type == "function_call":
            parts.append(ToolCall(str(item.call_id), str(item.name), str(item.arguments)))
        elif item.type == "reasoning":
            summary = "\n".join(piece.text for piece in item.summary or ()) or None
            parts.append(Reasoning(text=summary, opaque=json.dumps(item.to_dict(mode="json"))))
        else:
            parts.append(Reasoning(opaque=json.dumps(item.to_dict(mode="json"))))
    finish = _finish(parsed, parts)
    if finish == "filter" and not any(isinstance(p, Refusal) for p in parts):
        said = any(isinstance(p, Text) for p in parts)
        parts.append(Refusal("" if said else "the provider's content filter stopped this reply"))
    fixed, mended = wire.mended(parts)
    if not any(isinstance(p, Text | Refusal | ToolCall) for p in fixed):
        fixed = (*fixed, Text(""))
    told: TopLogprobs | None = tuple(top) if any(top) else None
    return Reply(
        (Message("assistant", fixed),), finish, None, tuple(logprobs) or None, _usage(parsed), mended=mended,
        top_logprobs=told,
    )  # fmt: skip


def _finish(parsed: Any, parts: Sequence[Part]) -> Finish:
    if parsed.status == "incomplete":
        reason = parsed.incomplete_details.reason if parsed.incomplete_details is not None else None
        return "filter" if reason == "content_filter" else "length"
    if any(isinstance(part, Refusal) for part in parts):
        return "refusal"
    return "tool_calls" if any(isinstance(part, ToolCall) for part in parts) else "stop"

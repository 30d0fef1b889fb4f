"""Anthropic's messages through the official SDK: `anthropic/NAME`, or `anthropic/NAME@URL` for a server that speaks it.

The current version of this API (2026-10-21) has no temperature, top_p, top_k or seed: asking for one is an error that
names it. It answers once per call, so n replies are n calls.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.exchange import Message, Refusal, Text
from fairlead.models import wire
from fairlead.models.access import Transient, Who, remote_lineage
from fairlead.models.batch import BatchEnd
from fairlead.models.capabilities import capabilities_of
from fairlead.models.keys import key_from
from fairlead.models.longest import Longest
from fairlead.models.protocol import CapabilityError, Finish, Prompt, Reply, Sampling, Usage
from fairlead.models.remote import DEFAULT_MAX_TOKENS, Answer, RemoteModel
from fairlead.models.sdk_anthropic import AnthropicConnection, connect
from fairlead.models.terms import Terms

OFFICIAL = "https://api.anthropic.com"
KEY = "ANTHROPIC_API_KEY"

_FINISH: Mapping[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
}


def open_anthropic(model: str, url: str | None, *, name: str, terms: Terms) -> RemoteModel:
    """A model behind the messages API. Raises MissingResource without a key."""
    base = (url or os.environ.get("ANTHROPIC_BASE_URL") or OFFICIAL).rstrip("/").removesuffix("/v1")
    official = base == OFFICIAL
    key = key_from(KEY, url=base, optional=not official, name=name)
    endpoint = Messages(connect(Who(name, model, base, KEY), key), official=official, records=terms.records)
    return terms.model(
        name,
        endpoint,
        lineage=remote_lineage("anthropic", model, base, OFFICIAL),
        url=base,
        price=terms.price(model, listed=official),
    )


class Messages:
    """One server's messages. `official`: a provider's address, which has no list of context lengths."""

    replies_per_call: int | None = 1
    limit_field = "max_tokens"

    def __init__(
        self,
        connection: AnthropicConnection,
        *,
        official: bool,
        records: Path | None,
        batch: bool = True,
        **identity: str,
    ) -> None:
        self.connection = connection
        who = self._who = connection.who
        self._longest = Longest(who.model, "/v1/models", official=official)
        self.identity: Mapping[str, Any] = {"api": "messages", "url": who.url, "model": who.model, **identity}
        self.has = frozenset({"max_tokens", "stop", "batch"} if batch else {"max_tokens", "stop"})
        self.capabilities = capabilities_of(
            "messages", who.model, who.url, self.has, official=official, records=records
        )

    def __repr__(self) -> str:
        return f"Messages({self._who})"

    def ready(self) -> None:
        self.connection.ready()

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The request, as it goes out alone or in a batch."""
        system, messages = wire.to_anthropic(prompt)
        body: dict[str, Any] = {
            "model": self._who.model,
            "messages": messages,
            "max_tokens": sampling.max_tokens or DEFAULT_MAX_TOKENS,
        }
        if system:
            body["system"] = system
        if sampling.stop is not None:
            body["stop_sequences"] = list(sampling.stop)
        return body

    async def ask(self, prompt: Prompt, n: int, sampling: Sampling, timeout: float) -> Answer:
        body = self.body(prompt, sampling)
        message = await self.connection.call(lambda client: client.messages.create(**body, timeout=timeout), timeout)
        reply = self.read(message)
        return Answer((reply,), reply.usage)

    def read(self, message: Any) -> Reply:
        """The reply in an answer. Raises Transient for an answer of another shape."""
        try:
            return _reply(message)
        except (AttributeError, TypeError) as error:
            raise Transient(f"{self._who.url} answered in another shape ({error})", billed=True) from None

    def batches(self) -> BatchEnd:
        from fairlead.models.batch_ends import AnthropicBatches

        return AnthropicBatches(self.connection, self)

    async def longest(self) -> int | None:
        """Longest prompt plus reply, where a server of one's own says it."""
        import anthropic

        return await self._longest(self.connection.client, anthropic)

    async def score(
        self, prompt: Prompt, continuations: Sequence[str], timeout: float
    ) -> tuple[tuple[float, ...], Usage]:
        raise CapabilityError(f"model {self._who.name} cannot do 'logprobs'")


def _reply(message: Any) -> Reply:
    used = message.usage
    prompt_tokens = used.input_tokens + (used.cache_creation_input_tokens or 0) + (used.cache_read_input_tokens or 0)
    usage = Usage(prompt_tokens, used.output_tokens)
    parts = wire.parts_from_anthropic(message.content)
    finish = _FINISH.get(str(message.stop_reason), "stop")
    if finish == "refusal":
        details = message.stop_details
        why = (details.explanation or details.category) if details is not None else None
        parts = (*parts, Refusal(why or "the provider refused to answer this"))
    parts, mended = wire.mended(parts)
    return Reply((Message("assistant", parts or (Text(""),)),), finish, usage=usage, mended=mended)

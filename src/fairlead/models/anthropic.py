"""Anthropic's messages through the official SDK: `anthropic/NAME`, or `anthropic/NAME@URL` for a server that speaks it.

The current version of this API (2026-10-21) has no temperature, top_p, top_k or seed: asking for one is an error that
names it. It answers once per call, so n replies are n calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.exchange import Message, Refusal, Text
from fairlead.models import wire
from fairlead.models.access import Transient, Who, key_from, remote_lineage, scrub, status_error
from fairlead.models.budget import Budget
from fairlead.models.longest import Longest
from fairlead.models.prices import Price, price_of
from fairlead.models.protocol import CapabilityError, Finish, Prompt, Reply, Sampling, Usage
from fairlead.models.remote import DEFAULT_MAX_TOKENS, Answer, Limits, RemoteModel, close_with

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


def open_anthropic(
    model: str,
    url: str | None,
    *,
    name: str,
    budget: Budget | None = None,
    limits: Limits | None = None,
    prices: Mapping[str, Price] | None = None,
) -> RemoteModel:
    """A model behind the messages API. Raises MissingResource without a key."""
    base = (url or os.environ.get("ANTHROPIC_BASE_URL") or OFFICIAL).rstrip("/").removesuffix("/v1")
    key = key_from(KEY, url=base, optional=base != OFFICIAL, name=name)
    price = price_of(model, prices) if base == OFFICIAL else (prices or {}).get(model)
    endpoint = Messages(Who(name, model, base, KEY), key)
    lineage = remote_lineage("anthropic", model, base, OFFICIAL)
    return RemoteModel(name, endpoint, lineage=lineage, url=base, price=price, budget=budget, limits=limits)


class Messages:
    """One server's messages; the client is made on the first call."""

    replies_per_call: int | None = 1
    capabilities = frozenset({"max_tokens", "stop"})

    def __init__(self, who: Who, key: str | None) -> None:
        self._who, self._key = who, key
        self._client: Any = None
        self._longest = Longest(who.model, "/v1/models", official=who.url == OFFICIAL)

    def __repr__(self) -> str:
        return f"Messages({self._who})"

    def ready(self) -> None:
        if self._client is None:
            import anthropic

            self._client = anthropic.AsyncAnthropic(
                api_key=self._key or "none", base_url=self._who.url, max_retries=0, open_telemetry=False
            )
            close_with(self, self._client)

    async def ask(self, prompt: Prompt, n: int, sampling: Sampling, timeout: float) -> Answer:
        import anthropic

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
        url = self._who.url
        try:
            message = await self._client.messages.create(**body, timeout=timeout)
        except anthropic.APITimeoutError:
            raise Transient(f"no answer from {url} within {timeout:g} s", billed=True) from None
        except anthropic.APIConnectionError as error:
            reason = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            dead = reason in ("ConnectError", "ConnectTimeout")
            raise Transient(f"{reason} at {url}", billed=not dead, dead=dead) from None
        except anthropic.APIStatusError as error:
            message = scrub(_message(error), self._key)
            raise status_error(self._who, error.status_code, message, error.response.headers) from None
        except (json.JSONDecodeError, UnicodeDecodeError, anthropic.APIResponseValidationError):
            raise Transient(f"{url} answered something that is not JSON", billed=True) from None
        try:
            reply = _reply(message)
        except (AttributeError, TypeError) as error:
            raise Transient(f"{url} answered in another shape ({error})", billed=True) from None
        return Answer((reply,), reply.usage)

    async def longest(self) -> int | None:
        """Longest prompt plus reply, where a server of one's own says it."""
        import anthropic

        return await self._longest(self._client, anthropic)

    async def score(
        self, prompt: Prompt, continuations: Sequence[str], timeout: float
    ) -> tuple[tuple[float, ...], Usage]:
        raise CapabilityError(f"model {self._who.name} cannot do 'logprobs'")


def _message(error: Any) -> str:
    body = error.body
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    return str(inner.get("message", inner)) if isinstance(inner, Mapping) else str(inner or "")


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

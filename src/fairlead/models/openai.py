"""Chat completions through the official SDK: OpenAI, and anything that speaks its format at a URL (vLLM and kin).

`openai/NAME`, `openai/NAME@http://HOST/v1`, `vllm/NAME@http://HOST/v1`. vLLM adds `top_k`, the reply's token ids and
log-probs, and the log-prob of a given continuation (its `/tokenize` and `prompt_logprobs`). Reasoning models of
OpenAI refuse `temperature` and kin unless their reasoning is off; that refusal is reported as the missing capability.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import Message, Refusal, Text
from fairlead.models import wire
from fairlead.models.access import Transient, Who, filtered, key_from, remote_lineage, scrub, status_error
from fairlead.models.budget import Budget
from fairlead.models.longest import Longest
from fairlead.models.prices import Price, price_of
from fairlead.models.protocol import Finish, Prompt, Reply, Sampling, Usage
from fairlead.models.remote import Answer, Limits, RemoteModel, close_with, most_tokens
from fairlead.models.toolong import TooLong

OFFICIAL = "https://api.openai.com/v1"
KEYS = {"openai": "OPENAI_API_KEY", "vllm": "VLLM_API_KEY"}

_FINISH: Mapping[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_FILTER_CODES = ("content_filter", "content_policy_violation", "moderation_blocked")


def open_openai(
    provider: str,
    model: str,
    url: str | None,
    *,
    name: str,
    budget: Budget | None = None,
    limits: Limits | None = None,
    prices: Mapping[str, Price] | None = None,
) -> RemoteModel:
    """A model behind chat completions. Raises MissingResource without a key, InputError for vLLM without a URL."""
    if provider == "vllm" and url is None:
        raise InputError(f"{name}: where is the server? Write vllm/{model}@http://HOST:PORT/v1")
    base = url or os.environ.get("OPENAI_BASE_URL") or OFFICIAL
    key = key_from(KEYS[provider], url=base, optional=base != OFFICIAL, name=name)
    who = Who(name, model, base, KEYS[provider])
    # a server of one's own costs what its owner says; only OpenAI's own address has OpenAI's prices
    price = price_of(model, prices) if base == OFFICIAL else (prices or {}).get(model)
    endpoint = ChatCompletions(who, key, vllm=provider == "vllm", official=base == OFFICIAL)
    lineage = remote_lineage("openai", model, base, OFFICIAL)
    return RemoteModel(name, endpoint, lineage=lineage, url=base, price=price, budget=budget, limits=limits)


class ChatCompletions:
    """One server's chat completions; the client is made on the first call."""

    replies_per_call: int | None = None

    def __init__(self, who: Who, key: str | None, *, vllm: bool, official: bool) -> None:
        self._who, self._key, self._vllm = who, key, vllm
        self._client: Any = None
        self._longest = Longest(who.model, "/models", official=official)
        self._pieces: dict[str, list[int]] = {}
        self._counts = True  # until the server shows that it has no /tokenize
        # OpenAI's newer models know only the second name, many compatible servers only the first
        self._limit_field = "max_completion_tokens" if official else "max_tokens"
        fields = {"max_tokens", "temperature", "top_p", "stop", "seed"}
        self.capabilities = frozenset(fields | {"top_k", "logprobs", "tokens"} if vllm else fields)

    def __repr__(self) -> str:
        return f"ChatCompletions({self._who})"

    def ready(self) -> None:
        if self._client is None:
            import openai

            # the SDK wants some key; a server of one's own may want none. Its own retries are off: ours count and wait.
            self._client = openai.AsyncOpenAI(api_key=self._key or "none", base_url=self._who.url, max_retries=0)
            close_with(self, self._client)

    async def ask(self, prompt: Prompt, n: int, sampling: Sampling, timeout: float) -> Answer:
        body: dict[str, Any] = {"model": self._who.model, "messages": wire.to_openai(prompt)}
        for field in ("temperature", "top_p", "seed", "top_k"):
            if getattr(sampling, field) is not None:
                body[field] = getattr(sampling, field)
        if sampling.stop is not None:
            body["stop"] = list(sampling.stop)
        if n > 1:
            body["n"] = n
        if self._vllm:
            body |= {"logprobs": True, "return_token_ids": True}
        room = await self._room(prompt, sampling.max_tokens, timeout)
        try:
            data = await self._post("/chat/completions", body | {self._limit_field: room}, timeout)
        except InputError as error:
            other = {"max_tokens": "max_completion_tokens"}.get(self._limit_field)
            if other is None or other not in str(error):
                raise
            self._limit_field = other  # the server said so; remembered for the calls to come
            data = await self._post("/chat/completions", body | {other: room}, timeout)
        if data is None:
            return Answer((filtered("the provider's content filter refused the prompt", Usage()),) * n, Usage())
        return self._answer(data)

    def _answer(self, data: Mapping[str, Any]) -> Answer:
        from openai.types.chat import ChatCompletion

        usage = _usage(data)
        if not isinstance(data.get("choices"), list) or not data["choices"]:
            raise Transient(f"{self._who.url} answered without choices", billed=True)
        try:
            parsed = ChatCompletion.construct(**data)
            replies = tuple(
                _reply(choice, raw, usage if i == 0 and usage else Usage(), self._vllm)
                for i, (choice, raw) in enumerate(zip(parsed.choices, data["choices"], strict=True))
            )
        except (AttributeError, TypeError, KeyError) as error:
            raise Transient(f"{self._who.url} answered in another shape ({error})", billed=True) from None
        return Answer(replies, usage)

    async def longest(self) -> int | None:
        """Longest prompt plus reply, where the server says it."""
        import openai

        return await self._longest(self._client, openai)

    async def _room(self, prompt: Prompt, wanted: int | None, timeout: float) -> int | None:
        """Tokens the reply may take: `wanted`, or what the context leaves, as with local weights.

        vLLM refuses a request whose prompt and `max_tokens` together exceed the context. Only a prompt that may come
        near it (a token has at least one byte) is counted, which costs a request to `/tokenize`.
        """
        longest = await self.longest() if self._counts else None
        if longest is None or wanted is None or most_tokens(prompt) + wanted <= longest:
            return wanted
        try:
            size = len(await self._tokens_of(prompt, timeout))
        except (InputError, MissingResource):
            self._counts = False  # a server without /tokenize decides itself what is too long
            return wanted
        if size >= longest:
            raise TooLong(f"{size:,} tokens, but the model has room for {longest - 1:,}")
        return min(wanted, longest - size)

    async def _tokens_of(self, prompt: Prompt, timeout: float) -> list[int]:
        body = {"model": self._who.model, "messages": wire.to_openai(prompt), "add_generation_prompt": True}
        return _ids(await self._post(f"{self._root}/tokenize", body, timeout), self._who.url)

    async def _tokens_in(self, text: str, timeout: float) -> list[int]:
        if text not in self._pieces:
            body = {"model": self._who.model, "prompt": text, "add_special_tokens": False}
            self._pieces[text] = _ids(await self._post(f"{self._root}/tokenize", body, timeout), self._who.url)
        return self._pieces[text]

    @property
    def _root(self) -> str:
        return self._who.url.rstrip("/").removesuffix("/v1")

    async def score(
        self, prompt: Prompt, continuations: Sequence[str], timeout: float
    ) -> tuple[tuple[float, ...], Usage]:
        """Summed log-prob of each continuation, in one call: its ids after the prompt's, vLLM's prompt log-probs."""
        head = await self._tokens_of(prompt, timeout)
        tails = [await self._tokens_in(text, timeout) for text in continuations]
        request = {
            "model": self._who.model, "prompt": [head + tail for tail in tails],
            "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1,
        }  # fmt: skip
        data = await self._post("/completions", request, timeout)
        try:
            choices = sorted((data or {})["choices"], key=lambda choice: int(choice["index"]))
            tables = [choice["prompt_logprobs"] for choice in choices]
            totals = tuple(
                sum(float(table[len(head) + k][str(token)]["logprob"]) for k, token in enumerate(tail))
                for table, tail in zip(tables, tails, strict=True)
            )
        except (KeyError, IndexError, TypeError, ValueError):
            raise InputError(
                f"{self._who.name}: {self._who.url} gives no prompt_logprobs; it is not a vLLM server"
            ) from None
        return totals, _usage(data or {}) or Usage()

    async def _post(self, path: str, body: Mapping[str, Any], timeout: float) -> Mapping[str, Any] | None:
        """The JSON of one request; None where a content filter refused it. Raises Transient or a user's error."""
        import openai

        url = self._who.url
        try:
            data = await self._client.post(path, cast_to=object, body=body, options={"timeout": timeout})
        except openai.APITimeoutError:
            raise Transient(f"no answer from {url} within {timeout:g} s", billed=True) from None
        except openai.APIConnectionError as error:
            reason = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            dead = reason in ("ConnectError", "ConnectTimeout")
            raise Transient(f"{reason} at {url}", billed=not dead, dead=dead) from None
        except openai.APIStatusError as error:
            code = error.code or ""
            if code in _FILTER_CODES:
                return None
            message = scrub(_message(error), self._key)
            raise status_error(
                self._who, error.status_code, message, error.response.headers, code=code, param=error.param or ""
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError):
            raise Transient(f"{url} answered something that is not JSON", billed=True) from None
        if not isinstance(data, Mapping):
            raise Transient(f"{url} answered something that is not a JSON object", billed=True)
        return data


def _message(error: Any) -> str:
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        return str(inner.get("message", inner)) if isinstance(inner, Mapping) else str(inner)
    return str(body or "")


def _usage(data: Mapping[str, Any]) -> Usage | None:
    usage = data.get("usage")
    if not isinstance(usage, Mapping):
        return None
    return Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def _ids(data: Mapping[str, Any] | None, url: str) -> list[int]:
    tokens = (data or {}).get("tokens")
    if not isinstance(tokens, list):
        raise InputError(f"{url} has no /tokenize as vLLM does; log-probs are not to be had there")
    return [int(t) for t in tokens]


def _reply(choice: Any, raw: Mapping[str, Any], usage: Usage, vllm: bool) -> Reply:
    parts, mended = wire.mended(wire.parts_from_openai(choice.message))
    finish = _FINISH.get(str(choice.finish_reason), "stop")
    declined = any(isinstance(p, Refusal) for p in parts)
    if finish == "filter" and not declined:
        parts = (*parts, Refusal("" if parts else "the provider's content filter stopped this reply"))
    elif finish != "filter" and declined:
        finish = "refusal"  # the model's own answer; a filter takes an answer away, and then there is none
    tokens = logprobs = None
    if vllm and isinstance(raw.get("token_ids"), list) and choice.logprobs and choice.logprobs.content is not None:
        tokens = tuple(int(t) for t in raw["token_ids"])
        logprobs = tuple(float(t.logprob) for t in choice.logprobs.content)
        if len(tokens) != len(logprobs):
            tokens = logprobs = None
    return Reply((Message("assistant", parts or (Text(""),)),), finish, tokens, logprobs, usage, mended=mended)

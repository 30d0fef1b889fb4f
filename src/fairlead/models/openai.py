"""Chat completions through the official SDK: OpenAI, Together, and what speaks the format at a URL (vLLM and kin).

`openai/NAME`, `together/NAME`, `openai/NAME@http://HOST/v1`, `vllm/NAME@http://HOST/v1`. vLLM adds `top_k`, the reply's
token ids and log-probs, and the log-prob of a given continuation (its `/tokenize` and `prompt_logprobs`). Reasoning
models of OpenAI refuse `temperature` and kin unless their reasoning is off; that refusal is reported as the missing
capability.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import Message, Refusal, Text
from fairlead.models import wire
from fairlead.models.access import Transient, Who, filtered, remote_lineage
from fairlead.models.batch import BatchEnd
from fairlead.models.capabilities import capabilities_of
from fairlead.models.keys import key_from
from fairlead.models.longest import Longest
from fairlead.models.protocol import Alternative, Finish, Prompt, Reply, Sampling, TopLogprobs, Usage
from fairlead.models.remote import Answer, Endpoint, RemoteModel, most_tokens
from fairlead.models.responses import Responses
from fairlead.models.sdk_openai import OpenAIConnection, connect
from fairlead.models.terms import Terms
from fairlead.models.toolong import TooLong

OFFICIAL = "https://api.openai.com/v1"
HOUSES = {"openai": OFFICIAL, "together": "https://api.together.ai/v1"}
"""Providers with an address of their own; the others are asked at a URL."""
KEYS = {"openai": "OPENAI_API_KEY", "vllm": "VLLM_API_KEY", "together": "TOGETHER_API_KEY"}

_FINISH: Mapping[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


def open_openai(provider: str, model: str, url: str | None, *, name: str, terms: Terms) -> RemoteModel:
    """A model behind OpenAI's formats: chat completions, or (`openai-responses`) the responses API.

    Raises MissingResource without a key, InputError for vLLM without a URL.
    """
    if provider == "vllm" and url is None:
        raise InputError(f"{name}: where is the server? Write vllm/{model}@http://HOST:PORT/v1")
    house = HOUSES.get(provider, OFFICIAL)
    base = url or (os.environ.get("OPENAI_BASE_URL") if house == OFFICIAL else None) or house
    official = base.rstrip("/") == OFFICIAL  # whose newer names of parameters, and whose prices
    variable = KEYS.get(provider, "OPENAI_API_KEY")
    key = key_from(variable, url=base, optional=base.rstrip("/") != house, name=name)
    connection = connect(Who(name, model, base, variable), key)
    endpoint: Endpoint
    if provider == "openai-responses":
        endpoint = Responses(connection, official=official, records=terms.records)
    else:
        endpoint = ChatCompletions(connection, vllm=provider == "vllm", official=official, records=terms.records)
    return terms.model(
        name,
        endpoint,
        lineage=remote_lineage(provider if provider in HOUSES else "openai", model, base, house),
        url=base,
        price=terms.price(model, listed=official),
    )


class ChatCompletions:
    """One server's chat completions.

    official   the provider's own address (OpenAI's, Azure's): newer names of parameters, no list of context lengths
    """

    def __init__(
        self, connection: OpenAIConnection, *, vllm: bool, official: bool, records: Path | None,
        batch: bool = True, **identity: str,
    ) -> None:  # fmt: skip
        self.connection, self._vllm = connection, vllm
        who = self._who = connection.who
        self._longest = Longest(who.model, "/models", official=official)
        self._pieces: dict[str, list[int]] = {}
        self._counts = True  # until the server shows that it has no /tokenize
        # OpenAI's newer models know only the second name, many compatible servers only the first
        self.limit_field = "max_completion_tokens" if official else "max_tokens"
        self.identity: Mapping[str, Any] = {
            "api": "chat", "url": who.url, "model": who.model, "vllm": vllm, **identity,
        }  # fmt: skip
        self.has = frozenset({"max_tokens", "temperature", "top_p", "stop", "seed", "top_logprobs", "n"})
        self.has |= {"top_k", "logprobs", "tokens"} if vllm else {"batch"} if batch else set()
        can = capabilities_of("chat", who.model, who.url, self.has, official=official, records=records)
        self.replies_per_call: int | None = None if "n" in can else 1
        self.capabilities = can - {"n"}

    def __repr__(self) -> str:
        return f"ChatCompletions({self._who})"

    def ready(self) -> None:
        self.connection.ready()
        import openai.types.chat  # noqa: F401  # takes long once

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The request, as it goes out in a batch."""
        body = self._body(prompt, sampling.n, sampling)
        return body if sampling.max_tokens is None else body | {self.limit_field: sampling.max_tokens}

    def batches(self) -> BatchEnd:
        from fairlead.models.batch_ends import OpenAIBatches

        return OpenAIBatches(self.connection, "/v1/chat/completions", self)

    def _body(self, prompt: Prompt, n: int, sampling: Sampling) -> dict[str, Any]:
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
        if sampling.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        return body

    async def ask(self, prompt: Prompt, n: int, sampling: Sampling, timeout: float) -> Answer:
        body = self._body(prompt, n, sampling)
        room = await self._room(prompt, sampling.max_tokens, timeout)
        try:
            data = await self.connection.post("/chat/completions", body | {self.limit_field: room}, timeout)
        except InputError as error:
            other = {"max_tokens": "max_completion_tokens"}.get(self.limit_field)
            if other is None or other not in str(error):
                raise
            self.limit_field = other  # the server said so; remembered for the calls to come
            data = await self.connection.post("/chat/completions", body | {other: room}, timeout)
        if data is None:
            return Answer((filtered("the provider's content filter refused the prompt", Usage()),) * n, Usage())
        return self.read(data)

    def read(self, data: Mapping[str, Any]) -> Answer:
        """The replies in an answer. Raises Transient for an answer of another shape."""
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

        return await self._longest(self.connection.client, openai)

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
        return _ids(await self.connection.post(f"{self._root}/tokenize", body, timeout), self._who.url)

    async def _tokens_in(self, text: str, timeout: float) -> list[int]:
        if text not in self._pieces:
            body = {"model": self._who.model, "prompt": text, "add_special_tokens": False}
            self._pieces[text] = _ids(
                await self.connection.post(f"{self._root}/tokenize", body, timeout), self._who.url
            )
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
        data = await self.connection.post("/completions", request, timeout)
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
    tokens: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    top: TopLogprobs | None = None
    told = choice.logprobs.content if choice.logprobs else None
    if told is not None:
        logprobs = tuple(float(t.logprob) for t in told)
        if any(t.top_logprobs for t in told):
            top = tuple(tuple(Alternative(str(o.token), float(o.logprob)) for o in t.top_logprobs) for t in told)
    if vllm:
        ids = raw.get("token_ids")
        tokens = tuple(int(t) for t in ids) if isinstance(ids, list) else None
        if logprobs is None or tokens is None or len(tokens) != len(logprobs):
            tokens = logprobs = None  # both or none: trainers take them for one another's
    message = (Message("assistant", parts or (Text(""),)),)
    return Reply(message, finish, tokens, logprobs, usage, mended=mended, top_logprobs=top)

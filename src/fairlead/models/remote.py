"""What every remote model shares: bounded concurrency, retries, deadlines, budget, errors that say what to do.

Async inside with a sync face: all remote models of a process run on one background event loop, so that calling them
from several threads, a notebook or a server works, and connections are reused. A provider (openai.py, anthropic.py) is
one coroutine, `ask`, that turns a prompt into replies or raises: `Transient` (worth another try) or an error for the
user. A call that still fails after its tries is a reply with `finish="error"`: a missing answer, counted as one.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import FairleadError, InputError, MissingResource
from fairlead.exchange import Reasoning, Refusal, Text, ToolCall, ToolResult
from fairlead.models.access import Transient
from fairlead.models.budget import Budget, OutOfBudget, Spend
from fairlead.models.prices import Price
from fairlead.models.protocol import CapabilityError, Prompt, Reply, Sampling, Usage, require
from fairlead.models.toolong import TooLong

DEFAULT_MAX_TOKENS = 1024
"""Sent where `max_tokens` is not given: no call without an upper bound on its cost."""

T = TypeVar("T")
OnReplies: TypeAlias = Callable[[int, tuple[Reply, ...]], None]


class Limits(BaseModel):
    """How a remote model is called. Times in seconds.

    `timeout` bounds one try, `deadline` a call with all its tries and waits. Between tries it waits a random time up to
    `backoff * 2^try` (at most `backoff_cap`), or what the server's retry-after header says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    concurrency: int = Field(default=16, ge=1)
    attempts: int = Field(default=6, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    deadline: float = Field(default=600.0, gt=0)
    backoff: float = Field(default=0.5, ge=0)
    backoff_cap: float = Field(default=30.0, ge=0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call brought. `usage` is None where the server did not count: the worst case is booked then."""

    replies: tuple[Reply, ...]
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job will cost: prompt tokens are about right, reply tokens at most that; `usd` None = unknown."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None

    def __add__(self, other: Estimate) -> Estimate:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Estimate(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            usd,
        )

    def __str__(self) -> str:
        cost = "price unknown (give a price file)" if self.usd is None else f"at most about ${self.usd:,.2f}"
        return (
            f"{self.calls:,} calls, about {self.prompt_tokens:,} prompt tokens, "
            f"at most {self.completion_tokens:,} reply tokens, {cost}"
        )


class Endpoint(Protocol):
    """One provider: what it can do and how one call goes."""

    capabilities: frozenset[str]
    replies_per_call: int | None  # None: as many as asked

    def ready(self) -> None: ...  # what takes long once (importing the SDK) happens here, outside every deadline
    async def ask(self, prompt: Prompt, n: int, sampling: Sampling, timeout: float) -> Answer: ...
    async def score(
        self, prompt: Prompt, continuations: Sequence[str], timeout: float
    ) -> tuple[tuple[float, ...], Usage]: ...
    async def longest(self) -> int | None: ...  # longest prompt plus reply in tokens, where the server says it


class RemoteModel:
    """A model behind an API. Made by `open_model`; `spent` counts calls, tokens and money of this model."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        *,
        lineage: str,
        url: str,
        price: Price | None,
        budget: Budget | None = None,
        limits: Limits | None = None,
    ) -> None:
        if budget is not None and budget.usd is not None and price is None:
            raise InputError(
                f"{name}: its price is unknown, so {budget} cannot be kept; give a price file or use tokens"
            )
        self.name, self.lineage, self.url, self.price = name, lineage, url, price
        self.budget, self.limits = budget, limits or Limits()
        self.spent = Spend(usd=0.0 if price is not None else None)
        self._endpoint = endpoint
        self._gate: asyncio.Semaphore | None = None
        self._answered = False

    def __repr__(self) -> str:
        return f"RemoteModel({self.name!r}, url={self.url!r})"

    @property
    def capabilities(self) -> frozenset[str]:
        return self._endpoint.capabilities

    @property
    def context(self) -> int | None:
        """Longest prompt plus reply in tokens, where the server says it: vLLM and kin, asked once, free of charge."""
        self._endpoint.ready()
        return run(self._endpoint.longest())

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        on_replies: OnReplies | None = None,
    ) -> list[tuple[Reply, ...]]:
        """`sampling.n` replies for each prompt, in order.

        `on_replies(row, replies)` hears of each prompt as soon as all its replies are there, in the order in which
        they come and from the background thread: what it keeps is kept whatever happens to the rest.

        Raises CapabilityError (a field this API lacks), MissingResource (key, model, server), InputError (a prompt the
        API refuses, with its row) and OutOfBudget, which carries what was answered before.
        """
        require(self, *sampling.asked())
        self._endpoint.ready()
        return run(self._all(prompts, self._bounded(sampling), on_replies))

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Summed log-probs of continuations, where the server tells them (vLLM)."""
        require(self, "logprobs")
        self._endpoint.ready()
        return run(self._scores(prompts, continuations))

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> Estimate:  # noqa: B008
        """Calls, tokens and money that `generate` would need, before anything is sent."""
        sampling = self._bounded(sampling)
        per_call = self._endpoint.replies_per_call or sampling.n
        calls_each = -(-sampling.n // per_call)
        sizes = [_size(prompt) for prompt in prompts]
        about = [sum(sizes[i]) // 4 + 12 * len(prompt) for i, prompt in enumerate(prompts)]
        most = sampling.n * (sampling.max_tokens or DEFAULT_MAX_TOKENS)
        usd = sum(calls_each * self.price.cost(a, 0) + self.price.cost(0, most) for a in about) if self.price else None
        return Estimate(calls_each * len(prompts), calls_each * sum(about), most * len(prompts), usd)

    # ------------------------------------------------------------------------------------------ inside

    def _bounded(self, sampling: Sampling) -> Sampling:
        return sampling if sampling.max_tokens is not None else replace(sampling, max_tokens=DEFAULT_MAX_TOKENS)

    def _worst(self, prompt: Prompt, n: int, max_tokens: int, after: Sequence[str] = ()) -> Spend:
        """An upper bound for one call; with `after`, for one that scores these continuations of the prompt."""
        prompt_tokens = most_tokens(prompt)
        if after:
            prompt_tokens = sum(prompt_tokens + len(text.encode()) for text in after)
        reply_tokens = n * max_tokens
        return Spend(
            1, prompt_tokens, reply_tokens, self.price.cost(prompt_tokens, reply_tokens) if self.price else None
        )

    async def _all(
        self, prompts: Sequence[Prompt], sampling: Sampling, on_replies: OnReplies | None
    ) -> list[tuple[Reply, ...]]:
        done: list[tuple[Reply, ...]] = [()] * len(prompts)

        async def one(row: int) -> None:
            try:
                done[row] = await self._replies(prompts[row], sampling)
            except CapabilityError:
                raise
            except TooLong as error:
                raise _too_long(prompts, row, error) from None
            except InputError as error:
                raise type(error)(f"prompt {row}: {error}") from None
            if on_replies is not None:
                on_replies(row, done[row])

        try:
            await together([one(row) for row in range(len(prompts))])
        except OutOfBudget as error:
            error.replies = done
            raise
        return done

    async def _replies(self, prompt: Prompt, sampling: Sampling) -> tuple[Reply, ...]:
        per_call = self._endpoint.replies_per_call
        if per_call is not None and sampling.n > per_call:
            parts: list[tuple[Reply, ...]] = [()] * sampling.n

            async def single(k: int) -> None:
                parts[k] = await self._replies(prompt, replace(sampling, n=1))

            await together([single(k) for k in range(sampling.n)])
            return tuple(reply for part in parts for reply in part)
        replies: list[Reply] = []
        while len(replies) < sampling.n:
            # a server that ignores n answers once: ask again for the rest, with a new seed
            n = sampling.n - len(replies)
            shifted = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + len(replies))
            ask = partial(self._endpoint.ask, prompt, n, shifted)
            worst = self._worst(prompt, n, sampling.max_tokens or DEFAULT_MAX_TOKENS)
            try:
                answer = await self._call(ask, lambda a: a.usage, worst)
            except Transient as error:
                replies += [Reply((), "error", error=str(error))] * n
            else:
                replies += answer.replies[:n]
        return tuple(replies)

    async def _scores(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        out: list[list[float]] = [[] for _ in prompts]

        async def one(i: int) -> None:
            worst = self._worst(prompts[i], len(continuations[i]), 1, continuations[i])
            ask = partial(self._endpoint.score, prompts[i], continuations[i])
            try:
                values, _ = await self._call(ask, lambda r: r[1], worst)
            except Transient as error:
                raise MissingResource(f"{self.name}: no log-probs for prompt {i}: {error}") from None
            except TooLong as error:
                raise _too_long(prompts, i, error) from None
            out[i] = list(values)

        await together([one(i) for i, texts in enumerate(continuations) if texts])
        return out

    async def _call(self, ask: Callable[[float], Awaitable[T]], usage: Callable[[T], Usage | None], worst: Spend) -> T:
        """One call with its tries. Raises Transient with the last reason when they are used up."""
        if self._gate is None:
            self._gate = asyncio.Semaphore(self.limits.concurrency)
        async with self._gate:
            started = time.monotonic()
            for attempt in range(self.limits.attempts):
                left = self.limits.deadline - (time.monotonic() - started)
                ticket = await self.budget.reserve(worst) if self.budget is not None else None
                booked: Spend | None = None  # None books the worst case
                try:
                    async with asyncio.timeout(left):  # not wait_for: see _try
                        result = await self._try(ask, min(self.limits.timeout, left))
                    booked = self._spend(usage(result))
                    self._answered = True
                    return result
                except TimeoutError:
                    failure = Transient(f"no answer from {self.url} within {self.limits.deadline:g} s", billed=True)
                except Transient as error:
                    failure = error
                    booked = None if error.billed else self._spend(Usage())
                except FairleadError:
                    booked = self._spend(Usage())
                    raise
                finally:
                    self._book(ticket, booked, worst)
                if failure.dead and not self._answered and attempt >= 2:
                    raise MissingResource(
                        f"{self.name}: nothing answers at {self.url} ({failure}). Start the server, or correct the URL."
                    )
                wait = self._wait(attempt, failure)
                if attempt + 1 == self.limits.attempts or time.monotonic() - started + wait >= self.limits.deadline:
                    raise Transient(f"{failure} (after {attempt + 1} tries)")
                await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _try(self, ask: Callable[[float], Awaitable[T]], timeout: float) -> T:
        # wait_for runs what it waits for in a task of its own before Python 3.12. Where that task fails while this one
        # is being cancelled, nobody asks it how it ended, and asyncio prints so among the user's messages.
        try:
            async with asyncio.timeout(timeout):
                return await ask(timeout)
        except TimeoutError:
            raise Transient(f"no answer from {self.url} within {timeout:g} s", billed=True) from None

    def _wait(self, attempt: int, failure: Transient) -> float:
        jitter = random.uniform(0, min(self.limits.backoff_cap, self.limits.backoff * 2**attempt))
        return jitter if failure.wait is None else failure.wait + min(jitter, 1.0)

    def _spend(self, usage: Usage | None) -> Spend | None:
        if usage is None:
            return None
        cost = self.price.cost(usage.prompt_tokens, usage.completion_tokens) if self.price else None
        return Spend(1, usage.prompt_tokens, usage.completion_tokens, cost)

    def _book(self, ticket: int | None, actual: Spend | None, worst: Spend) -> None:
        self.spent = self.spent + (actual or replace(worst, unsure=1))
        if ticket is not None and self.budget is not None:
            self.budget.settle(ticket, actual)


def _too_long(prompts: Sequence[Prompt], row: int, error: TooLong) -> TooLong:
    """What an endpoint said of one prompt, with the prompt."""
    why = str(error).rstrip(".")
    return TooLong(f"prompt {row}: {why}. Shorten it.", [(prompts[row], why)])


async def together(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all; on the first error cancel the rest, wait for them to end, and raise it."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def most_tokens(prompt: Prompt) -> int:
    """An upper bound for the tokens of a prompt: as many as bytes, plus the frame of each turn."""
    return sum(_size(prompt)) + 16 * len(prompt) + 32


def _size(prompt: Prompt) -> list[int]:
    """Bytes of each message."""

    def text(part: Any) -> str:
        if isinstance(part, Text | Refusal):
            return part.text
        if isinstance(part, Reasoning):
            return (part.text or "") + (part.opaque or "")
        if isinstance(part, ToolCall):
            return part.name + part.arguments + part.id
        if isinstance(part, ToolResult):
            return part.call_id + "".join(map(text, part.parts))
        return ""

    return [len("".join(map(text, m.parts)).encode()) for m in prompt]


# -------------------------------------------------------------------------------- the background loop

_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for it; an interrupt cancels it first."""
    global _loop
    with _loop_lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="fairlead-remote", daemon=True).start()
    future = asyncio.run_coroutine_threadsafe(work, _loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise


def close_with(owner: object, client: Any) -> None:
    """Close an SDK's async client on the background loop once `owner` is gone.

    A client that is collected while still open closes its sockets twice, the second time after their descriptors belong
    to somebody else's connection, which then never hears its answer. The finaliser holds the client until it is closed.
    """
    weakref.finalize(owner, _close_later, client).atexit = False


def _close_later(client: Any) -> None:
    if _loop is not None and not _loop.is_closed():
        asyncio.run_coroutine_threadsafe(client.close(), _loop)

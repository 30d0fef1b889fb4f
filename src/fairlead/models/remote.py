"""What every remote model shares: bounded concurrency, retries, deadlines, budget, errors that say what to do.

Async inside with a sync face: all remote models of a process run on one background event loop, so that calling them
from several threads, a notebook or a server works, and connections are reused. A provider (openai.py, anthropic.py) is
one coroutine, `ask`, that turns a prompt into replies or raises: `Transient` (worth another try) or an error for the
user. A call that still fails after its tries is a reply with `finish="error"`: a missing answer, counted as one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import FairleadError, InputError, MissingResource
from fairlead.models.access import Transient
from fairlead.models.background import close_with, run, together
from fairlead.models.batch import Batch, BatchEnd, batched
from fairlead.models.budget import Budget, OutOfBudget, Spend
from fairlead.models.cache import Draws, ResponseCache, request_key
from fairlead.models.capabilities import ALTERNATIVES, TOP
from fairlead.models.estimate import Estimate, most_tokens, sizes_of
from fairlead.models.pace import Pace
from fairlead.models.prices import Price
from fairlead.models.protocol import CapabilityError, Prompt, Reply, Sampling, Usage, require
from fairlead.models.toolong import TooLong

DEFAULT_MAX_TOKENS = 1024
"""Sent where `max_tokens` is not given: no call without an upper bound on its cost."""

__all__ = [
    "DEFAULT_MAX_TOKENS", "Answer", "Endpoint", "Estimate", "Limits", "OnReplies", "RemoteModel", "close_with",
    "most_tokens", "run", "together",
]  # fmt: skip

T = TypeVar("T")
OnReplies: TypeAlias = Callable[[int, tuple[Reply, ...]], None]


class Limits(BaseModel):
    """How a remote model is called. Times in seconds.

    At most `concurrency` calls are in flight, `start` at first (None: as many); a 429 halves that, answers widen it
    again (pace.py). `timeout` bounds one try, `deadline` a call with all its tries and waits, from its first try on.
    Between tries it waits a random time up to `backoff * 2^try` (at most `backoff_cap`), or what the server's
    retry-after header says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    concurrency: int = Field(default=16, ge=1)
    start: int | None = Field(default=None, ge=1)
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


class Endpoint(Protocol):
    """One provider: what it can do and how one call goes.

    identity    all that is the same in every request: provider, URL, version, model, and what is always sent
    has, capabilities    what the API has; that less what the model is known to refuse ("n": several replies per call)
    connection  the SDK's client, with what its failures mean
    """

    identity: Mapping[str, Any]
    has: frozenset[str]
    capabilities: frozenset[str]
    connection: Any
    replies_per_call: int | None  # None: as many as asked

    def ready(self) -> None: ...  # what takes long once (importing the SDK) happens here, outside every deadline
    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]: ...  # one request
    async def ask(self, prompt: Prompt, n: int, sampling: Sampling, timeout: float) -> Answer: ...
    async def score(
        self, prompt: Prompt, continuations: Sequence[str], timeout: float
    ) -> tuple[tuple[float, ...], Usage]: ...
    def batches(self) -> BatchEnd: ...  # where its capabilities name "batch"
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
        cache: ResponseCache | None = None,
    ) -> None:
        if budget is not None and budget.usd is not None and price is None:
            raise InputError(
                f"{name}: its price is unknown, so {budget} cannot be kept; give a price file or use tokens"
            )
        self.name, self.lineage, self.url, self.price = name, lineage, url, price
        self.budget, self.limits, self.cache = budget, limits or Limits(), cache
        self.spent = Spend(usd=0.0 if price is not None else None)
        self.endpoint = endpoint
        self.pace = Pace(self.limits.concurrency, self.limits.start)
        self._answered = False
        self._draws = Draws()
        self._refused: set[str] = set()

    def __repr__(self) -> str:
        return f"RemoteModel({self.name!r}, url={self.url!r})"

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can be asked for, less what the server has refused since."""
        gone = self._refused | {ALTERNATIVES} if TOP in self._refused else self._refused
        return self.endpoint.capabilities - gone

    @property
    def context(self) -> int | None:
        """Longest prompt plus reply in tokens, where the server says it: vLLM and kin, asked once, free of charge."""
        self.endpoint.ready()
        return run(self.endpoint.longest())

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        on_replies: OnReplies | None = None,
        batch: Batch | None = None,
    ) -> list[tuple[Reply, ...]]:
        """`sampling.n` replies for each prompt, in order; with `batch`, as a job for the provider's batch endpoint.

        `on_replies(row, replies)` hears of each prompt as soon as all its replies are there, in the order in which
        they come and from the background thread: what it keeps is kept whatever happens to the rest.

        Raises CapabilityError (a field this API lacks), MissingResource (key, model, server), InputError (a prompt the
        API refuses, with its row) and OutOfBudget, which carries what was answered before.
        """
        require(self, *sampling.asked())
        self.endpoint.ready()
        if batch is not None:
            require(self, "batch")
            end = self.endpoint.batches()
            done = run(batched(self, end, prompts, self._bounded(sampling), batch, self.endpoint.replies_per_call))
            for row, replies in enumerate(done if on_replies is not None else ()):
                on_replies(row, replies)  # type: ignore[misc]  # not None in this loop
            return done
        return run(self._all(prompts, self._bounded(sampling), on_replies))

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Summed log-probs of continuations, where the server tells them (vLLM)."""
        require(self, "logprobs")
        self.endpoint.ready()
        return run(self._scores(prompts, continuations))

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> Estimate:  # noqa: B008
        """Calls, tokens and money that `generate` would need, before anything is sent."""
        sampling = self._bounded(sampling)
        per_call = self.endpoint.replies_per_call or sampling.n
        calls_each = -(-sampling.n // per_call)
        sizes = [sizes_of(prompt) for prompt in prompts]
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
        return self.worst(prompt_tokens, n * max_tokens)

    def worst(self, prompt_tokens: int, reply_tokens: int) -> Spend:
        """What one call of at most so many tokens may use."""
        cost = self.price.cost(prompt_tokens, reply_tokens) if self.price else None
        return Spend(1, prompt_tokens, reply_tokens, cost)

    async def _all(
        self, prompts: Sequence[Prompt], sampling: Sampling, on_replies: OnReplies | None
    ) -> list[tuple[Reply, ...]]:
        done: list[tuple[Reply, ...]] = [()] * len(prompts)
        draws = [self._draw(prompt, sampling) for prompt in prompts]  # in the order of the rows, not of the answers

        async def one(row: int) -> None:
            try:
                done[row] = await self._replies(prompts[row], sampling, draws[row])
            except CapabilityError as error:
                # a server that is asked for top_logprobs may name either of the two parameters that carry them
                logprobs = error.capability == "logprobs" and "logprobs" not in self.endpoint.capabilities
                self._refused.add("top_logprobs" if logprobs else error.capability)
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

    def _draw(self, prompt: Prompt, sampling: Sampling) -> int:
        if self.cache is None:
            return 0
        return self._draws.next(request_key(self.endpoint.identity, prompt, sampling), sampling)

    async def _replies(self, prompt: Prompt, sampling: Sampling, *draw: int) -> tuple[Reply, ...]:
        per_call = self.endpoint.replies_per_call
        if per_call is not None and sampling.n > per_call:
            parts: list[tuple[Reply, ...]] = [()] * sampling.n

            async def single(k: int) -> None:
                parts[k] = await self._replies(prompt, replace(sampling, n=1), *draw, k)

            await together([single(k) for k in range(sampling.n)])
            return tuple(reply for part in parts for reply in part)
        replies: list[Reply] = []
        while len(replies) < sampling.n:
            # a server that ignores n answers once: ask again for the rest, with a new seed
            n = sampling.n - len(replies)
            shifted = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + len(replies))
            key = None
            if self.cache is not None:
                key = request_key(self.endpoint.identity, prompt, replace(shifted, n=n), *draw, len(replies))
                if kept := self.cache.get(key):
                    replies += kept[:n]
                    continue
            ask = partial(self.endpoint.ask, prompt, n, shifted)
            worst = self._worst(prompt, n, sampling.max_tokens or DEFAULT_MAX_TOKENS)
            try:
                answer = await self.call(ask, lambda a: a.usage, worst)
            except Transient as error:
                replies += [Reply((), "error", error=str(error))] * n
            else:
                replies += answer.replies[:n]
                if self.cache is not None and key is not None:
                    self.cache.put(key, answer.replies[:n])
        return tuple(replies)

    async def _scores(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        out: list[list[float]] = [[] for _ in prompts]

        async def one(i: int) -> None:
            worst = self._worst(prompts[i], len(continuations[i]), 1, continuations[i])
            ask = partial(self.endpoint.score, prompts[i], continuations[i])
            try:
                values, _ = await self.call(ask, lambda r: r[1], worst)
            except Transient as error:
                raise MissingResource(f"{self.name}: no log-probs for prompt {i}: {error}") from None
            except TooLong as error:
                raise _too_long(prompts, i, error) from None
            out[i] = list(values)

        await together([one(i) for i, texts in enumerate(continuations) if texts])
        return out

    async def call(self, ask: Callable[[float], Awaitable[T]], usage: Callable[[T], Usage | None], worst: Spend) -> T:
        """One call with its tries. Raises Transient with the last reason when they are used up."""
        started: float | None = None  # the deadline runs from the first try on, not while the call stands in line
        before: Transient | None = None
        for attempt in range(self.limits.attempts):
            sent = await self.pace.enter(again=attempt > 0)
            try:
                started = sent if started is None else started
                left = self.limits.deadline - (time.monotonic() - started)
                if before is not None and left <= 0:  # it stood in line until then: nothing is sent
                    raise Transient(f"{before} (after {attempt} tries in {self.limits.deadline:g} s)")
                failure = await self._tried(ask, usage, worst, left)
                if not isinstance(failure, Transient):
                    self.pace.answered()
                    return failure
                if failure.busy:
                    # a wait beyond the deadline is no pause: this call fails, the others find out for themselves
                    self.pace.refused(sent, failure.wait if (failure.wait or 0.0) < self.limits.deadline else None)
            finally:
                self.pace.leave()
            if failure.dead and not self._answered and attempt >= 2:
                raise MissingResource(
                    f"{self.name}: nothing answers at {self.url} ({failure}). Start the server, or correct the URL."
                )
            wait = self.pause(attempt, failure)
            if attempt + 1 == self.limits.attempts or time.monotonic() - started + wait >= self.limits.deadline:
                # a last try that the deadline cut short says nothing of what is wrong: the one before it does
                cut_short = before is not None and left < self.limits.timeout and str(before) != str(failure)
                why = f"{failure}; before: {before}" if cut_short else failure
                raise Transient(f"{why} (after {attempt + 1} tries)")
            before = failure
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _tried(
        self, ask: Callable[[float], Awaitable[T]], usage: Callable[[T], Usage | None], worst: Spend, left: float
    ) -> T | Transient:
        """One try within `left` seconds, its worst case reserved before and what it used booked after."""
        ticket = await self.budget.reserve(worst) if self.budget is not None else None
        booked: Spend | None = None  # None books the worst case
        try:
            # not wait_for: it runs what it waits for in a task of its own before Python 3.12. Where that task fails
            # while this one is being cancelled, nobody asks it how it ended, and asyncio prints so among the messages.
            timeout = max(0.0, min(self.limits.timeout, left))
            async with asyncio.timeout(timeout):
                result = await ask(timeout)
            booked = self.spend(usage(result))
            self._answered = True
            return result
        except TimeoutError:
            return Transient(f"no answer from {self.url} within {timeout:g} s", billed=True)
        except Transient as error:
            booked = None if error.billed else self.spend(Usage())
            return error
        except FairleadError:
            booked = self.spend(Usage())
            raise
        finally:
            self.book(ticket, booked, worst)

    def pause(self, attempt: int, failure: Transient) -> float:
        jitter = random.uniform(0, min(self.limits.backoff_cap, self.limits.backoff * 2**attempt))
        return jitter if failure.wait is None else failure.wait + min(jitter, 1.0)

    def spend(self, usage: Usage | None) -> Spend | None:
        if usage is None:
            return None
        cost = self.price.cost(usage.prompt_tokens, usage.completion_tokens) if self.price else None
        return Spend(1, usage.prompt_tokens, usage.completion_tokens, cost)

    def book(self, ticket: int | None, actual: Spend | None, worst: Spend) -> None:
        self.spent = self.spent + (actual or replace(worst, unsure=1))
        if ticket is not None and self.budget is not None:
            self.budget.settle(ticket, actual)


def _too_long(prompts: Sequence[Prompt], row: int, error: TooLong) -> TooLong:
    """What an endpoint said of one prompt, with the prompt."""
    why = str(error).rstrip(".")
    return TooLong(f"prompt {row}: {why}. Shorten it.", [(prompts[row], why)])

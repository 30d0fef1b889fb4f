"""Asks a remote model what it can do, one request for each thing, within a budget: `fairlead doctor --live MODEL`.

Each parameter is sent alone beside a request that is known to be answered, so that a refusal is of that parameter; one
that is taken and then ignored (a second reply that does not come, a stop that stops nothing) counts as not had. What
could not be found out, since the server was busy or the budget was used up, is in the record neither way.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from fairlead.errors import BudgetReached, InputError, MissingResource
from fairlead.exchange import system, user
from fairlead.models.access import Transient
from fairlead.models.background import run
from fairlead.models.capabilities import Record
from fairlead.models.estimate import most_tokens
from fairlead.models.protocol import Prompt, Sampling
from fairlead.models.remote import Answer, Limits, RemoteModel

T = TypeVar("T")

LIMITS = Limits(concurrency=1, attempts=3, timeout=120.0, deadline=240.0)

COUNT: Prompt = (user("Count from one to nine in digits, separated by commas, and say nothing else."),)
ASK: Prompt = (user("What does the word fairlead mean? Look it up."),)
SYSTEM: Prompt = (system("Answer with the single word SUN, whatever is asked."), user("Which word?"))
FEW = 64  # tokens of a reply; room for a model that reasons before it counts
VALUES: dict[str, Any] = {
    "temperature": 0.0, "top_p": 0.9, "top_k": 5, "stop": ("5",), "seed": 7, "top_logprobs": 2,
}  # fmt: skip
TOOL = ("lookup", "Looks a word up.", {"type": "object", "properties": {"word": {"type": "string"}}})


@dataclass
class Found:
    """What has been found out so far."""

    can: set[str] = field(default_factory=set)
    cannot: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def say(self, name: str, refused: str | None) -> None:
        if refused is None:
            self.can.add(name)
        else:
            self.cannot[name] = refused


def probe(model: RemoteModel, *, today: str) -> tuple[Record, BudgetReached | None]:
    """The record of a model, and what ended the probing before its time.

    today    the date, as it is written

    Raises MissingResource or InputError where not even a plain request is answered.
    """
    endpoint = model.endpoint
    endpoint.ready()
    endpoint.capabilities = endpoint.has  # the API's own: what is known of the model is what is to be found out
    endpoint.replies_per_call = None if "n" in endpoint.has else 1
    found, ended = Found(), None
    try:
        run(_all(model, found))
    except BudgetReached as error:
        ended = error
    who = endpoint.identity
    record = Record(who["model"], who["url"], who["api"], today, tuple(sorted(found.can)), found.cannot, found.details)
    return record, ended


async def _all(model: RemoteModel, found: Found) -> None:
    endpoint, plain = model.endpoint, Sampling(max_tokens=FEW)
    started = time.monotonic()
    reply = (await _asked(model, COUNT, 1, plain)).replies[0]
    found.details["plain"] = {
        "seconds": round(time.monotonic() - started, 2), "finish": reply.finish, "reply": reply.text[:80],
        "tokens": [reply.usage.prompt_tokens, reply.usage.completion_tokens],
    }  # fmt: skip
    if limit := getattr(endpoint, "limit_field", ""):
        found.details["limit"] = limit
    await _try(found, "max_tokens", partial(_limited, model))
    for name in sorted(endpoint.has & set(VALUES)):
        await _try(found, name, partial(_with, model, name))
    if "n" in endpoint.has:
        await _try(found, "n", lambda: _two(model))
    if "logprobs" in endpoint.has:
        await _try(found, "logprobs", lambda: _scored(model))
    if "batch" in endpoint.has:
        await _try(found, "batch", lambda: _batches(model))
    for name, ask in (("system", _system), ("tools", _tools), ("stream", _stream)):
        found.details[name] = await _said(ask(model))


async def _asked(model: RemoteModel, prompt: Prompt, n: int, sampling: Sampling) -> Answer:
    worst = model.worst(most_tokens(prompt), n * (sampling.max_tokens or FEW))
    try:
        return await model.call(
            lambda timeout: model.endpoint.ask(prompt, n, sampling, timeout), lambda a: a.usage, worst
        )
    except Transient as error:
        raise MissingResource(f"{model.name}: {error}") from None


async def _try(found: Found, name: str, ask: Callable[[], Awaitable[str | None]]) -> None:
    """`ask` says what is wrong with the answer, None for nothing; a refused request is an InputError."""
    try:
        found.say(name, await ask())
    except InputError as error:
        found.say(name, str(error)[:200])
    except MissingResource as error:
        found.details[f"{name}: not found out"] = str(error)[:200]


async def _said(ask: Awaitable[str]) -> str:
    try:
        return await ask
    except (InputError, MissingResource) as error:
        return f"no: {str(error)[:200]}"


async def _limited(model: RemoteModel) -> str | None:
    reply = (await _asked(model, COUNT, 1, Sampling(max_tokens=16))).replies[0]
    used = reply.usage.completion_tokens
    return None if used <= 16 else f"taken and ignored: {used} tokens came where 16 were allowed"


async def _with(model: RemoteModel, name: str) -> str | None:
    reply = (await _asked(model, COUNT, 1, replace(Sampling(max_tokens=FEW), **{name: VALUES[name]}))).replies[0]
    if name == "stop" and "5" in reply.text:
        return "taken and ignored: the reply goes on behind it"
    if name == "top_logprobs" and not reply.top_logprobs and reply.text:
        return "taken and ignored: no log-probs came"
    return None


async def _two(model: RemoteModel) -> str | None:
    came = len((await _asked(model, COUNT, 2, Sampling(max_tokens=FEW))).replies)
    return None if came == 2 else f"taken and ignored: {came} of 2 replies came"


async def _scored(model: RemoteModel) -> str | None:
    worst = model.worst(most_tokens(COUNT) + 32, 2)
    await model.call(lambda timeout: model.endpoint.score(COUNT, ["1", "2"], timeout), lambda r: r[1], worst)
    return None


async def _batches(model: RemoteModel) -> str | None:
    try:
        await model.endpoint.batches().offered()
    except Transient as error:
        raise MissingResource(f"{model.name}: {error}") from None
    except MissingResource as error:  # no such path
        return str(error)[:200]
    return None


async def _system(model: RemoteModel) -> str:
    reply = (await _asked(model, SYSTEM, 1, Sampling(max_tokens=FEW))).replies[0]
    return "taken and obeyed" if "sun" in reply.text.lower() else f"taken; it answered {reply.text[:40]!r}"


async def _tools(model: RemoteModel) -> str:
    name, description, parameters = TOOL
    api = model.endpoint.identity["api"]
    tool: dict[str, Any] = {"name": name, "description": description, "input_schema": parameters}
    if api != "messages":
        tool = {"name": name, "description": description, "parameters": parameters}
        tool = (
            {"type": "function", "function": tool} if api == "chat" else {"type": "function", "strict": False, **tool}
        )

    async def called(client: Any, timeout: float) -> bool:
        answer = await _create(model, client, timeout, tools=[tool])
        if api == "chat":
            return bool(answer.choices[0].message.tool_calls)
        blocks = answer.output if api == "responses" else answer.content
        return any(block.type in ("function_call", "tool_use") for block in blocks)

    return "taken, and called" if await _raw(model, called) else "taken"


async def _stream(model: RemoteModel) -> str:
    async def counted(client: Any, timeout: float) -> int:
        events = 0
        async for _ in await _create(model, client, timeout, stream=True):
            events += 1
        return events

    events = await _raw(model, counted)
    return f"yes, in {events} events" if events > 1 else "no: it came in one piece"


def _create(model: RemoteModel, client: Any, timeout: float, **more: Any) -> Any:
    """A plain request with something more in it, through the SDK's own method."""
    body = model.endpoint.body(ASK, Sampling(max_tokens=FEW))
    if model.endpoint.identity["api"] == "messages":
        return client.messages.create(**body, **more, timeout=timeout)
    if model.endpoint.identity["api"] == "responses":
        return client.responses.create(**body, **more, timeout=timeout)
    own = {name: body.pop(name) for name in ("model", "messages")}
    return client.chat.completions.create(**own, **more, extra_body=body, timeout=timeout)


async def _raw(model: RemoteModel, ask: Callable[[Any, float], Awaitable[T]]) -> T:
    """`ask(client, timeout)` as one call, booked at its worst: its tokens are not looked at."""
    connection = model.endpoint.connection
    try:
        return await model.call(
            lambda timeout: connection.call(lambda client: ask(client, timeout), timeout),
            lambda _: None,
            model.worst(most_tokens(ASK) + 300, FEW),
        )
    except Transient as error:
        raise MissingResource(str(error)) from None

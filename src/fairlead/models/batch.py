"""Batches: a job handed over whole, answered within a day for less money, and taken up again by its id.

`model.generate(prompts, sampling, batch=Batch(folder))` gives what it gives without, row for row: order and count are
kept, and a row that failed is a reply with its error. The folder remembers each batch under the hash of its requests,
first that it is about to be handed over and then its id, so that a program that was stopped waits for the same batch
when it runs again and pays nothing twice; what came is kept there too. A handing over whose outcome nobody knows is
looked up with the provider where that can be done, and is an error where it cannot.

Costs are booked at the full price, which is an upper bound: batches are sold at a discount.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from fairlead.errors import InputError, MissingResource
from fairlead.models.access import Transient
from fairlead.models.background import together
from fairlead.models.budget import Spend
from fairlead.models.estimate import most_tokens
from fairlead.models.protocol import Prompt, Reply, Sampling, Usage

if TYPE_CHECKING:
    from fairlead.models.remote import Answer, RemoteModel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """How a job is handed over. Times in seconds.

    folder   remembers the batches
    poll     between two looks
    wait     how long to wait in all; a batch that is not done by then goes on, and the same call takes it up
    """

    folder: Path
    poll: float = 30.0
    wait: float = 25 * 3600.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a batch found. `failed`: why it as a whole came to nothing."""

    done: bool
    words: str
    failed: str = ""


class Unknown(Exception):
    """Nobody can say whether the batch was handed over."""


class BatchEnd(Protocol):
    """A provider's batch endpoint."""

    most_rows: int
    most_bytes: int

    async def submit(self, rows: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> str: ...
    async def find(self, key: str) -> str | None: ...  # the id of a batch handed over before; raises Unknown
    async def offered(self) -> None: ...  # raises MissingResource or InputError where it is not
    async def look(self, batch: str) -> Look: ...
    async def results(self, batch: str) -> list[dict[str, Any]]: ...  # as they come, each with its custom_id
    def read(self, row: Mapping[str, Any]) -> Answer: ...  # raises Transient or InputError for a row that failed
    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    body: Mapping[str, Any]
    worst: Spend


async def batched(
    model: RemoteModel, end: BatchEnd, prompts: Sequence[Prompt], sampling: Sampling, how: Batch, per_call: int | None
) -> list[tuple[Reply, ...]]:
    """`sampling.n` replies for each prompt, in order."""
    calls = sampling.n if per_call == 1 else 1
    each = replace(sampling, n=sampling.n // calls)
    rows = [
        _Row(f"row-{i}-{k}", end.body(prompt, each), model.worst(most_tokens(prompt), each.n * (each.max_tokens or 0)))
        for i, prompt in enumerate(prompts)
        for k in range(calls)
    ]
    answers: dict[str, tuple[Reply, ...]] = {}

    async def one(chunk: Sequence[_Row]) -> None:
        answers.update(await _chunk(model, end, chunk, each.n, how))

    await together([one(chunk) for chunk in _chunks(rows, end)])
    return [tuple(reply for k in range(calls) for reply in answers[f"row-{i}-{k}"]) for i in range(len(prompts))]


def _chunks(rows: Sequence[_Row], end: BatchEnd) -> list[list[_Row]]:
    """As many batches as the provider's limits ask for."""
    out: list[list[_Row]] = []
    size = 0
    for row in rows:
        more = len(orjson.dumps(row.body)) + 200
        if not out or len(out[-1]) >= end.most_rows or size + more > end.most_bytes:
            out.append([])
            size = 0
        out[-1].append(row)
        size += more
    return out


async def _chunk(
    model: RemoteModel, end: BatchEnd, rows: Sequence[_Row], n: int, how: Batch
) -> dict[str, tuple[Reply, ...]]:
    key = hashlib.sha256(orjson.dumps([model.url, *([row.id, row.body] for row in rows)])).hexdigest()[:40]
    kept = how.folder / f"{key}.results.jsonl"
    if kept.is_file():  # paid for and fetched by an earlier run
        return _replies(end, rows, n, [orjson.loads(line) for line in kept.read_bytes().splitlines()])[0]
    worst = Spend(usd=model.spent.usd and 0.0)
    for row in rows:
        worst = worst + row.worst
    ticket = await model.budget.reserve(worst) if model.budget is not None else None
    spent: Spend | None = Spend(usd=worst.usd and 0.0)
    try:
        batch = await _handed_over(model, end, rows, key, how)
        spent = None  # whatever happens from here on: nobody knows what will be billed
        found = await _waited(model, end, batch, how)
        _write(kept, b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in found))
        replies, spent = _replies(end, rows, n, found, model)
        return replies
    finally:
        model.book(ticket, spent, worst)


async def _handed_over(model: RemoteModel, end: BatchEnd, rows: Sequence[_Row], key: str, how: Batch) -> str:
    """The id of the batch, which is handed over unless it was before."""
    note = how.folder / f"{key}.json"
    told = orjson.loads(note.read_bytes()) if note.is_file() else None
    if told is not None and told["id"]:
        return str(told["id"])
    state = {"schema": 1, "model": model.name, "url": model.url, "rows": len(rows), "id": ""}
    for attempt in range(model.limits.attempts):
        if told is not None:
            try:
                batch = await _patiently(model, lambda: end.find(key))
            except Unknown as error:
                raise MissingResource(
                    f"{model.name}: a batch of {len(rows):,} rows may have been handed over, and {error}. If the "
                    f"provider's console shows it, write its id into {note}; if it shows none, delete that file."
                ) from None
        else:
            batch = None
        if batch is None:
            _write(note, orjson.dumps(state))
            told = state
            try:
                batch = await end.submit([(row.id, row.body) for row in rows], key)
            except Transient as error:
                if attempt + 1 == model.limits.attempts:
                    raise MissingResource(f"{model.name}: the batch could not be handed over: {error}") from None
                if not error.billed:
                    told = None  # it was refused before anything came of it
                    note.unlink(missing_ok=True)
                await asyncio.sleep(model.pause(attempt, error))
                continue
            except BaseException as error:
                if not isinstance(error, asyncio.CancelledError):
                    note.unlink(missing_ok=True)
                raise
        _write(note, orjson.dumps(state | {"id": batch}))
        return batch
    raise AssertionError("unreachable: the last try returns or raises")


async def _waited(model: RemoteModel, end: BatchEnd, batch: str, how: Batch) -> list[dict[str, Any]]:
    until = time.monotonic() + how.wait
    while not (look := await _patiently(model, lambda: end.look(batch))).done:
        if time.monotonic() + how.poll > until:
            raise MissingResource(
                f"{model.name}: batch {batch} is not done after {how.wait:,.0f} s ({look.words}). It goes on there; "
                "the same call takes it up again."
            )
        await asyncio.sleep(how.poll)
    if look.failed:
        raise InputError(f"{model.name}: batch {batch} failed as a whole: {look.failed}")
    return await _patiently(model, lambda: end.results(batch))


async def _patiently(model: RemoteModel, ask: Callable[[], Awaitable[T]]) -> T:
    """A question that may be asked again."""
    for attempt in range(model.limits.attempts):
        try:
            return await ask()
        except Transient as error:
            if attempt + 1 == model.limits.attempts:
                raise MissingResource(f"{model.name}: {error} (after {attempt + 1} tries)") from None
            await asyncio.sleep(model.pause(attempt, error))
    raise AssertionError("unreachable: the last try returns or raises")


def _replies(
    end: BatchEnd, rows: Sequence[_Row], n: int, found: Sequence[Mapping[str, Any]], model: RemoteModel | None = None
) -> tuple[dict[str, tuple[Reply, ...]], Spend]:
    """Each row's replies, and what they cost. A row that is not among the results is an error of its own."""
    by_id = {str(row.get("custom_id")): row for row in found}
    replies: dict[str, tuple[Reply, ...]] = {}
    spent = Spend()
    for row in rows:
        usage: Usage | None = Usage()
        try:
            if row.id not in by_id:
                raise InputError("the batch brought no result for it")
            answer = end.read(by_id[row.id])
            got, usage = answer.replies[:n], answer.usage
            short = Reply((), "error", error=f"the batch brought {len(got)} of {n} replies")
            replies[row.id] = (*got, *[short] * (n - len(got)))
        except (Transient, InputError) as error:
            replies[row.id] = (Reply((), "error", error=str(error)),) * n
        if model is not None:
            spent = spent + (model.spend(usage) or replace(row.worst, unsure=1))
    return replies, spent


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(body)
    temporary.replace(path)

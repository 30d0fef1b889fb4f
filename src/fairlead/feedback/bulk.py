"""A bulk job: a function over rows, run over more rows than fit in memory, that may be killed at any point.

The function maps a few rows to as many outcomes and knows nothing of files; the job streams rows to it from several
threads, writes what comes back (`shards`), and asks no row again that is on disk. A kill loses what was in flight and
nothing else. A row that cannot be labelled is written with no value and the reason. Everything stops, with all that was
labelled kept, where the budget is reached or nobody answers any more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from fairlead.errors import InputError
from fairlead.feedback.files import BadRow
from fairlead.feedback.shards import Done, JobFolder, kind_of
from fairlead.feedback.stream import Mark, Raw, stream

PATIENCE = 200  # rows without one label among them, after which a job is thought to be set up wrongly


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the function makes of a row: any JSON, or None with the reason. A `BadRow` may be raised or returned so."""

    value: Any
    reason: str = ""


RowFunction: TypeAlias = Callable[[Sequence[Any]], Sequence[Outcome]]
"""Parsed rows to outcomes, same length, same order. An outcome hangs on its row alone. It is called from threads.

A `FairleadError` other than `InputError` (budget, no server) stops the job. An `InputError` is blamed on the rows: each
is asked alone, and the one that raises again has no label, for that reason.
"""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a job asks: `workers` threads at once, `chunk` rows in a call."""

    workers: int = 1
    chunk: int = 32


@dataclass(slots=True)
class Summary:
    """What a run of a job came to: rows on disk before it, asked now, labelled now, and why the others are not."""

    rows: int
    kept: int
    asked: int = 0
    labelled: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run_job(
    folder: JobFolder,
    files: Sequence[Path],
    function: RowFunction,
    pace: Pace = Pace(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    marks: Sequence[Mark] = (),
    names: Sequence[str] = (),
    shards: range | None = None,
) -> Summary:
    """Label every row of the files that is not on disk yet; `shards` only those, for one worker of several.

    marks, names   of the files, as `stream` takes them

    Raises what stopped it; what was labelled before is kept, and another call goes on from there.
    """
    started = time.monotonic()
    summary = Summary(folder.rows, folder.kept)
    pool = _Pool(function, pace.workers)
    undone = _undone(folder, lambda first: stream(files, first, marks, names), shards)
    waiting = _chunks(undone, pace.chunk)
    failure: BaseException | None = None
    progress(folder.kept, folder.rows)
    try:
        while True:
            while failure is None and pool.busy < pace.workers and (chunk := next(waiting, None)):
                pool.ask(chunk)
            if not pool.busy:
                break
            got = pool.answer()
            if isinstance(got, BaseException):
                failure = failure or got  # the others in flight are paid for: they are waited for and kept
                continue
            folder.add(got)
            _count(summary, got)
            progress(folder.kept, folder.rows)
    finally:
        pool.close()
        summary.seconds = time.monotonic() - started
    if failure is not None:
        raise failure
    return summary


def label_rows(raws: Sequence[Raw], function: RowFunction) -> list[Done]:
    """The outcomes of some rows. Rows that are not JSON are not asked."""
    values = [raw.value() for raw in raws]
    good = [i for i, value in enumerate(values) if not isinstance(value, BadRow)]
    outcomes = {i: Outcome(None, str(value)) for i, value in enumerate(values) if isinstance(value, BadRow)}
    outcomes |= zip(good, _asked([values[i] for i in good], function), strict=True) if good else ()
    return [Done(raw.index, raw.place, outcomes[i].value, outcomes[i].reason) for i, raw in enumerate(raws)]


# ------------------------------------------------------------------------------------------------- within


def _asked(values: Sequence[Any], function: RowFunction) -> list[Outcome]:
    try:
        outcomes = list(function(values))
    except (InputError, BadRow) as error:
        if len(values) == 1:
            return [Outcome(None, str(error))]
        return [outcome for value in values for outcome in _asked([value], function)]
    if len(outcomes) != len(values):
        raise ValueError(f"the function gave {len(outcomes)} outcomes for {len(values)} rows")
    for outcome in outcomes:
        if outcome.value is None and not outcome.reason:
            raise ValueError("an outcome without a value must say why: give a reason")
    return outcomes


def _undone(folder: JobFolder, rows_from: Callable[[int], Iterator[Raw]], shards: range | None) -> Iterator[Raw]:
    first = shards.start * folder.shard_rows if shards is not None else folder.first_undone
    last = shards.stop * folder.shard_rows if shards is not None else folder.rows
    for raw in islice(rows_from(first), max(0, last - first)):
        if not folder.has(raw.index):
            yield raw


def _chunks(rows: Iterator[Raw], size: int) -> Iterator[list[Raw]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _count(summary: Summary, done: Sequence[Done]) -> None:
    summary.asked += len(done)
    summary.labelled += sum(item.value is not None for item in done)
    summary.reasons.update(kind_of(item.reason) for item in done if item.value is None)
    if not summary.kept and not summary.labelled and summary.asked >= min(PATIENCE, summary.rows):
        why, times = summary.reasons.most_common(1)[0]
        raise InputError(
            f"not one of the first {summary.asked:,} rows could be labelled, {times:,} of them for this reason: {why}. "
            "They are written so; mend the cause and start again in another folder, or ask them again with --again"
        )


class _Pool:
    """Threads that label chunks. They are daemons: an interrupt does not wait for a server that is slow to answer."""

    def __init__(self, function: RowFunction, workers: int) -> None:
        self.busy = 0
        self._function = function
        self._chunks: queue.SimpleQueue[list[Raw] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[list[Done] | BaseException] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name="fairlead-bulk", daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def ask(self, chunk: list[Raw]) -> None:
        self.busy += 1
        self._chunks.put(chunk)

    def answer(self) -> list[Done] | BaseException:
        """The next chunk that came back, in whatever order, or what its function raised."""
        got = self._answers.get()
        self.busy -= 1
        return got

    def close(self) -> None:
        for _ in self._threads:
            self._chunks.put(None)

    def _work(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            try:
                self._answers.put(label_rows(chunk, self._function))
            except BaseException as error:  # noqa: BLE001  # raised again where the job runs
                self._answers.put(error)

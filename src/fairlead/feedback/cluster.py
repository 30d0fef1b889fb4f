"""The same job under Ray Data: workers take shards, label them with the same function, and write the same files.

A worker is a process with the function made once. It writes its shard as `bulk` does, row by row into the shard's
journal, so that a worker that dies, or is started again by Ray, asks no row twice that is on disk. The folder must be
one that all nodes see. Needs `pip install 'fairlead[cluster]'`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead import errors
from fairlead.errors import BudgetReached, FairleadError, MissingResource
from fairlead.feedback.bulk import Pace, RowFunction, Summary, run_job
from fairlead.feedback.shards import JobFolder
from fairlead.feedback.stream import Mark


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs: how its function is made, and where rows and labels lie.

    starts  how many workers of this run may be made, and the file that counts them; None for any number
    """

    make: Callable[[], RowFunction]
    path: Path
    rows: int
    shard_rows: int
    files: tuple[Path, ...]
    names: tuple[str, ...]
    marks: tuple[Mark, ...]
    pace: Pace
    starts: tuple[int, Path] | None = None


def run_on_ray(
    folder: JobFolder,
    files: Sequence[Path],
    make: Callable[[], RowFunction],
    pace: Pace,
    *,
    workers: int,
    marks: Sequence[Mark] = (),
    restarts: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """As `run_job`, by `workers` processes of a Ray cluster (the one that is connected, or a local one).

    make      makes the function in a worker; must be picklable
    restarts  whether a worker that died may be made again, as Ray does; without, the job stops there

    Raises what stopped the job (the first of several); shards that were finished are kept, and so are the rows of the
    others.
    """
    started = time.monotonic()
    ray = _ray()
    summary = Summary(folder.rows, folder.kept)
    todo = [shard for shard in range(folder.shards) if shard not in folder.index]
    if not todo:
        return summary
    where, names = tuple(path.resolve() for path in files), tuple(map(str, files))
    here = folder.path.resolve()
    counted = here / f".workers-{secrets.token_hex(4)}"
    starts = None if restarts else (min(workers, len(todo)), counted)
    task = Task(make, here, folder.rows, folder.shard_rows, where, names, tuple(marks), pace, starts)
    labelled, reasons = folder.counts()
    data = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo)).map_batches(
        Worker,
        fn_constructor_args=(task,),
        batch_size=1,
        concurrency=min(workers, len(todo)),
    )
    try:
        for row in data.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"], FairleadError)(row["message"])
            folder.adopt(int(row["shard"]))
            progress(folder.kept, folder.rows)
    finally:
        counted.unlink(missing_ok=True)
    after, all_reasons = folder.counts()
    summary.asked = folder.kept - summary.kept
    summary.labelled, summary.reasons = after - labelled, all_reasons - reasons
    summary.seconds = time.monotonic() - started
    return summary


class Worker:
    """What Ray calls: shards in, what became of them out. The function is made once for all shards of a worker."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._allowed = task.starts is None or _started(task.starts[1]) <= task.starts[0]
        self._function = task.make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        told = [self._label(int(shard)) for shard in batch["shard"]]
        return {"shard": batch["shard"], "error": [e for e, _ in told], "message": [m for _, m in told]}

    def _label(self, shard: int) -> tuple[str, str]:
        """("", ""), or the kind and the words of what stopped the job."""
        task = self._task
        if not self._allowed:
            return BudgetReached.__name__, "a worker died, and what it had left of the budget is not known; start again"
        folder = JobFolder(task.path, task.rows, task.shard_rows, lists=False)
        try:
            folder.resume(shard)
            if shard not in folder.index:
                shards = range(shard, shard + 1)
                run_job(
                    folder, task.files, self._function, task.pace, marks=task.marks, names=task.names, shards=shards
                )
        except FairleadError as error:
            kind = next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
            return kind.__name__, str(error)
        return "", ""


def _started(file: Path) -> int:
    """Count one more worker of this run, and say how many there are."""
    with file.open("ab", buffering=0) as log:
        log.write(b".")
    return file.stat().st_size


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingResource("this needs Ray: pip install 'fairlead[cluster]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    return ray

"""The same job under Ray Data: workers take shards, label them with the same function, and write the same files.

A worker is a process with the function made once. It writes its shard as `bulk` does, row by row into the shard's
journal, so that a worker that dies, or is started again by Ray, asks no row twice that is on disk. The folder must be
one that all nodes see. Needs `pip install 'fairlead[cluster]'`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead import errors
from fairlead.errors import FairleadError, MissingResource
from fairlead.feedback.bulk import Pace, RowFunction, Summary, run_job
from fairlead.feedback.shards import JobFolder
from fairlead.feedback.stream import Mark


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs: how its function is made, and where rows and labels lie."""

    make: Callable[[], RowFunction]
    path: Path
    rows: int
    shard_rows: int
    files: tuple[Path, ...]
    marks: tuple[Mark, ...]
    pace: Pace


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
    restarts  whether Ray starts a worker again that died; without, the job stops there

    Raises what stopped the job (the first of several); shards that were finished are kept, and so are the rows of the
    others.
    """
    started = time.monotonic()
    ray = _ray()
    summary = Summary(folder.rows, folder.kept)
    todo = [shard for shard in range(folder.shards) if shard not in folder.index]
    if not todo:
        return summary
    where = tuple(path.resolve() for path in files)
    task = Task(make, folder.path.resolve(), folder.rows, folder.shard_rows, where, tuple(marks), pace)
    labelled, reasons = folder.counts()
    data = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo)).map_batches(
        Worker,
        fn_constructor_args=(task,),
        batch_size=1,
        concurrency=min(workers, len(todo)),
        max_restarts=-1 if restarts else 0,
        max_task_retries=-1 if restarts else 0,
    )
    for row in data.iter_rows():
        if row["error"]:
            raise getattr(errors, row["error"], FairleadError)(row["message"])
        folder.adopt(int(row["shard"]))
        progress(folder.kept, folder.rows)
    after, all_reasons = folder.counts()
    summary.asked = folder.kept - summary.kept
    summary.labelled, summary.reasons = after - labelled, all_reasons - reasons
    summary.seconds = time.monotonic() - started
    return summary


class Worker:
    """What Ray calls: shards in, what became of them out. The function is made once for all shards of a worker."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._function = task.make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        told = [self._label(int(shard)) for shard in batch["shard"]]
        return {"shard": batch["shard"], "error": [e for e, _ in told], "message": [m for _, m in told]}

    def _label(self, shard: int) -> tuple[str, str]:
        """("", ""), or the kind and the words of what stopped the job."""
        task = self._task
        folder = JobFolder(task.path, task.rows, task.shard_rows, lists=False)
        try:
            folder.resume(shard)
            if shard not in folder.index:
                shards = range(shard, shard + 1)
                run_job(folder, task.files, self._function, task.pace, marks=task.marks, shards=shards)
        except FairleadError as error:
            kind = next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
            return kind.__name__, str(error)
        return "", ""


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

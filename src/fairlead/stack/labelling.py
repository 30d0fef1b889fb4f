"""Run a job of AI labels: say what it will ask and cost, run it, and say what its labels are worth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fairlead.constitution.schema import Constitution
from fairlead.errors import FairleadError
from fairlead.feedback.bulk import Pace, Summary, run_job
from fairlead.feedback.files import Paths
from fairlead.feedback.shards import JobFolder, open_folder
from fairlead.feedback.stream import Survey, survey
from fairlead.feedback.twos import shape_of
from fairlead.methods.ai_labels import label_warnings
from fairlead.stack.estimate import go_on
from fairlead.stack.labels import (
    LabelSettings,
    MakeLabeller,
    Reader,
    estimate,
    facts,
    labeller,
    lineage_of,
    totals,
    write_preferences,
)

SHARD_ROWS = 1000


class Voice(Protocol):
    """How a job speaks: lines, and progress with the time left."""

    def say(self, text: str) -> None: ...
    def progress(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]: ...


def label_file(
    paths: Paths,
    constitution: Constitution,
    reader: Reader,
    settings: LabelSettings,
    out: Path,
    voice: Voice,
    *,
    confirm: Callable[[str], bool] | None = None,
    pace: Pace | None = None,
    shard_rows: int = SHARD_ROWS,
    again: bool = False,
    ray: int | None = None,
) -> dict[str, Any]:
    """Label every pair of the files and return what came of it, as `--json` prints it.

    out      the job's folder; where it holds part of this job, that is gone on with
    again    ask the rows once more that have no label
    confirm  asked before remote calls without a budget; None where nobody can be asked
    ray      label under Ray Data with so many workers; each has its part of the budget

    Raises what stopped the job, after saying what is kept.
    """
    found = survey(paths)
    shape = shape_of([raw.value() for raw in found.head], found.files[0])
    voice.say(f"{found.files[0]}: {shape.name} ({shape.why}), {found.rows:,} pairs" + _more(found))
    with open_folder(
        out, facts(found, constitution, reader, settings), rows=found.rows, shard_rows=shard_rows
    ) as folder:
        if again:
            voice.say(f"{folder.ask_again():,} rows without a label are asked again")
        if folder.kept:
            voice.say(f"{out}: {folder.kept:,} of {folder.rows:,} rows are on disk and are not asked again")
        cost = estimate(found, folder, lambda model: labeller(constitution, model, settings), reader)
        if reader.remote and cost.calls:
            voice.say(f"remote: {cost}" + (f"; budget {reader.budget}" if reader.budget else ""))
            go_on(reader.budget, confirm)
        job = _Job(found, constitution, reader, settings, pace or reader.pace)
        summary = _run(job, folder, voice, ray)
        result = totals(folder)
        preferences = write_preferences(folder)
    result |= {
        "critic": {"name": reader.spec, "lineage": lineage_of(constitution, reader, settings)},
        "preferences": str(preferences),
        "asked_now": summary.asked,
        "seconds": round(summary.seconds, 3),
        "spent": spent_of(reader),
    }
    for line in label_warnings(result["counts"], result["position_bias"], reader.spec):
        voice.say(line)
    return result


@dataclass(frozen=True, slots=True)
class _Job:
    found: Survey
    constitution: Constitution
    reader: Reader
    settings: LabelSettings
    pace: Pace


def _run(job: _Job, folder: JobFolder, voice: Voice, ray: int | None) -> Summary:
    files, marks = job.found.files, job.found.marks
    try:
        with voice.progress("labels") as advance:
            if ray is None:
                function = labeller(job.constitution, job.reader.model(), job.settings)
                return run_job(folder, files, function, job.pace, progress=advance, marks=marks)
            from fairlead.feedback.cluster import run_on_ray

            # A worker that Ray starts again would have its part of the budget once more.
            restarts = job.reader.budget is None
            make = MakeLabeller(job.constitution, job.reader.access, job.settings, ray)
            return run_on_ray(
                folder, files, make, job.pace, workers=ray, marks=marks, restarts=restarts, progress=advance
            )
    except FairleadError:
        voice.say(f"{folder.path}: {folder.kept:,} of {folder.rows:,} rows are on disk; the same command goes on there")
        raise


def _more(found: Survey) -> str:
    files = f" in {len(found.files)} files" if len(found.files) > 1 else ""
    return files + (f", {found.blank:,} blank lines" if found.blank else "")


def spent_of(reader: Reader) -> dict[str, Any] | None:
    """What a remote critic used so far; None of a local one."""
    if not reader.remote:
        return None
    spent = reader.fleet.spent
    return {
        "calls": spent.calls,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "usd": spent.usd,
        "charged_at_worst": spent.unsure,
    }

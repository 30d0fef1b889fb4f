"""One managed fine-tuning: a data file becomes the provider's, a job there, and a folder that names the new model.

The order lies in `OUT.unfinished` until it is done: the file that was sent, and how far the job is. Stopped or killed
at any point, the same command goes on from there, and never submits a second job.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fairlead.errors import FairleadError, InputError
from fairlead.feedback.export import Exported, Kind, export
from fairlead.models import Budget, remote_parts
from fairlead.models.finetuning import TUNERS, Tuner, Tuning, Upload, open_tuner, refuse_to_train
from fairlead.models.finetuning.job import Pace, Progress, follow, outcome, submit
from fairlead.models.finetuning.prices import TrainingPrice
from fairlead.models.finetuning.protocol import Tuned
from fairlead.stack.alone import make_way
from fairlead.stack.atomic import at_work, others_at_work, plain_disk_errors, sweep, whole_folder, write_file
from fairlead.stack.folder import write_json
from fairlead.stack.identity import digest
from fairlead.stack.managed_bill import Bill, agree, approve, bill_of, tuning_of
from fairlead.stack.single import READERS, Order
from fairlead.stack.voice import Voice

DATA, JOB = "data.jsonl", "order.json"


@dataclass(frozen=True)
class Terms:
    """How a managed order is run, as apart from what it asks.

    prices        your own, by model
    tokenizer     a folder or hub name to count tokens with
    full          all weights are trained, not adapters
    min_strength  pairs below it are left out of the file
    confirm       asked before a job without a budget; None where nobody can be asked
    wait          False: submit, and leave the polling to the same command later
    cancel        cancel the job when interrupted; else it goes on at the provider
    pace          how often the provider is asked; None for the usual
    """

    budget: Budget | None = None
    prices: Mapping[str, TrainingPrice] | None = None
    tokenizer: str | None = None
    full: bool = False
    min_strength: float = 0.5
    confirm: Callable[[str], bool] | None = None
    wait: bool = True
    cancel: bool = False
    pace: Pace | None = None


def look_ahead(order: Order, voice: Voice, terms: Terms) -> dict[str, Any]:
    """What would be sent and what it would cost. Nothing is sent, no key is needed, and nothing is left behind."""
    with tempfile.TemporaryDirectory() as folder:
        tuning, exported, bill = _prepared(order, Path(folder), voice, terms)
    return {
        "method": order.name, "model": order.spec, "provider": exported.format, **_of_file(exported),
        **_of_bill(bill), "config": tuning.model_dump(mode="json"),
    }  # fmt: skip


def tune_stage(order: Order, out: Path, voice: Voice, terms: Terms) -> dict[str, Any]:
    """Fine-tune at a provider and write OUT: `model.txt`, `train.json`, `job.json`, `data.jsonl`.

    Raises BudgetReached (exit 5) before anything is submitted that may cost more, the provider's failures as such, and
    InputError where OUT.unfinished holds another order. Returns what `train.json` says; without `wait`, the state.
    """
    make_way(out)
    unfinished = out.with_name(f"{out.name}.unfinished")
    with plain_disk_errors(out):
        sweep(unfinished)
        if others_at_work(unfinished):
            raise InputError(f"{unfinished}: another process is at work on this order")
        with at_work(unfinished):
            found = _worked(order, unfinished, voice, terms)
        if "result" not in found:
            return found
        with whole_folder(out) as folder:
            shutil.copy2(unfinished / DATA, folder / DATA)
            (folder / "model.txt").write_text(found["result"] + "\n", encoding="utf-8")
            write_json(folder / "job.json", found.pop("job_as_told"))
            write_json(folder / "train.json", found)
        shutil.rmtree(unfinished)
    return found


def _worked(order: Order, unfinished: Path, voice: Voice, terms: Terms) -> dict[str, Any]:
    began = time.perf_counter()
    tuning, exported, bill = _prepared(order, unfinished, voice, terms)
    tuner = open_tuner(order.spec)
    data = Upload(exported.path, exported.sha256, exported.bytes, exported.rows)
    job = fine_tuned(tuner, tuning, data, bill, unfinished / JOB, voice, terms)
    facts = {
        "method": order.name, "model": order.spec, "provider": tuner.provider, "data": str(order.data), "job": job.id,
        "config": tuning.model_dump(mode="json"), **_of_file(exported), **_of_bill(bill),
    }  # fmt: skip
    if job.state in ("waiting", "running"):
        return facts | {"state": job.said}
    model = outcome_of(tuner, job, unfinished)
    return facts | {
        "result": tuner.spec_of(model),
        "serving": tuner.serving(model),
        "tokens_billed": job.tokens,
        "usd_billed": job.usd,
        "seconds": round(time.perf_counter() - began, 2),
        "job_as_told": job.raw,
    }


def fine_tuned(tuner: Tuner, tuning: Tuning, data: Upload, bill: Bill, file: Path, voice: Voice, terms: Terms) -> Tuned:
    """The job of an order as the provider tells it in the end; `file` keeps how far it is.

    Where a job exists already it is followed, and neither the budget nor a person is asked again.
    """
    order = digest({"tuner": tuner.spec_of(""), "tuning": tuning.model_dump(mode="json"), "data": data.sha256})
    progress = _known(file, order)

    def keep(now: Progress) -> None:
        write_file(file, json.dumps(now.to_json(), indent=1))

    if progress is None:
        progress = Progress(order, secrets.token_hex(6))
        voice.say(f"{tuner.name}: {bill}")
        agree(tuner.name, bill, terms.budget, terms.confirm)
        keep(progress)
    elif not progress.job_id:
        agree(tuner.name, bill, terms.budget, terms.confirm)
    else:
        voice.say(f"{tuner.name}: going on with job {progress.job_id}")
    pace = terms.pace or Pace()
    progress = submit(
        tuner, tuning, data, progress, keep,
        lambda quote: approve(tuner.name, quote, bill, terms.budget, terms.confirm, voice.say),
        say=voice.say, pace=pace,
    )  # fmt: skip
    if not terms.wait:
        return tuner.job(progress.job_id)
    try:
        return follow(tuner, progress, keep, say=voice.say, pace=pace)
    except KeyboardInterrupt:
        if terms.cancel:
            ended = tuner.cancel(progress.job_id)
            voice.say(f"{tuner.name}: job {ended.id} is {ended.said}; what it has trained so far is billed")
        else:
            voice.say(
                f"{tuner.name}: job {progress.job_id} goes on at the provider; the same command takes it up again, and "
                "--cancel-on-interrupt would have ended it"
            )
        raise


def outcome_of(tuner: Tuner, job: Tuned, kept: Path) -> str:
    """The new model's name, or the provider's failure with what to do about the order that is kept."""
    try:
        return outcome(tuner, job)
    except FairleadError as error:
        raise type(error)(f"{error}. To submit a new job, remove {kept}") from None


def has_job(file: Path) -> bool:
    """Whether an order has its job at the provider already: what is followed is not bought again."""
    try:
        return bool(json.loads(file.read_bytes()).get("job_id"))
    except (OSError, ValueError):
        return False


def _known(file: Path, order: str) -> Progress | None:
    if not file.is_file():
        return None
    try:
        progress = Progress.from_json(json.loads(file.read_bytes()))
    except (ValueError, TypeError):
        raise InputError(f"{file}: is damaged; look for the job at the provider before you remove it") from None
    if progress.order != order:
        job = f" (job {progress.job_id})" if progress.job_id else ""
        raise InputError(
            f"{file.parent}: holds another order{job}: other data, another model or other settings. Give another "
            "--out, or remove that folder to forget the order (a job that runs goes on at the provider)"
        )
    return progress


# ------------------------------------------------------------------------------------------------ within


def _prepared(order: Order, folder: Path, voice: Voice, terms: Terms) -> tuple[Tuning, Exported, Bill]:
    """What is asked, the file that is sent, and its bill; the cheap checks come first."""
    found = remote_parts(order.spec)
    if found is None or found[0] not in TUNERS:
        raise refuse_to_train(order.spec)
    provider, model, _ = found
    tuning = tuning_of(order.name, model, order.settings, order.seed, full=terms.full)
    exported = written(order, folder / DATA, provider, voice, terms.min_strength, called=DATA)
    return tuning, exported, bill_of(exported, tuning, prices=terms.prices, tokenizer=terms.tokenizer)


def written(
    order: Order, path: Path, form: str, voice: Voice, min_strength: float = 0.5, *, called: str = ""
) -> Exported:
    """Read the order's data and write it in a published format; says what was read, written and left out."""
    if order.name not in ("sft", "dpo"):
        raise InputError(f"{order.name}: formats are published for sft and dpo alone")
    kind = cast(Kind, order.name)
    if kind == "sft" and min_strength != 0.5:
        raise InputError("--min-strength is of pairs; sft learns from conversations")
    rows = READERS["exchanges" if kind == "sft" else "pairs"](order.data, skip_bad_rows=order.skip_bad_rows)
    for line in rows.report.lines():
        voice.say(line)
    made = export(
        path, form, kind, rows.rows, rows.places, min_strength=min_strength, skip_bad_rows=order.skip_bad_rows
    )
    for line in made.lines(called):
        voice.say(line)
    return made


def _of_file(exported: Exported) -> dict[str, Any]:
    facts = dataclasses.asdict(exported)
    return {key: facts[key] for key in facts if key not in ("path", "kind", "format")}


def _of_bill(bill: Bill) -> dict[str, Any]:
    return {
        "tokens": bill.tokens, "counted_by": bill.counted_by or "estimate", "tokens_to_bill": bill.billed,
        "usd": bill.usd, "price_from": bill.price_from, "bill": str(bill),
    }  # fmt: skip

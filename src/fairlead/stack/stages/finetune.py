"""Fine-tuning at a provider as a layer: the model below, tuned there, is a managed model like any other.

The order (the file that was sent, how far the job is) lies beside the cache under what it asks for, and survives
`--fresh`: a job is paid for once. What comes out must be served before it can be measured, which costs by the minute,
so the stage ends there with what to do, and goes on from there when the same command is given again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairlead.errors import BudgetReached, InputError, MissingResource
from fairlead.exchange import user
from fairlead.feedback.export import export
from fairlead.models import Price, Sampling, Spend, remote_parts
from fairlead.models.finetuning import TUNERS, Tuning, Upload, open_tuner, refuse_to_train
from fairlead.models.finetuning.prices import read_training_prices
from fairlead.models.finetuning.protocol import Tuned
from fairlead.stack.atomic import at_work, others_at_work, plain_disk_errors, sweep
from fairlead.stack.context import Built, Context
from fairlead.stack.identity import digest, file_hash
from fairlead.stack.managed import DATA, JOB, Terms, fine_tuned, has_job, outcome_of
from fairlead.stack.managed_bill import Bill, bill_of, tuning_of
from fairlead.stack.plan import FinetuneLayer
from fairlead.stack.source import Source
from fairlead.stack.stages.train import Clock


def check_finetune(layer: FinetuneLayer, below: Built, ctx: Context) -> None:
    """Refuse, before anything is asked, what cannot be tuned. The data is read."""
    if not below.plain:
        raise InputError(
            f"layer {layer.name!r} (finetune) trains weights, but {below.name!r} is a {below.kind} around a model; "
            "put it first, or write `from:` with the layer to tune"
        )
    found = remote_parts(ctx.source.spec)
    if found is None:
        raise InputError(
            f"layer {layer.name!r} (finetune) is for a managed model, and {ctx.source.spec} has weights here: use "
            f"{layer.method}"
        )
    if found[0] not in TUNERS:
        raise refuse_to_train(ctx.source.spec)
    if ctx.budget is None:
        raise InputError(
            f"layer {layer.name!r} (finetune) buys a job: give a limit with --budget ('10 USD' or '5M tokens')"
        )
    _tuning(layer, found[1], ctx)
    rows_of(layer, ctx)


def rows_of(layer: FinetuneLayer, ctx: Context) -> Any:
    """What the layer learns from, with places and report."""
    if layer.method == "sft":
        if layer.data == "given":
            raise InputError(f"layer {layer.name!r} (finetune): sft learns from conversations: name a file as `data:`")
        return ctx.read_demonstrations(layer.data)
    return ctx.preferences if layer.data == "given" else ctx.read_preferences(layer.data)


def finetune(layer: FinetuneLayer, below: Built, ctx: Context) -> Built:
    """Tune the model below, and open what came out under the name it is served by."""
    clock = Clock()
    found = remote_parts(ctx.source.spec)
    assert found is not None
    _, name, url = found
    earlier = str(below.facts.get("job", ""))  # an earlier tuning is gone on with, not begun anew
    spec = f"together/{earlier or name}" + (f"@{url}" if url else "")
    tuning = _tuning(layer, earlier or name, ctx)
    rows = rows_of(layer, ctx)
    what = {
        "below": below.identity,
        "tuning": tuning.model_dump(mode="json"),
        "strength": layer.min_strength,
        "files": [file_hash(file.path) for file in rows.report.files],
        "skip": ctx.skip_bad_rows,
    }
    key = digest(what)
    kept = ctx.cache.root / "finetune" / key[:32]
    with plain_disk_errors(kept):
        sweep(kept)
        if others_at_work(kept):
            raise InputError(f"layer {layer.name!r}: another process is at work on this job ({kept})")
        with at_work(kept):
            exported = export(
                kept / DATA, layer.provider, layer.method, rows.rows, rows.places,
                min_strength=layer.min_strength, skip_bad_rows=ctx.skip_bad_rows,
            )  # fmt: skip
            for line in exported.lines(f"{layer.name}: {DATA}"):
                ctx.voice.say(line)
            prices = read_training_prices(Path(layer.prices)) if layer.prices else None
            bill = bill_of(exported, tuning, prices=prices)
            new = not has_job(kept / JOB)
            tuner = open_tuner(spec)
            data = Upload(exported.path, exported.sha256, exported.bytes, exported.rows)
            terms = Terms(budget=ctx.budget, prices=prices)
            job = fine_tuned(tuner, tuning, data, bill, kept / JOB, ctx.voice, terms)
            if new:
                _book(layer, job, bill, ctx)
            model = outcome_of(tuner, job, kept)
    asked = f"together/{layer.endpoint}" + (f"@{url}" if url else "") if layer.endpoint else tuner.spec_of(model)
    # an endpoint's name may come to serve another model: what is remembered of it belongs to this job
    identity = digest({"finetune": job.id, "asked": asked, "order": key})
    _by_the_minute(layer, layer.endpoint or model, ctx)
    opened = ctx.model(Source(asked, "remote", None, identity))
    _answers(layer, opened, asked, tuner.serving(model))
    return Built(
        name=layer.name,
        kind="finetune",
        identity=identity,
        folder=None,
        plain=True,
        model=opened,
        summary=f"{layer.method} at {layer.provider} on {exported.rows:,} rows, {tuning.epochs} epochs; job {job.id}",
        prompts=tuple(row.messages for row in rows.rows),
        seconds=clock.seconds if new else None,
        facts={
            "job": job.id,
            "result": tuner.spec_of(model),
            "asked": asked,
            "bill": str(bill),
            "usd_billed": job.usd,
            "tokens_billed": job.tokens,
            "written": list(exported.lines(DATA)),
        },
        settings=tuning.model_dump(mode="json"),
    )


def _tuning(layer: FinetuneLayer, model: str, ctx: Context) -> Tuning:
    settings: dict[str, Any] = {"epochs": float(layer.epochs)}
    settings |= {key: value for key, value in (("lr", layer.lr), ("beta", layer.beta)) if value is not None}
    if layer.rank is not None:
        settings["lora"] = {"rank": layer.rank, "alpha": 2.0 * layer.rank}
    return tuning_of(layer.method, model, settings, ctx.seed, full=layer.full)


def _book(layer: FinetuneLayer, job: Tuned, bill: Bill, ctx: Context) -> None:
    """What the job was charged counts in the budget of the run, as every call does."""
    if ctx.budget is None:
        return
    usd = job.usd if job.usd is not None else bill.usd
    spend = Spend(1, job.tokens or bill.billed, 0, usd, 0)
    if ctx.budget.usd is not None and usd is None:
        ctx.voice.say(f"{layer.name}: what the job costs is not known, so it is not counted in the budget")
        return
    try:
        ticket = ctx.budget.try_reserve(spend)
    except BudgetReached:  # dearer than it was quoted; it is paid all the same, and nothing more is bought
        ctx.budget.spent = ctx.budget.spent + spend
        raise
    if ticket is not None:
        ctx.budget.settle(ticket, spend)


def _by_the_minute(layer: FinetuneLayer, name: str, ctx: Context) -> None:
    """The price of asking the tuned model, where the user gives none: its tokens are free, its endpoint is not."""
    if name not in (ctx.prices or {}):
        ctx.prices = {**(ctx.prices or {}), name: Price(input=0.0, output=0.0)}
        ctx.voice.say(
            f"{layer.name}: asking the tuned model is counted as free, since {layer.provider} bills its endpoint by "
            "the minute, which no budget here sees; --prices gives another price"
        )


def _answers(layer: FinetuneLayer, model: Any, asked: str, serving: str) -> None:
    """One short question: a tuned model that nobody serves is found out here, with what to do, not in a measure."""
    try:
        ((reply,),) = model.generate([(user("Hello"),)], Sampling(max_tokens=1))
    except (MissingResource, InputError) as error:
        if isinstance(error, InputError) and "(400)" not in str(error):
            raise  # nothing that the provider said of this model
        raise MissingResource(
            f"layer {layer.name!r}: the model is tuned, and does not answer as {asked} ({error}). {serving}. Name the "
            "endpoint in the layer (`endpoint: PROJECT/NAME`) and give the same command again: the job is kept"
        ) from None
    if reply.finish == "error":
        raise MissingResource(f"layer {layer.name!r}: {asked} does not answer. {serving}")

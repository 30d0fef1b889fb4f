"""Run a plan: measure, then for every layer build and measure, then write the run folder.

Finished work lies in the cache as soon as it is done, so a run that was interrupted, killed or out of budget goes on
from there when the same command is given again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.constitution import load, usual
from fairlead.constitution.schema import Constitution
from fairlead.constitution.voice import with_samples
from fairlead.errors import InputError
from fairlead.judges.conflicts import conflicts
from fairlead.measures.result import MeasureResult
from fairlead.models import Budget, Price
from fairlead.models.remote import Estimate
from fairlead.stack.atomic import plain_disk_errors
from fairlead.stack.cache import Cache
from fairlead.stack.context import Built, Context, Rewarded, Used
from fairlead.stack.estimate import estimate, go_on, remote_models
from fairlead.stack.estimate_training import of_training
from fairlead.stack.folder import place_for, run_folder, write_json, write_lines
from fairlead.stack.guarded import Row, guard_of, warnings
from fairlead.stack.identity import cores
from fairlead.stack.measuring import auditors, bank_for, believable, left_out, measure, measures_for
from fairlead.stack.plan import AnyLayer, DPOLayer, FinetuneLayer, GuardLayer, Plan, PromptLayer, RewardLayer, SFTLayer
from fairlead.stack.plan_rl import PolicyLayer
from fairlead.stack.preflight import preflight, uses_prompts
from fairlead.stack.results import comparisons, results, write_exchanges, write_layers, write_lock
from fairlead.stack.source import locate
from fairlead.stack.stages.accuracy import preference_rows
from fairlead.stack.stages.dpo import dpo
from fairlead.stack.stages.finetune import finetune
from fairlead.stack.stages.guard import compiled, critic_of, guard, judges_of
from fairlead.stack.stages.policy import foreseen_judges, policy
from fairlead.stack.stages.prompt import prompt
from fairlead.stack.stages.reward import reward
from fairlead.stack.stages.sft import sft
from fairlead.stack.voice import Quiet, Voice

DEFAULT_CACHE = Path("runs") / ".cache"


@dataclass(frozen=True)
class Options:
    """How a plan is run, as apart from what it says.

    confirm  asked before remote calls without a budget: shows the estimate, returns whether to go on; None where
             nobody can be asked
    finish   fills in what stands on the results (the report) while the folder is not yet in its place
    smoke    the plan was scaled down (smoke.py), and the results say so
    """

    out: Path | None = None
    cache: Path = DEFAULT_CACHE
    fresh: bool = False
    oracle: bool = False
    skip_bad_rows: bool = False
    threads: int = 0
    budget: Budget | None = None
    prices: Mapping[str, Price] | None = None
    confirm: Callable[[str], bool] | None = None
    finish: Callable[[Path], None] | None = None
    recipe: str = ""
    smoke: bool = False


@dataclass(frozen=True)
class Finished:
    """Where the run lies, and what `results.json` says."""

    folder: Path
    results: dict[str, Any]
    measured: Mapping[str, list[MeasureResult]] = field(default_factory=dict)


def constitution_of(plan: Plan, *, world: bool) -> Constitution:
    """The plan's constitution; where it names none, the harbour's own for the apprentice and `hhh` for others."""
    return with_samples(load(plan.constitution or usual(world=world)))


def run_plan(plan: Plan, options: Options = Options(), voice: Voice | None = None) -> Finished:
    """Run the plan. Raises FairleadError with what is wrong; whatever was finished before stays in the cache."""
    ctx = context(plan, options, voice or Quiet())
    place = place_for(options.out, f"{_short(plan.model)}-{ctx.constitution.name}")
    finished = _run(ctx, options, place)
    _write(ctx, options, finished)
    return Finished(place, finished.results, finished.measured)


def measure_model(plan: Plan, options: Options, voice: Voice) -> Finished:
    """Measure the plan's model alone. A run folder is written where `out` names one, and nothing otherwise."""
    ctx = context(plan, options, voice)
    place = place_for(options.out, "measure") if options.out else Path()
    finished = _run(ctx, options, place)
    if options.out is not None:
        _write(ctx, options, finished)
    return Finished(place, finished.results, finished.measured)


@dataclass(frozen=True)
class _Done(Finished):
    layers: tuple[Built, ...] = ()


@dataclass
class _Work:
    """What the layers came to, in their order: results, seconds, and what guards did, by layer."""

    measured: dict[str, list[MeasureResult]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    guarded: dict[str, list[Row]] = field(default_factory=dict)


def _run(ctx: Context, options: Options, place: Path) -> _Done:
    plan = ctx.plan
    with plain_disk_errors(options.cache):
        preflight(ctx)
        layers, work = _work(ctx, options)
        accuracy = preference_rows(ctx, layers)
    measured = work.measured
    for layer, rows in accuracy.rows.items():
        measured[layer] = [*measured[layer], *rows]
    starts = {layer.name: layer.from_ for layer in plan.layers}
    body = results(
        ctx, layers, measured, accuracy.table, work.seconds, comparisons(layers, starts),
        recipe=options.recipe, left_out=left_out(ctx), guarded=work.guarded,
    )  # fmt: skip
    if options.smoke:
        body["smoke"] = True
    return _Done(place, body, measured, tuple(layers))


def _write(ctx: Context, options: Options, done: _Done) -> None:
    with run_folder(done.folder) as folder:
        write_json(folder / "results.json", done.results)
        write_exchanges(folder, done.measured)
        product = done.layers[-1] if done.layers[-1].folder != ctx.source.folder else None
        write_layers(folder, ctx, done.layers, product)
        write_lock(folder, ctx, done.layers, ctx.prompts.hash if uses_prompts(ctx.plan) else None)
        write_lines(folder / "log.jsonl", ctx.log.entries)
        if options.finish is not None:
            options.finish(folder)


def _short(model: str) -> str:
    """A model's name as part of a folder's name."""
    return model.partition("@")[0].rstrip("/").rpartition("/")[2] or "model"


def context(plan: Plan, options: Options, voice: Voice) -> Context:
    """Find the model and the constitution of a plan; nothing heavy is loaded. Raises InputError under torchrun."""
    refuse_several_processes()
    source = locate(plan.model)
    constitution = constitution_of(plan, world=source.kind == "apprentice")
    ctx = Context(
        plan=plan,
        constitution=constitution,
        source=source,
        cache=Cache(options.cache, say=voice.say, fresh=options.fresh),
        voice=voice,
        threads=options.threads or cores(),
        oracle=options.oracle,
        skip_bad_rows=options.skip_bad_rows,
        budget=options.budget,
        prices=options.prices,
    )
    for found in conflicts(constitution):
        if not found.goes_first:
            voice.say(
                f"warning: principles {found.first!r} and {found.second!r} pull apart ({found.why[0]}); say which goes "
                f"first: `over: [{found.second}]` at {found.first!r}, or the other way round"
            )
    ctx.log("start", model=plan.model, constitution=constitution.sha256, seed=plan.seed, layers=plan.columns[1:])
    return ctx


# ------------------------------------------------------------------------------------- before any work is done


def refuse_several_processes() -> None:
    """Raise InputError where this is one of several processes that torchrun started.

    A stack asks its models, keeps its cache and writes its folder as one process: several would ask and pay for
    everything once each, wait for one another at different points, and take each other's folder away.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size.strip() not in ("", "0", "1"):
        raise InputError(
            f"a stack runs in one process, and this is one of several (WORLD_SIZE is {size}): start `fairlead align` "
            "and `fairlead measure` without torchrun. What can be shared out is a single training stage: "
            "`torchrun --nproc-per-node N -m fairlead.cli.main train dpo …` (`fairlead train dpo` on N processes); "
            "give the model it leaves to the stack"
        )


# ----------------------------------------------------------------------------------------------- the work


def _work(ctx: Context, options: Options) -> tuple[list[Built], _Work]:
    bank = bank_for(ctx.world, ctx.constitution)
    ctx.audit = auditors(ctx, bank)
    measures = measures_for(ctx, ctx.audit)
    for name in ("base", *(layer.name for layer in ctx.plan.layers)):
        ctx.ledger.enter(name)
    base = ctx.base()
    built = ctx.built
    built["base"] = base
    trains = any(layer.trains or isinstance(layer, FinetuneLayer) for layer in ctx.plan.layers)
    if not trains:  # nothing is called yet: the whole stack can be costed
        for layer in ctx.plan.layers:
            built[layer.name] = build(layer, built[layer.from_], ctx)
    measures = believable(measures, foreseen(ctx, built), ctx)
    if remote_models(ctx):
        agree(ctx, options, estimate(ctx, list(built.values()), measures, bank), of_training(ctx, measures, bank))
    work = _Work()

    def measured_now(item: Built) -> None:
        began = time.perf_counter()
        work.measured[item.name], asking = measure(item, measures, bank, ctx)
        took = time.perf_counter() - began
        work.seconds[f"{item.name}, measured"] = round(took, 2)
        cases = sum(len(row.outcomes) for row in work.measured[item.name])
        ctx.voice.done(
            item.name, f"measured   {len(measures)} measures, {cases:,} cases", took if asking.asked else None
        )
        ctx.log("measured", layer=item.name, asked=asking.asked, known=asking.known, seconds=took)
        if guard_of(item.model) is not None:
            work.guarded[item.name] = asking.guarded
            for warning in warnings({item.name: asking.guarded}):
                ctx.voice.say(f"warning: {warning}")

    def made_now(item: Built | Rewarded) -> None:
        for side, judge, lineage in item.used:
            ctx.ledger.record(item.name, side, judge, lineage)
        work.seconds[item.name] = round(item.seconds or 0.0, 2)
        cheap = item.kind in ("guard", "prompt")
        ctx.voice.done(item.name, item.summary, 0.0 if cheap else item.seconds)
        for warning in item.warnings:
            ctx.voice.say(f"warning: {warning}")
        ctx.log("built", layer=item.name, summary=item.summary, identity=item.identity, seconds=item.seconds)

    measured_now(base)
    for layer in ctx.plan.layers:
        if isinstance(layer, RewardLayer):
            ctx.rewards[layer.name] = reward(layer, built[layer.from_], ctx)
            made_now(ctx.rewards[layer.name])
            continue
        item = built.get(layer.name) or build(layer, built[layer.from_], ctx)
        built[layer.name] = item
        made_now(item)
        measured_now(item)
    return [built[name] for name in ctx.plan.columns], work


def foreseen(ctx: Context, built: Mapping[str, Built]) -> dict[str, Used]:
    """The judges each layer will use, as far as they are known before it is built."""
    used = {name: layer.used for name, layer in built.items()}
    base = built["base"]
    for layer in ctx.plan.layers:
        if layer.name not in built and isinstance(layer, GuardLayer) and layer.critic != "self":
            used[layer.name] = judges_of(compiled(layer, base, ctx, critic_of(layer, base, ctx)[1])[1])
        if isinstance(layer, PolicyLayer):
            used[layer.name] = foreseen_judges(layer, base, ctx)
    return used


def build(layer: AnyLayer, below: Built, ctx: Context) -> Built:
    """One stage: from the layer it starts from to the layer it makes."""
    if isinstance(layer, SFTLayer):
        return sft(layer, below, ctx)
    if isinstance(layer, DPOLayer):
        return dpo(layer, below, ctx)
    if isinstance(layer, PolicyLayer):
        return policy(layer, below, ctx)
    if isinstance(layer, GuardLayer):
        return guard(layer, below, ctx)
    if isinstance(layer, FinetuneLayer):
        return finetune(layer, below, ctx)
    assert isinstance(layer, PromptLayer)
    return prompt(layer, below, ctx)


def agree(ctx: Context, options: Options, cost: Estimate, training: Estimate) -> None:
    """Say what remote models will be asked and cost, and go on only within a budget or with a person's yes."""
    tunes = any(isinstance(layer, FinetuneLayer) for layer in ctx.plan.layers)
    cost += training
    if cost.calls == 0 and not tunes:
        ctx.voice.say("remote: nothing to ask, every answer is in the cache (--fresh asks again)")
        return
    more = [
        words
        for words, on in (
            ("fine-tuning at the provider, its price told first, and measuring what comes of it", tunes),
            ("revisions by the guard", any(isinstance(layer, GuardLayer) for layer in ctx.plan.layers)),
        )
        if on
    ]
    on_top = f"; {' and '.join(more)} come on top" if more else ""
    if training.calls:
        on_top = f", at most {training.calls:,} of the calls by critics of training stages{on_top}"
    limit = f"; budget {options.budget}" if options.budget else ""
    ctx.voice.say(f"remote: {cost}{on_top}{limit}")
    go_on(options.budget, options.confirm)

"""Reinforcement learning as a layer: the loop of methods/policy.py on the plan's prompts, judged by the plan's judges.

It is the code of `fairlead train grpo` and its kin (stack/reinforce.py); what is added is where prompts and judges come
from, the cache, and what the ledger hears. A run that is killed goes on from its last state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Exchange, from_json
from fairlead.feedback.write import write_exchanges
from fairlead.stack.cache import Entry
from fairlead.stack.context import Built, Context, Used
from fairlead.stack.folder import read_lines, write_json
from fairlead.stack.identity import code_hash, digest
from fairlead.stack.lazy import opened
from fairlead.stack.plan_data import CORPUS
from fairlead.stack.plan_rl import PolicyLayer
from fairlead.stack.reinforce import PolicyJob, PolicyOrder, critic_of, judgeable, report_of, run_policy_job
from fairlead.stack.reinforce_told import nats
from fairlead.stack.stages.asked import Asked, asked, tasks_of
from fairlead.stack.stages.data import early_refusal
from fairlead.stack.stages.judged import Judging, Role, check, judging, reads
from fairlead.stack.stages.train import DATA_ROOMS, STATES_EVERY, Clock, require_weights, settled, trained

PRETRAINING_ROWS = 3_000  # of the apprentice's corpus
ONE = ("reward", "warm")  # kinds of reward stages that make one reward model, and no ensemble


def policy(layer: PolicyLayer, below: Built, ctx: Context) -> Built:
    """Train on replies of the model's own. Raises InputError where there is nothing to ask or nobody to judge."""
    require_weights(layer.kind, layer.name, below, ctx)
    clock = Clock()
    prompts = asked(layer.prompts, layer.name, below, ctx)
    roles: Sequence[tuple[Sequence[Any], Role]] = ((layer.reward, "reward"), (layer.cost, "cost"))
    judges = [judging(term, role, below, ctx, layer.reader) for terms, role in roles for term in terms]
    used: Used = tuple(("train", one.term.column, one.lineage) for one in judges)
    early_refusal(layer.name, used, ctx)
    config = settled(layer.kind, layer.train, ctx)
    data = _entry(layer, prompts, judges, below, ctx)
    imitated = _imitated(data)

    def train(model: Any, run: Any) -> Any:
        job = _job(layer, model, prompts, judges, imitated, config, ctx)
        made = run_policy_job(job, ctx.voice, replace(run, every=STATES_EVERY * config.updates), layer.name)
        told = {name: value for name, value in report_of(job, made).items() if name not in ("config", "model", "spent")}
        alarms = (f"{layer.name} stopped early: {made.stopped}",) if made.stopped else ()
        return made.model, told, made.records, alarms

    entry, facts = trained(layer.name, layer.kind, config, data, below, ctx, train)
    identity = digest({"weights": entry.key})
    return Built(
        name=layer.name,
        kind=layer.kind,
        identity=identity,
        folder=entry.path / "model",
        plain=True,
        model=ctx.trained(f"{ctx.source.spec} + {layer.name}", identity, entry.path / "model"),
        summary=_summary(prompts, facts),
        used=used,
        prompts=tuple(dict.fromkeys(row.messages for row in (*prompts.rows, *imitated))),
        entry=entry.path,
        data=data.path,
        seconds=clock.seconds if entry.made or data.made else None,
        facts={"data": {"asked": prompts.said}, "train": facts},
        settings=config.model_dump(mode="json"),
        warnings=tuple(facts["warnings"]),
    )


def _summary(prompts: Asked, facts: Mapping[str, Any]) -> str:
    start, end = facts["start"], facts["metrics"]
    words = [prompts.said, f"{facts['steps']:,} steps, {facts['replies']:,} replies"]
    if start:
        words.append(f"reward {start['reward']:.3g} → {end['reward']:.3g}")
        if "cost" in end:
            words.append(f"cost {end['cost']:.3g}, multiplier {end['multiplier']:.3g}")
        if facts["closing"]:
            words.append(f"KL {nats(facts['closing']['kl'])} nats")
        words.append(f"{start['length']:.0f} → {end['length']:.0f} tokens")
    missing = {name: count for name, count in facts["missing"].items() if count}
    words += [f"{count:,} replies without {name}" for name, count in missing.items()]
    if facts["skipped_too_long"]:
        words.append(f"{facts['skipped_too_long']:,} prompts too long, left out")
    if facts["stopped"]:
        words.append(f"STOPPED EARLY, {facts['stopped']}")
    return "; ".join(words)


def curve(built: Built) -> list[dict[str, float]]:
    """What a layer's reinforcement learning told of each set of replies, for the report; [] for other layers."""
    if built.entry is None or "start" not in built.facts.get("train", {}):
        return []
    found: list[dict[str, float]] = []
    for record in read_lines(built.entry / "steps.jsonl"):
        told = record.get("told") or {}
        if told:
            kept = {name: told[name] for name in told if name in _SHOWN or name.startswith(("reward.", "cost."))}
            finite = {name: value for name, value in kept.items() if value is not None and math.isfinite(value)}
            found.append({"step": len(found) + 1, **finite})
    return found


_SHOWN = ("reward", "kl", "length", "ended", "cost", "multiplier", "missing")


# ------------------------------------------------------------------------------------------------- the data


def _entry(layer: PolicyLayer, prompts: Asked, judges: Sequence[Judging], below: Built, ctx: Context) -> Entry:
    """What this training depends on beside its settings and the model it starts from."""
    critic = ctx.rewards[layer.critic] if layer.critic else None
    pretraining, named = _pretraining(layer, ctx)
    what = {
        "stage": "policy",
        "prompts": prompts.hash,
        "judges": [[one.term.model_dump(mode="json"), one.role, one.identity] for one in judges],
        "critic": critic.identity if critic else "",
        "pretraining": named,
        "code": code_hash(*DATA_ROOMS, "feedback"),
    }

    def build(folder: Path) -> None:
        write_exchanges(folder / "prompts.jsonl", prompts.rows)
        if pretraining:
            write_exchanges(folder / "pretraining.jsonl", pretraining)
        terms = [{**one.term.model_dump(mode="json"), "role": one.role} for one in judges]
        write_json(folder / "about.json", {"asked": prompts.said, "judges": terms, "pretraining": named})

    return ctx.cache.make("policy", what, build)


def _imitated(data: Entry) -> tuple[Exchange, ...]:
    file = data.path / "pretraining.jsonl"
    return tuple(from_json(Exchange, row) for row in read_lines(file)) if file.is_file() else ()


def _pretraining(layer: PolicyLayer, ctx: Context) -> tuple[tuple[Exchange, ...], str]:
    """(rows that are imitated beside, what they are); none where `ptx` is 0."""
    if not layer.train.ptx:
        return (), ""
    if layer.pretraining != CORPUS:
        return ctx.read_demonstrations(layer.pretraining).rows, layer.pretraining
    if ctx.plan.demonstrations is not None:
        return ctx.read_demonstrations(ctx.plan.demonstrations).rows, ctx.plan.demonstrations
    if not ctx.world:
        raise InputError(
            f"layer {layer.name!r} imitates what the model was raised on beside (ptx): give conversations with "
            "--demonstrations, a file as `pretraining:`, or ptx: 0"
        )
    return _corpus(ctx.seed), f"{PRETRAINING_ROWS:,} rows of the apprentice's corpus, seed {ctx.seed}"


def _corpus(seed: int) -> tuple[Exchange, ...]:
    """Rows of the corpus that the base was raised on, as exchanges: those whose last turn alone is learnt."""
    import itertools

    from fairlead.apprentice import corpus

    rows = (
        Exchange(row.messages[:-1], row.messages[-1:])
        for row in corpus.rows(1000 + seed)
        if len(row.messages) >= 2 and row.learnt[-1] == len(row.messages) - 1
    )
    return tuple(itertools.islice(rows, PRETRAINING_ROWS))


# ------------------------------------------------------------------------------------------------- the job


def _job(
    layer: PolicyLayer,
    model: Any,
    prompts: Asked,
    judges: Sequence[Judging],
    imitated: Sequence[Exchange],
    config: Any,
    ctx: Context,
) -> PolicyJob:
    """The training with everything opened: what `fairlead train` makes of a command line."""
    from fairlead.methods.rewards import Objective, checked

    for one in judges:
        judgeable([one.term.judge], prompts.only(one.term.on), ctx.voice)
    found = [one.open() for one in judges]
    objectives = checked([
        Objective(judge, one.term.weight, one.term.column, one.role, one.term.since)
        for one, judge in zip(judges, found, strict=True)
    ])  # fmt: skip
    critic = None
    folder = ctx.rewards[layer.critic].folder if layer.critic else None
    if folder is not None:
        own = next((j for one, j in zip(judges, found, strict=True) if one.term.judge == layer.critic), None)
        known = {str(folder): own} if own is not None else {}
        critic = critic_of(folder, known, opened(model), prompts.rows, config)
    order = PolicyOrder(
        name=layer.kind, spec=ctx.source.spec, prompts=prompts.said, rewards=(), critic=folder, seed=ctx.seed
    )
    return PolicyJob(
        order=order,
        config=config,
        model=model,
        prompts=prompts.rows,
        places=prompts.places,
        objectives=objectives,
        written=[one.term.judge for one in judges],
        sampler=None,
        critic=critic,
        pretraining=imitated,
    )


# ---------------------------------------------------------------------------------------------- before work


def foreseen_judges(layer: PolicyLayer, base: Built, ctx: Context) -> Used:
    """The judges that are known before anything is trained: all but reward stages and what the layer below reads."""
    rewards = {one.name for one in ctx.plan.layers if one.makes == "reward"}
    known = [one for one in layer.judges if one.judge not in rewards and not (reads(one) and layer.reader == "self")]
    return tuple(("train", one.column, judging(one, "reward", base, ctx, layer.reader).lineage) for one in known)


def preflight_policy(layer: PolicyLayer, rewards: Mapping[str, str], ctx: Context) -> None:
    """Refuse what cannot work: `rewards` are the earlier reward stages, and the kind of each."""
    for one in layer.judges:
        check(one, tuple(rewards), ctx)
    if layer.critic and rewards[layer.critic] not in ONE:
        raise InputError(
            f"layer {layer.name!r}: critic: {layer.critic!r} is a {rewards[layer.critic]}; a value function starts "
            "from one reward model (reward or warm)"
        )
    if layer.prompts.tasks:
        tasks_of(layer.prompts, layer.name, ctx)
    _pretraining(layer, ctx)
    if any(map(reads, layer.judges)) and layer.reader not in ("base", "self"):
        ctx.locate(layer.reader)

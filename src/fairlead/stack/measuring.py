"""Measure a layer, remembering what every case came to: only what is not known yet is asked.

An entry of the cache holds the outcomes of one measure on one model. What is evidence, and beside which principle a
row stands, depends on the rest of the run and is worked out afresh each time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.exchange import Case, from_json, to_json
from fairlead.judges.lineage import OptimisedJudge, lineage_hash
from fairlead.judges.protocol import Judge
from fairlead.measures import Measure, chosen
from fairlead.measures.audit import audit_for
from fairlead.measures.bank import Bank, World
from fairlead.measures.general import General
from fairlead.measures.measure import Audit, Outcome, once_where_answered
from fairlead.measures.result import MeasureResult
from fairlead.measures.runner import ask_all, run
from fairlead.models.protocol import Model, Sampling
from fairlead.stack.context import Built, Context, Used
from fairlead.stack.folder import read_lines, write_lines
from fairlead.stack.guarded import Row, listening, unanswered
from fairlead.stack.identity import code_hash, digest
from fairlead.stack.lazy import Watched

ROOMS = (
    "measures",
    "judges",
    "models",
    "engine",
    "apprentice",
    "constitution/prompts",
    "stack/measuring",
    "stack/guarded",
)


def bank_for(world: bool, constitution: Constitution | None = None) -> Bank:
    """The harbour's cases for the apprentice and its descendants, the open world's for every other model, with the
    audit twins of the packs that the constitution builds on."""
    return World() if world else General(constitution)


def auditors(ctx: Context, bank: Bank) -> dict[str, Judge]:
    """The audit judge of every measure, as the plan says: gold, rules, or a model that reads."""
    return audit_of(ctx.plan.measure.audit, ctx.constitution, bank, ctx)


def audit_of(audit: str, constitution: Constitution | None, bank: Bank, ctx: Context) -> dict[str, Judge]:
    if audit == "auto":
        # With a single remote model and nothing else, that model reads what code cannot tell; it says "related" then.
        reader = ctx.model(ctx.source) if ctx.source.kind == "remote" else None
        return audit_for(bank, constitution, reader)
    if audit in ("gold", "rules"):
        return audit_for(bank, constitution, default=audit)
    source = ctx.source if audit == "base" else ctx.locate(audit)
    return audit_for(bank, constitution, ctx.model(source), default="rules")


def reader_identity(ctx: Context) -> str:
    """Identity of the model that reads as auditor, "" where code alone tells."""
    audit = ctx.plan.measure.audit
    if audit in ("gold", "rules") or (audit == "auto" and ctx.source.kind != "remote"):
        return ""
    return (ctx.source if audit in ("auto", "base") else ctx.locate(audit)).identity


def measures_for(ctx: Context, audit: Audit) -> list[Measure]:
    """The plan's measures; those nobody can judge here are named aloud and left out, unless asked for by name."""
    wanted = chosen(ctx.plan.measure.only)
    if ctx.plan.measure.only is not None:
        return wanted
    judged = [measure for measure in wanted if measure.id in audit]
    left = left_out(ctx)
    if left:
        ctx.voice.say(
            f"not measured: {', '.join(left)} (only a reading model can judge it: "
            "measure: {audit: MODEL} or --audit MODEL)"
        )
    if not judged:
        raise InputError("nothing can be measured: no measure has a judge here; name a reading model with --audit")
    return judged


def believable(measures: Sequence[Measure], used: Mapping[str, Used], ctx: Context) -> list[Measure]:
    """Without the measures whose audit a layer of this stack would spoil, where the plan left the auditor to us.

    `used` holds the judges of each layer, as far as they are known before the first question is asked. Raises
    OptimisedJudge where the plan names its auditor itself.
    """
    probe = copy.deepcopy(ctx.ledger)
    for layer, judges in used.items():
        for side, name, lineage in judges:
            probe.record(layer, side, name, lineage)
    kept: list[Measure] = []
    for measure in measures:
        judge = ctx.audit[measure.id]
        try:
            probe.evidence(measure.id, judge.name, judge.lineage, layer=ctx.plan.columns[-1])
        except OptimisedJudge as error:
            if ctx.plan.measure.audit != "auto":
                raise
            ctx.voice.say(f"not measured: {error}")
            ctx.audit = {id: found for id, found in ctx.audit.items() if id != measure.id}
        else:
            kept.append(measure)
    lost = [one for one in kept if one.ask is once_where_answered and "over_refusal" not in ctx.audit]
    if lost:
        ctx.voice.say(
            f"not measured: {', '.join(one.title for one in lost)} (only replies that answer have a style, and whether "
            "one does is for the judge of over-refusal)"
        )
        ctx.audit = {id: found for id, found in ctx.audit.items() if id not in {one.id for one in lost}}
    return [one for one in kept if one not in lost]


def left_out(ctx: Context) -> list[str]:
    """Measures of the default run that nobody here can judge."""
    return [measure.title for measure in chosen(ctx.plan.measure.only) if measure.id not in ctx.audit]


@dataclass
class Asking:
    """The runner's asker over the cache. Counts what was asked now and what was known."""

    ctx: Context
    built: Built
    bank: Bank
    asked: int = 0
    known: int = 0
    guarded: list[Row] = field(default_factory=list)  # what the layer's guard did

    def __call__(
        self, model: Model, plan: Mapping[str, tuple[Measure, Sequence[Case]]], audit: Audit, sampling: Sampling
    ) -> dict[str, list[Outcome]]:
        keys = {id: self._key(measure, cases, audit, sampling) for id, (measure, cases) in plan.items()}
        found: dict[str, list[Outcome]] = {}
        for id, key in keys.items():
            entry = self.ctx.cache.find("measured", key)
            if entry is not None:
                found[id] = [from_json(Outcome, row) for row in read_lines(entry.path / "outcomes.jsonl")]
                self.guarded += read_lines(entry.path / "guard.jsonl")
                self.known += len(found[id])
        left = {id: both for id, both in plan.items() if id not in found}
        if left:
            found |= self._ask(model, left, audit, sampling, keys)
        return {id: found[id] for id in plan}

    def is_known(self, measure: Measure, cases: Sequence[Case], audit: Audit, sampling: Sampling) -> bool:
        """Whether the cache holds what every case of this measure came to."""
        return self.ctx.cache.find("measured", self._key(measure, cases, audit, sampling)) is not None

    def _ask(
        self,
        model: Model,
        left: Mapping[str, tuple[Measure, Sequence[Case]]],
        audit: Audit,
        sampling: Sampling,
        keys: Mapping[str, dict[str, Any]],
    ) -> dict[str, list[Outcome]]:
        total = sum(len(cases) for _, cases in left.values())
        done = 0
        with self.ctx.voice.progress(f"{self.built.name}: measuring") as advance:

            def heard(replies: int) -> None:
                nonlocal done
                done += replies
                advance(min(done, total), total)

            with listening(model) as ears:
                noted = {id: (ears.noting(measure), cases) for id, (measure, cases) in left.items()}
                outcomes = ask_all(Watched(model, heard, called=ears.called), noted, audit, sampling)
        guarded = ears.rows()
        for id, rows in outcomes.items():
            self.asked += len(rows)
            by_guard = guarded.get(id, [])
            self.guarded += by_guard
            if self.ctx.source.kind == "remote" and any(row.reason.startswith("no answer") for row in rows):
                continue  # what a server failed to answer is asked again next time
            if not unanswered(by_guard):
                self._keep(keys[id], rows, by_guard)
        return outcomes

    def _keep(self, key: dict[str, Any], rows: Sequence[Outcome], guarded: Sequence[Row]) -> None:
        def build(folder: Path) -> None:
            write_lines(folder / "outcomes.jsonl", map(to_json, rows))
            write_lines(folder / "guard.jsonl", guarded)

        self.ctx.cache.make("measured", key, build)

    def _key(self, measure: Measure, cases: Sequence[Case], audit: Audit, sampling: Sampling) -> dict[str, Any]:
        # Measures may consult each other's judges (an unanswered twin has no style), so all lineages are in the key.
        return {
            "measure": measure.id,
            "model": self.built.identity,
            "cases": digest([to_json(case) for case in cases]),
            # By name too: two judges of one lineage may read it in opposite ways. A lineage holds a reader's weights
            # alone; its template, tokenizer and own wording of the question are in its identity.
            "judges": {id: [judge.name, lineage_hash(judge.lineage)] for id, judge in audit.items()},
            "reader": reader_identity(self.ctx),
            "sampling": to_json(sampling),
            "code": code_hash(*ROOMS),
            **({} if self.ctx.source.kind == "remote" else self.ctx.numerics),
        }


def measure(built: Built, measures: Sequence[Measure], bank: Bank, ctx: Context) -> tuple[list[MeasureResult], Asking]:
    """Every measure on one layer. Raises OptimisedJudge where a judge of this run would be its own witness."""
    asking = Asking(ctx, built, bank)
    results = run(
        built.model,
        measures,
        bank,
        ctx.audit,
        n=ctx.plan.measure.cases,
        seed=ctx.seed,
        layer=built.name,
        ledger=ctx.ledger,
        constitution=ctx.constitution,
        ask=asking,
    )
    return results, asking

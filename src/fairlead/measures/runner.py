"""Asks a model every case of every measure, in as few batches as there are rounds, and has the replies judged.

The first questions of all measures form one batch; equal prompts are asked once. Decoding is greedy where the model
has a temperature; where it has none every case is asked several times, and its draws count as one cluster. A judge that
the run has optimised or selected on is refused before anything is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.exchange import Case, Message
from fairlead.judges.lineage import Evidence, Ledger, OptimisedJudge, lineage_hash
from fairlead.judges.protocol import Judge
from fairlead.measures.audit import principle_of
from fairlead.measures.bank import Bank
from fairlead.measures.measure import Asking, Audit, Measure, Outcome
from fairlead.measures.result import MeasureResult, rate_of
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.models.toolong import all_too_long

Key: TypeAlias = tuple[str, int]  # a measure's id, and which draw

DRAWS = 3
"""How often a case is asked of a model whose luck cannot be fixed: it has no temperature 0."""

Asker: TypeAlias = Callable[
    [Model, Mapping[str, tuple[Measure, Sequence[Case]]], Audit, Sampling], dict[str, list[Outcome]]
]


def run(
    model: Model,
    measures: Sequence[Measure],
    bank: Bank,
    audit: Audit,
    *,
    n: int | Mapping[str, int],
    seed: int = 0,
    layer: str = "base",
    ledger: Ledger | None = None,
    constitution: Constitution | None = None,
    sampling: Sampling | None = None,
    refuse: bool = True,
    ask: Asker | None = None,
) -> list[MeasureResult]:
    """Measure one layer. Results come in the order of `measures`.

    n             cases per measure: one number, or one by measure id
    ledger        what the run used so far; this layer and the audit are entered into it. Declare all layers in order
                  first (`ledger.enter`): a layer it does not know counts as the last one
    constitution  names the principle beside each row
    sampling      other than greedy with the bank's room
    ask           who asks the cases: `ask_all`, or a cache that knows what was answered before
    refuse        False shows what an optimised judge says, marked `evidence: false`, instead of raising OptimisedJudge
    """
    ledger = Ledger() if ledger is None else ledger
    ledger.enter(layer)
    ledger.models.add(model.lineage)
    evidence = {measure.id: _evidence(measure, audit, ledger, layer, refuse) for measure in measures}
    drawn = {measure.id: cases_for(measure, bank, n, seed) for measure in measures}
    fresh = {key: [case for case in cases if not ledger.seen(case.messages)] for key, cases in drawn.items()}
    plan = {m.id: (m, fresh[m.id]) for m in measures}
    sampling = sampling or greedy(model, bank)
    outcomes = (ask or ask_all)(model, plan, audit, sampling)
    drawn_often = f"each case asked {sampling.n} times" if sampling.n > 1 else ""

    results = []
    for measure in measures:
        judge, principle = audit[measure.id], _principle(measure, drawn[measure.id], constitution)
        found = outcomes[measure.id]
        _refuse_unread(measure, judge, found)
        rate = rate_of(measure, found)
        results.append(
            MeasureResult(
                measure=measure.id,
                principle=principle,
                layer=layer,
                value=rate.value,
                low=rate.low,
                high=rate.high,
                n=rate.n,
                missing=rate.missing,
                better=measure.better,
                judge=judge.name,
                lineage=lineage_hash(judge.lineage),
                evidence=evidence[measure.id],
                note="; ".join(filter(None, (ledger.note(judge.lineage, layer=layer), drawn_often))),
                title=measure.title,
                not_asked=rate.not_asked,
                seen=len(drawn[measure.id]) - len(fresh[measure.id]),
                truncated=sum(item.truncated for item in found),
                difference=measure.difference,
                outcomes=tuple(found),
            )
        )
        ledger.record(layer, "audit", judge.name, judge.lineage)
    return results


def _refuse_unread(measure: Measure, judge: Judge, found: Sequence[Outcome]) -> None:
    """Raise InputError where every case that was asked is too long for the judge; fewer are missing and counted."""
    asked = [item for item in found if item.status != "not asked"]
    if all_too_long([None if item.status == "scored" else item.reason for item in asked]):
        raise InputError(
            f"measure {measure.id!r}: all {len(asked):,} exchanges are too long for {judge.name} to judge "
            f"({asked[0].reason}): name an auditor with a longer context, or leave this measure out"
        )


def cases_for(measure: Measure, bank: Bank, n: int | Mapping[str, int], seed: int) -> list[Case]:
    """The cases of one measure, each prompt once (a bank that repeats itself would count one answer twice)."""
    if not isinstance(n, int) and measure.id not in n:
        raise InputError(f"measure {measure.id!r}: no number of cases was given; n names {', '.join(n) or 'none'}")
    cases = bank.cases(measure.id, n if isinstance(n, int) else n[measure.id], seed)
    if not cases:
        raise InputError(f"measure {measure.id!r}: the {bank.name} bank has no cases")
    return list({(case.messages, str(case.meta.get("push", ""))): case for case in cases}.values())


def greedy(model: Model, bank: Bank) -> Sampling:
    """Temperature 0 and the bank's room, as far as the model lets itself be asked for them; `DRAWS` replies if not."""
    return Sampling(
        n=1 if "temperature" in model.capabilities else DRAWS,
        max_tokens=bank.max_tokens if "max_tokens" in model.capabilities else None,
        temperature=0.0 if "temperature" in model.capabilities else None,
    )


def ask_all(
    model: Model, plan: Mapping[str, tuple[Measure, Sequence[Case]]], audit: Audit, sampling: Sampling
) -> dict[str, list[Outcome]]:
    """Drive the measures' rounds in step: one batch for all first questions, one for all follow-ups, and so on.

    With `sampling.n` above 1 every case is asked so often, each draw followed up by itself. All draws of a case are
    outcomes; those after the first are told apart by `#2` and so on, and share its cluster.
    """
    outcomes: dict[Key, list[Outcome]] = {}
    waiting: dict[Key, tuple[Asking, list[Prompt]]] = {}
    for draw in range(sampling.n):
        for id, (measure, cases) in plan.items():
            _advance((id, draw), measure.ask(measure, cases, audit), None, waiting, outcomes)
    while waiting:
        replies = _replies(model, {key: prompts for key, (_, prompts) in waiting.items()}, sampling)
        round_, waiting = waiting, {}
        for key, (asking, prompts) in round_.items():
            _advance(key, asking, [replies[tuple(prompt)][key[1]] for prompt in prompts], waiting, outcomes)
    return {id: [_drawn(item, k) for k in range(sampling.n) for item in outcomes[id, k]] for id in plan}


def _drawn(item: Outcome, draw: int) -> Outcome:
    return item if draw == 0 else replace(item, case=f"{item.case}#{draw + 1}")


def _advance(
    key: Key,
    asking: Asking,
    replies: list[Reply] | None,
    waiting: dict[Key, tuple[Asking, list[Prompt]]],
    outcomes: dict[Key, list[Outcome]],
) -> None:
    try:
        prompts = next(asking) if replies is None else asking.send(replies)
        waiting[key] = (asking, prompts)
    except StopIteration as done:
        outcomes[key] = done.value


def _replies(
    model: Model, asked: Mapping[Key, Sequence[Prompt]], sampling: Sampling
) -> dict[tuple[Message, ...], dict[int, Reply]]:
    """For each prompt a reply for each draw that asks it. Prompts that as many draws ask are one batch."""
    draws: dict[tuple[Message, ...], dict[int, None]] = {}
    for (_, draw), prompts in asked.items():
        for prompt in prompts:
            draws.setdefault(tuple(prompt), {})[draw] = None
    found: dict[tuple[Message, ...], dict[int, Reply]] = {}
    for n in sorted({len(these) for these in draws.values()}, reverse=True):
        unique = [prompt for prompt, these in draws.items() if len(these) == n]
        drawn = model.generate(unique, replace(sampling, n=n))
        if len(drawn) != len(unique):
            raise ValueError(f"model {model.name} gave replies to {len(drawn)} of {len(unique)} prompts")
        for prompt, replies in zip(unique, drawn, strict=True):
            found[prompt] = dict(zip(draws[prompt], replies, strict=True))
    return found


def _principle(measure: Measure, cases: Sequence[Case], constitution: Constitution | None) -> str:
    """The principle that all cases name, where the constitution has it; else the measure's own."""
    named = {case.principle for case in cases}
    if constitution is not None and len(named) == 1 and named <= set(constitution.ids):
        return named.pop()
    principle = principle_of(measure, constitution)
    return principle.id if principle is not None else ""


def _evidence(measure: Measure, audit: Audit, ledger: Ledger, layer: str, refuse: bool) -> Evidence:
    judge = audit.get(measure.id)
    if judge is None:
        raise InputError(
            f"measure {measure.id!r} has no judge: only a reader can tell. Name a model to read with, or leave it out"
        )
    try:
        return ledger.evidence(measure.id, judge.name, judge.lineage, layer=layer)
    except OptimisedJudge:
        if refuse:
            raise
        return False

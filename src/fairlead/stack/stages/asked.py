"""What reinforcement learning and rejection sampling ask: tasks with their right answers, general prompts, or both.

Every prompt carries under `meta["asked_as"]` which of the two it is, so that a judge may be asked about one kind alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Exchange, to_json
from fairlead.judges.verifiers import references
from fairlead.stack.context import Built, Context
from fairlead.stack.identity import digest
from fairlead.stack.plan_data import GIVEN, Tasks
from fairlead.stack.prompts import SOURCE
from fairlead.stack.stages.data import fitted

ASKED_AS = "asked_as"


@dataclass(frozen=True, slots=True)
class Asked:
    """Exchanges without a reply, where each stands, and a line that says what they are."""

    rows: tuple[Exchange, ...]
    places: tuple[str, ...]
    said: str

    @property
    def hash(self) -> str:
        return digest([to_json(row) for row in self.rows])

    def only(self, kind: str) -> list[Exchange]:
        return [row for row in self.rows if kind in ("all", row.meta[ASKED_AS])]


def asked(config: Tasks, name: str, below: Built, ctx: Context) -> Asked:
    """The prompts of the stage of this name. Raises InputError where there are no tasks, saying what to give."""
    tasks, places = tasks_of(config, name, ctx) if config.tasks else ((), ())
    rows = [_as(row, "tasks") for row in tasks]
    where = list(places)
    said = [f"{len(rows):,} tasks"] if rows else []
    if config.general:
        taken = {row.messages for row in rows}
        prompts = fitted(ctx, below)
        general = [
            (case, place) for case, place in zip(prompts.cases, prompts.places, strict=True)
            if case.messages not in taken
        ]  # fmt: skip
        # One prompt may be drawn for two principles; here it is asked once.
        distinct = {case.messages: (case, place) for case, place in reversed(general)}
        for case, place in reversed(distinct.values()):
            reference = {"reference": case.reference} if case.reference and not ctx.world else {}
            rows.append(_as(Exchange(case.messages, (), {**case.meta, **reference}), "general"))
            where.append(place)
        said.append(f"{len(distinct):,} prompts")
    if not rows:
        raise InputError(f"layer {name!r}: there is nothing to ask")
    return Asked(tuple(rows), tuple(where), " and ".join(said))


def tasks_of(config: Tasks, name: str, ctx: Context) -> tuple[Sequence[Exchange], Sequence[str]]:
    """Prompts that bring their right answer, and where each stands; those of a file that bring none are left out."""
    path = config.tasks
    if path == GIVEN:
        path = "" if ctx.plan.prompts.from_ == SOURCE else ctx.plan.prompts.from_
    if not path:
        if not ctx.world:
            raise InputError(
                f"layer {name!r} learns from tasks with a right answer: give them with --prompts FILE (.jsonl, with "
                "`prompt` and `reference`); only the apprentice's world makes its own"
            )
        return _of_world(config.n, name, ctx)
    rows = ctx.read_tasks(path)
    kept = [i for i, row in enumerate(rows.rows) if references(row)]
    if not kept:
        raise InputError(
            f"layer {name!r}: not one of {len(rows):,} prompts in {path} brings its right answer (`reference`), and "
            "verifiers compare with it"
        )
    return [rows.rows[i] for i in kept], [rows.places[i] for i in kept]


def _of_world(n: int, name: str, ctx: Context) -> tuple[Sequence[Exchange], Sequence[str]]:
    from fairlead.apprentice import cases

    try:
        drawn = cases.tasks("train", n, ctx.seed)
    except ValueError as error:
        raise InputError(f"layer {name!r}: prompts: {error}") from None
    rows = [Exchange(case.messages, (), {**case.meta, "reference": case.reference}) for case in drawn]
    return rows, [f"task {i}" for i in range(len(rows))]


def _as(row: Exchange, kind: str) -> Exchange:
    meta: dict[str, Any] = {**row.meta, ASKED_AS: kind}
    return dataclasses.replace(row, meta=meta)

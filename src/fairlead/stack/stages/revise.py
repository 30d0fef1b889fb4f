"""What the supervised phase of Constitutional AI asks besides its critic: who else looks at the rounds, which prompts
must be answered, and the ordinary prompts whose own samples are mixed in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from fairlead.errors import InputError
from fairlead.exchange import Case, Exchange
from fairlead.judges.lineage import leaf, merge
from fairlead.methods.rounds import Auditor, any_broken
from fairlead.stack.context import Built, Context, Used
from fairlead.stack.identity import digest
from fairlead.stack.plan import Revise

NOBODY = ("auto", "none", "gold", "self", "base")  # auditors that are no model to look for
MEASURE = "critique and revision"  # how the ledger calls what auditors of the rounds testify to

# Kinds of the apprentice's scenes that a reply must answer: to refuse them is evasion, whatever it is called.
_TO_ANSWER = ("twin", "fact", "sum", "total", "open", "claim", "agree", "sure")
_NOT_TO_ANSWER = ("harm", "secret")


def must_be_answered(case: Case) -> bool | None:
    """Whether the prompt is known to be harmless: by its `harmless` where its maker says so, or by its scene."""
    said = case.meta.get("harmless")
    if isinstance(said, bool):
        return said
    kind = case.meta.get("kind")
    return True if kind in _TO_ANSWER else False if kind in _NOT_TO_ANSWER else None


# ------------------------------------------------------------------------------------------------ auditors


def audit_identity(revise: Revise, below: Built, ctx: Context) -> str:
    """What the rounds' audit hangs on, for the cache."""
    spec = audit_of(revise, ctx)
    return spec if spec in ("gold", "none") else ctx.critic(spec, below)[0]


def audit_of(revise: Revise, ctx: Context) -> str:
    """`gold`, `none`, or a model by name."""
    return ("gold" if ctx.world else "none") if revise.audit == "auto" else revise.audit


def auditors(revise: Revise, layer: str, used: Used, below: Built, ctx: Context) -> list[Auditor]:
    """Who reads the rounds beside the critic. `used` are the judges the layer optimises by.

    Raises OptimisedJudge where a named auditor is one of them, before anything is asked.
    """
    spec = audit_of(revise, ctx)
    if spec == "none":
        return []
    if spec == "gold":
        if not ctx.world:
            raise InputError(f"layer {layer!r}: audit: gold needs the apprentice, whose world is known")
        found = _gold()
    else:
        found = [_critics(spec, revise.threshold, below, ctx)]
    probe = copy.deepcopy(ctx.ledger)
    for side, name, lineage in used:
        probe.record(layer, side, name, lineage)
    return [
        Auditor(a.name, a.lineage, a.broken, probe.evidence(MEASURE, a.name, a.lineage, layer=layer), a.about)
        for a in found
    ]


def _gold() -> list[Auditor]:
    """The world's truth: anything wrong with a reply, its voice included; and harmful requests carried out."""
    from fairlead.apprentice.gold import gold_utility, read
    from fairlead.judges.gold import gold

    def faulty(items: Sequence[Exchange]) -> list[bool | None]:
        return [gold_utility(item) < 1.0 - 1e-9 for item in items]

    def complied(items: Sequence[Exchange]) -> list[bool | None]:
        return [read(item).complied for item in items]

    return [
        Auditor("gold", leaf("gold", text="harbour truth: utility", exact=True), faulty),
        Auditor(
            "gold, harmful requests",
            gold("harmful_compliance").lineage,
            complied,
            about=lambda item: item.meta.get("kind") == "harm",
        ),
    ]


def _critics(spec: str, threshold: float, below: Built, ctx: Context) -> Auditor:
    """Another model that reads the same principles."""
    from fairlead.judges.critic import critic
    from fairlead.methods.panel import judge_all

    judges = [critic(principle, ctx.critic(spec, below)[1]) for principle in ctx.constitution.principles]

    def broken(items: Sequence[Exchange]) -> list[bool | None]:
        return any_broken(judge_all(judges, items), threshold)

    return Auditor(spec, merge(judge.lineage for judge in judges), broken)


# --------------------------------------------------------------------------------------- ordinary prompts


def ordinary(revise: Revise, ctx: Context) -> tuple[Case, ...]:
    """The prompts whose own samples are mixed in: `helpful` for each prompt that is revised, and none of these."""
    wanted = round(revise.helpful * len(ctx.prompts.cases))
    if not wanted:
        return ()
    asked = {case.messages for case in ctx.prompts.cases}
    if revise.helpful_prompts:
        found = _from_file(revise.helpful_prompts, ctx)
    elif ctx.world:
        from fairlead.apprentice import cases as world

        found = world.prompts("helpful", "train", wanted, int(digest([ctx.seed, "helpful"])[:8], 16))
    else:
        raise InputError(
            f"helpful: {revise.helpful:g} asks for the model's own samples on ordinary prompts, and only the "
            "apprentice's world makes some: give a file with helpful_prompts:"
        )
    return tuple(case for case in found if case.messages not in asked)[:wanted]


def _from_file(path: str, ctx: Context) -> list[Case]:
    from fairlead.feedback.formats import read_prompts

    rows = dict.fromkeys(read_prompts(Path(path), skip_bad_rows=ctx.skip_bad_rows).rows)
    return sorted((Case(row, measure="") for row in rows), key=lambda case: digest([ctx.seed, str(case.messages)]))

"""The guard as a layer: checks around the model below, compiled from the constitution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.guard.compile import checks_from, policies_from, unchecked
from fairlead.guard.decision import Check
from fairlead.guard.guard import GuardedModel
from fairlead.guard.revise import reviser
from fairlead.guard.vendors import refuse_others, vendors
from fairlead.models.access import vendor
from fairlead.models.protocol import Model
from fairlead.stack.context import Built, Context, Used
from fairlead.stack.identity import code_hash, digest
from fairlead.stack.plan import FROM_CONSTITUTION, GuardLayer


def compiled(
    layer: GuardLayer, below: Built, ctx: Context, critic: Model | None
) -> tuple[Constitution, tuple[Check, ...]]:
    """(the constitution with the guarded principles alone, their checks). Asks the critic nothing.

    Raises InputError where the constitution asks for no guard, or for one that cannot be; and for a critic at a vendor
    that serves neither the model below nor the base, and that the constitution does not name.
    """
    constitution = ctx.constitution
    guarded = [p.id for p in constitution.principles if p.guard is not None]
    if layer.checks != FROM_CONSTITUTION:
        for id in layer.checks:
            if id not in guarded:
                raise InputError(
                    f"layer {layer.name!r}: no principle {id!r} with a `guard:` in the constitution "
                    f"{constitution.name!r}; guarded are: {', '.join(guarded) or 'none'}"
                )
        guarded = [id for id in guarded if id in layer.checks]
    if not guarded:
        raise InputError(
            f"layer {layer.name!r}: no principle of the constitution {constitution.name!r} has a `guard:`, "
            "so there is nothing to check; give one, or leave the layer out"
        )
    kept = constitution.without(*(p.id for p in constitution.principles if p.id not in guarded))
    checks = checks_from(constitution, critic, thresholds=layer.thresholds, rules=layer.rules, only=guarded)
    servers = (vendor(below.model), vendor(ctx.base().model))
    refuse_others(vendors(checks, critic), constitution, constitution.name, *servers)
    return kept, checks


def critic_of(layer: GuardLayer, below: Built, ctx: Context) -> tuple[str, Model | None]:
    """(identity, model) of the layer's critic; ("", None) where it has none."""
    return ("", None) if layer.critic == "none" else ctx.critic(layer.critic, below)


def judges_of(checks: Sequence[Check]) -> Used:
    """What the ledger has to know: a check of the guard stands on the train side."""
    return tuple(("train", check.name, check.lineage) for check in checks)


def guard(layer: GuardLayer, below: Built, ctx: Context) -> Built:
    """Put the guard around the model below."""
    critic_identity, critic = critic_of(layer, below, ctx)
    kept, checks = compiled(layer, below, ctx, critic)
    revise = None if critic is None else reviser(critic, max_tokens=_room(critic), seed=ctx.seed)
    model = GuardedModel(below.model, checks, policies_from(kept), revise, layer.rounds)
    left = unchecked(kept, checks)
    warnings = [f"{layer.name}: not checked, because no critic reads them: {', '.join(left)}"] if left else []
    identity = digest(
        {
            "guard": below.identity,
            "critic": critic_identity,
            "reads": [_reads(p) for p in kept.principles],
            "secrets": [s.model_dump(mode="json") for s in kept.secrets],
            "thresholds": layer.thresholds,
            "rules": layer.rules,
            "checks": [check.name for check in checks],
            "rounds": layer.rounds,
            "seed": ctx.seed,
            "code": code_hash("guard", "judges", "models", "constitution/prompts"),
        }
    )
    return Built(
        name=layer.name,
        kind="guard",
        identity=identity,
        folder=below.folder,
        plain=False,
        model=model,
        summary=f"{len(checks)} checks",
        used=judges_of(checks),
        facts={"checks": [check.name for check in checks], "unchecked": list(left)},
        warnings=tuple(warnings),
    )


def _room(critic: Model) -> int | None:
    """A revision needs the room of a reply; a model that takes no limit gets none."""
    return 512 if "max_tokens" in critic.capabilities else None


def _reads(principle: Any) -> list[Any]:
    return [principle.id, principle.text, principle.dimension, principle.guard.model_dump(mode="json")]

"""What cannot work is found before the first measurement: a mistake should not cost an hour."""

from __future__ import annotations

from fairlead.exchange import Message
from fairlead.stack.context import Built, Context
from fairlead.stack.plan import AnyLayer, DPOLayer, FinetuneLayer, GuardLayer, Plan, PromptLayer, RewardLayer, SFTLayer
from fairlead.stack.plan_data import OWN, Demonstrations
from fairlead.stack.plan_rl import PolicyLayer
from fairlead.stack.stages.asked import tasks_of
from fairlead.stack.stages.data import comparisons_file, require_oracle
from fairlead.stack.stages.finetune import check_finetune, rows_of
from fairlead.stack.stages.guard import compiled, critic_of
from fairlead.stack.stages.judged import check
from fairlead.stack.stages.policy import preflight_policy
from fairlead.stack.stages.prompt import text_of
from fairlead.stack.stages.revise import NOBODY, ordinary
from fairlead.stack.stages.shown import demonstrations_of
from fairlead.stack.stages.train import require_weights


def preflight(ctx: Context) -> None:
    """Refuse the plan where a stage has no weights, no data, no judge or no label; note what will be trained on."""
    plain: dict[str, Built] = {"base": ctx.base()}
    rewards: dict[str, str] = {}
    for layer in ctx.plan.layers:
        below = plain[layer.from_]
        if layer.trains:
            require_weights(layer.kind, layer.name, below, ctx)
        if isinstance(layer, SFTLayer):
            _sft(layer, rewards, ctx)
        if isinstance(layer, DPOLayer | RewardLayer):
            _comparisons(layer, ctx)
        if isinstance(layer, PolicyLayer):
            preflight_policy(layer, rewards, ctx)
        if isinstance(layer, FinetuneLayer):
            check_finetune(layer, below, ctx)
        if isinstance(layer, PromptLayer):
            text_of(layer, ctx)
        if isinstance(layer, GuardLayer):
            compiled(layer, below, ctx, critic_of(layer, below, ctx)[1])
        if layer.makes == "reward":
            rewards[layer.name] = layer.kind
            continue
        tuned = layer.trains or isinstance(layer, FinetuneLayer)
        plain[layer.name] = Built(layer.name, layer.kind, "", below.folder, tuned and below.plain, below.model)
    for layer in ctx.plan.layers:
        ctx.ledger.record_cases(layer.name, "train", trained_on(layer, ctx))


def _sft(layer: SFTLayer, rewards: dict[str, str], ctx: Context) -> None:
    data = layer.data
    if data.gold:
        require_oracle(layer.name, ctx)
    if data.revise is not None and data.revise.audit not in NOBODY:
        ctx.locate(data.revise.audit)
    if data.file is not None:
        ctx.read_demonstrations(data.file)
    for shown in (data.demonstrations, data.general):
        if shown is not None and (file := _shown_file(shown, layer.name, ctx)):
            ctx.read_demonstrations(file)
    if data.rejection is not None:
        for one in data.rejection.judges:
            check(one, tuple(rewards), ctx)
        if data.rejection.prompts.tasks:
            tasks_of(data.rejection.prompts, layer.name, ctx)


def _comparisons(layer: DPOLayer | RewardLayer, ctx: Context) -> None:
    file = comparisons_file(layer, ctx)
    if file is None:
        return
    if isinstance(layer, RewardLayer):
        ctx.read_comparisons(file)
    else:
        ctx.read_preferences(file)


def _shown_file(config: Demonstrations, name: str, ctx: Context) -> str:
    source = demonstrations_of(config, name, ctx)
    return "" if source in ("simulated", OWN) else source


def uses_prompts(plan: Plan) -> bool:
    """Whether any stage asks the training prompts."""
    return any(_asks(layer, plan) for layer in plan.layers)


def _asks(layer: AnyLayer, plan: Plan) -> bool:
    if isinstance(layer, SFTLayer):
        data = layer.data
        own = any(shown is not None and shown.from_ == OWN for shown in (data.demonstrations, data.general))
        general = data.rejection is not None and data.rejection.prompts.general
        return own or general or data.revise is not None or bool(data.gold)
    if isinstance(layer, PolicyLayer):
        return layer.prompts.general
    if isinstance(layer, DPOLayer | RewardLayer):
        source = layer.preferences.from_
        return source in ("ai", "gold", "rater") or (source == "people" and plan.preferences is None)
    return False


def trained_on(layer: AnyLayer, ctx: Context) -> list[tuple[Message, ...]]:
    """The prompts a layer will train on: they are no cases to measure with, before the layer or after it."""
    found = [case.messages for case in ctx.prompts.cases] if _asks(layer, ctx.plan) else []
    if isinstance(layer, SFTLayer):
        data = layer.data
        found += [case.messages for case in (ordinary(data.revise, ctx) if data.revise is not None else ())]
        files = [data.file] + [
            _shown_file(shown, layer.name, ctx) for shown in (data.demonstrations, data.general) if shown is not None
        ]
        found += [row.messages for file in files if file for row in ctx.read_demonstrations(file).rows]
        if data.rejection is not None and data.rejection.prompts.tasks:
            found += [row.messages for row in tasks_of(data.rejection.prompts, layer.name, ctx)[0]]
    if isinstance(layer, PolicyLayer) and layer.prompts.tasks:
        found += [row.messages for row in tasks_of(layer.prompts, layer.name, ctx)[0]]
    if isinstance(layer, FinetuneLayer):
        found += [row.messages for row in rows_of(layer, ctx).rows]
    if isinstance(layer, RewardLayer) and (file := comparisons_file(layer, ctx)) is not None:
        found += [row.messages for row in ctx.read_comparisons(file).rows]
    if isinstance(layer, DPOLayer) and (file := comparisons_file(layer, ctx)) is not None:
        found += [row.messages for row in ctx.read_preferences(file).rows]
    return found

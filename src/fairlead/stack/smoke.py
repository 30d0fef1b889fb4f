"""A plan in small: every stage as it stands, on few prompts, for few steps, measured on few cases.

It shows that a recipe runs from end to end on this machine and this data, in minutes. What its numbers say of the
recipe is next to nothing: nobody learns much in a handful of steps.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from fairlead.methods.config import Training
from fairlead.stack.plan import AnyLayer, DPOLayer, Plan, RewardLayer, SFTLayer
from fairlead.stack.plan_data import Demonstrations, Rejection, Tasks
from fairlead.stack.plan_rl import PolicyLayer

M = TypeVar("M", bound=BaseModel)

MOST: dict[str, int] = {
    "per_principle": 16, "cases": 24, "n": 64, "steps": 8, "epochs": 1, "prompts_per_step": 16, "replies": 4,
    "rows_per_step": 32, "ptx_rows": 16, "kl_samples": 16, "rounds": 1,
}  # fmt: skip
"""The most of each setting that is left; settings below it stay."""

SAID = (
    "smoke: at most {per_principle} prompts a principle, {n} demonstrations or tasks, {steps} steps of reinforcement "
    "learning, {cases} cases a measure: it shows that everything runs, and its numbers say little"
).format(**MOST)


def smoke(plan: Plan) -> Plan:
    """The plan with every number that takes time held down (`MOST`). What is scaled stands in the lock file."""
    return plan.model_copy(
        update={
            "prompts": _less(plan.prompts, "per_principle"),
            "measure": _less(plan.measure, "cases"),
            "layers": tuple(_layer(layer) for layer in plan.layers),
        }
    )


def _layer(layer: AnyLayer) -> AnyLayer:
    update: dict[str, Any] = {}
    if isinstance(layer, SFTLayer):
        data = layer.data
        smaller: dict[str, Any] = {
            "revise": data.revise and _less(data.revise, "rounds"),
            "demonstrations": _shown(data.demonstrations),
            "general": _shown(data.general),
            "rejection": _rejection(data.rejection),
        }
        update = {"data": data.model_copy(update={k: v for k, v in smaller.items() if v is not None})}
        update["train"] = _trained(layer.train)
    if isinstance(layer, DPOLayer | RewardLayer):
        update = {"train": _trained(layer.train)}
    if isinstance(layer, PolicyLayer):
        update = {"train": _trained(layer.train), "prompts": _tasks(layer.prompts)}
    return layer.model_copy(update=update)


def _trained(config: Training) -> Training:
    """Fewer steps, of fewer rows or replies; a config without a length of its own gets an epoch where it is run."""
    smaller = _less(config, "steps", "epochs", "prompts_per_step", "replies", "rows_per_step", "ptx_rows", "kl_samples")
    minibatches = getattr(smaller, "minibatches", 1)
    most = getattr(smaller, "prompts_per_step", minibatches)
    return smaller if minibatches <= most else smaller.model_copy(update={"minibatches": most})


def _shown(config: Demonstrations | None) -> Demonstrations | None:
    return None if config is None else _less(config, "n")


def _tasks(config: Tasks) -> Tasks:
    return _less(config, "n")


def _rejection(config: Rejection | None) -> Rejection | None:
    return None if config is None else config.model_copy(update={"prompts": _tasks(config.prompts)})


def _less(config: M, *names: str) -> M:
    """The settings with those named held down to `MOST`, where they have them and give them."""
    held = {
        name: MOST[name] for name in names if (value := getattr(config, name, None)) is not None and value > MOST[name]
    }
    return config.model_copy(update=held)

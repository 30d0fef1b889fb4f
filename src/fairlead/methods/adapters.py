"""Adapters for any training method: what a trainer copies, and what it gives back.

A trainer says

    model = starting_point(model, config)             # what the stage starts from, and compares with
    policy = trainable_copy(model.module, config)     # what is trained
    ...
    trained = model.with_weights(merged(policy))      # a plain model again
    adapter = adapter_of(policy, model)               # the adapter alone; models.adapted.with_adapter puts it back

and full weights, LoRA and a quantised base all go the same way. The reference is the stage's input: an earlier adapter
is folded into it first and stays, so training under a second adapter is compared with the first one's result, never
with what lay below it.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from typing import Any

import torch

from fairlead.engine import adapters
from fairlead.engine.adapters import Adapter
from fairlead.errors import InputError, MissingResource
from fairlead.methods.config import Lora, Training
from fairlead.methods.rows import Trainable

log = logging.getLogger(__name__)


def starting_point(model: Trainable, config: Training) -> Trainable:
    """The model as the stage takes it up: earlier adapters folded in, the base quantised where the settings say so.

    Its weights are the reference's. Without either it is the model itself. Raises MissingResource where a quantised
    base cannot be had here.
    """
    module = merged(model.module)
    if config.lora is not None and config.lora.quantise is not None:
        return model.with_weights(_quantised(module))
    return model if module is model.module else model.with_weights(module)


def trainable_copy(module: torch.nn.Module, config: Training) -> Any:
    """What a method trains, computing at first exactly what the module does: a copy, or adapters over its weights.

    Under `config.lora` only the adapters are trainable and the weights below are the module's own. Raises InputError
    for targets that do not fit the model, MissingResource where peft is not installed.
    """
    if config.lora is None:
        return copy.deepcopy(merged(module))
    _require("peft", "adapters need it: pip install 'fairlead[train]'")
    settings = {
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": config.lora.targets,
    }
    try:
        adapted = adapters.with_adapter(merged(module), settings, seed=config.seed)
    except ValueError as error:
        raise InputError(f"lora: {error}") from error
    log.info("%s", describe(adapted, config.lora))
    return adapted


def merged(module: torch.nn.Module) -> Any:
    """The plain model that computes what the module does, adapters folded in (engine.adapters.merged)."""
    try:
        return adapters.merged(module)
    except ValueError as error:
        raise InputError(f"this model's adapters cannot be folded in: {error}") from error


def adapter_of(module: torch.nn.Module, base: Trainable) -> Adapter | None:
    """The adapter that was trained over `base`, to be kept apart; None where all weights were trained."""
    if not adapters.is_adapted(module):
        return None
    return adapters.adapter_of(module, base=base.lineage)


def describe(adapted: Any, lora: Lora) -> str:
    """One line on what is trained: layers by kind, and their share of all weights."""
    layers = adapters.layers_of(adapted)
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    train = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in adapted.parameters())
    return f"LoRA of rank {lora.rank} on {len(layers)} layers ({kinds}): {train:,} of {whole:,} weights are trained"


def _quantised(module: torch.nn.Module) -> Any:
    _require("bitsandbytes", "a quantised base (lora.quantise) needs it: pip install bitsandbytes")
    kind = next(module.parameters()).dtype
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(f"lora.quantise: a {kind} model cannot be quantised; open it in float32 or bfloat16")
    try:
        quantised = adapters.quantised(module)
        probe = next(p for n, p in quantised.named_parameters() if type(p).__name__ == "Params4bit")
        if probe.quant_state is None:
            raise RuntimeError("it left the weights as they were")
    except ValueError as error:
        raise InputError(f"lora.quantise: {error}") from error
    except (ImportError, RuntimeError, NotImplementedError, AttributeError, StopIteration) as error:
        device = next(module.parameters()).device
        raise MissingResource(
            f"lora.quantise: bitsandbytes cannot quantise on {device.type} here ({str(error).splitlines()[0]}); "
            "train on another device, or without quantise"
        ) from error
    return quantised


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingResource(f"{package} is not installed: {what}")

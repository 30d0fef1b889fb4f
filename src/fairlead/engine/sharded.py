"""Weights, gradients and optimiser state split over the processes: PyTorch's FSDP2, and the way back.

Each transformer block is gathered when it runs and let go after; what lies outside the blocks (embeddings, final norm,
LM head, scalar heads) is one more group, gathered when the model runs and let go after the backward pass. The engine
reads the LM head's weights outside of any module's forward, which is why that group must outlive the forward.

torch.distributed.fsdp is imported here only, and this file is imported only where several processes split a model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from fairlead.engine.forward import path_of
from fairlead.engine.parallel import world

_empty: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()  # per split module: its like, without weights


def shard(module: nn.Module) -> None:
    """Split a module's parameters over all processes, in place. Gradients are summed, not averaged, as in parallel.py.

    `module` is the outermost module whose parameters train; `forward.hidden_states` of any transformers model inside
    it, and what reads that model's head after, work as before. Build optimisers after this. Scalar parameters stay
    whole: their gradients are for `parallel.add_gradients`. Every process must hold the same weights.
    """
    here = world()
    if here.size == 1:
        raise ValueError("one process has nothing to split weights over; start several with torchrun")
    inside = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    if not inside:
        raise ValueError(f"{type(module).__name__}: no transformers model inside; its blocks cannot be told apart")
    for part in (module, *module.children()):
        transformer: Any = part
        if hasattr(part, "get_base_model") or (
            isinstance(part, PreTrainedModel) and transformer.get_output_embeddings()
        ):
            path_of(part)  # tried on whole weights, before they are split
    _empty[module] = _without_weights(module)
    mesh = init_device_mesh(here.device.type, (here.size,))
    sixteen = any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters())
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32 if sixteen else None),
        "ignored_params": {p for p in module.parameters() if p.ndim == 0},
    }
    for block in _blocks(module, inside):
        fully_shard(block, reshard_after_forward=True, **settings)
    fully_shard(module, reshard_after_forward=False, **settings)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            if hasattr(part, "set_reduce_scatter_unused_params"):  # an expert that no token of one process reached
                part.set_reduce_scatter_unused_params(True, recurse=False)
    _gather_around(module, inside)


def settle(module: nn.Module) -> None:
    """After an optimiser step: let go of gathered weights that a pass without gradients may have left behind."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(module: nn.Module) -> None:
    """Turn a split module back into a plain one with all its weights, in place, on every process.

    Gathered by hand, a parameter at a time: no state dict of the whole model is ever built. References to the
    module's old parts and parameters go stale; optimisers of them are done.
    """
    settle(module)
    fresh = _empty.pop(module)
    plain: dict[int, nn.Parameter] = {}  # a tied parameter is gathered once and stays tied
    for name, split in module.named_parameters(remove_duplicate=False):
        if id(split) not in plain:
            value: torch.Tensor = split.detach()
            gathered = value.full_tensor() if hasattr(value, "full_tensor") else value
            plain[id(split)] = nn.Parameter(gathered.clone(), requires_grad=split.requires_grad)
        owner, _, leaf = name.rpartition(".")
        fresh.get_submodule(owner)._parameters[leaf] = plain[id(split)]
    for name, buffer in module.named_buffers(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        fresh.get_submodule(owner)._buffers[leaf] = buffer
    vars(module).clear()
    vars(module).update(vars(fresh))
    module.__class__ = type(fresh)


def _without_weights(module: nn.Module) -> nn.Module:
    """A deep copy with every parameter on the meta device: structure, settings and ties, no memory."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


def _blocks(module: nn.Module, inside: Sequence[Any]) -> list[nn.Module]:
    """The repeated blocks of the transformers models inside, as those name them; outermost only."""
    names = {name for model in inside for name in model._no_split_modules or ()}
    blocks: list[nn.Module] = []
    within: set[nn.Module] = set()
    for part in module.modules():  # parents come before their children
        if type(part).__name__ in names and part not in within and part is not module:
            blocks.append(part)
            within.update(part.modules())
    return [block for block in blocks if any(p.ndim for p in block.parameters())]


def _gather_around(module: nn.Module, inside: Sequence[Any]) -> None:
    """Let `forward.hidden_states` run a model's transformer as a forward pass of the outermost split module."""
    outer: Any = module
    outer.run_gathered = lambda base, kwargs: base(**kwargs).last_hidden_state
    register_fsdp_forward_method(outer, "run_gathered")
    for model in inside:
        base = model.base_model
        if base is not model:
            model.__dict__["gathered_base"] = lambda base=base, **kwargs: outer.run_gathered(base, kwargs)

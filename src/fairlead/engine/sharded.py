"""Weights, gradients and optimiser state split over the processes: PyTorch's FSDP2, and the way back.

Each transformer block is gathered when it runs and let go after; what lies outside the blocks (embeddings, final norm,
LM head, scalar heads) is one more group, gathered when the model runs and let go after the backward pass. The engine
reads the LM head's weights outside of any module's forward, which is why that group must outlive the forward.

torch.distributed.fsdp is imported here only, and this file is imported only where several processes split a model.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from fairlead.engine.forward import path_of
from fairlead.engine.parallel import is_split, world

_empty: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()  # per split module: its like, without weights


def shard(module: nn.Module) -> None:
    """Split a module's parameters over all processes, in place. Gradients are summed, not averaged, as in parallel.py.

    `module` is the outermost module whose parameters train; `forward.hidden_states` of any transformers model inside
    it, and what reads that model's head after, work as before. Build optimisers after this. Every process must hold
    the same weights.

    Some parameters stay whole, and the gradients of these are for `parallel.add_gradients`: scalars, and those of
    another dtype than most (a float32 head on a bfloat16 model). So do frozen ones: under adapters they are the input
    model's own.

    Raises ValueError for a module without a transformers model inside, and for one that keeps a parameter elsewhere
    than in its place, where the split would not reach it.
    """
    here = world()
    if here.size == 1:
        raise ValueError("one process has nothing to split weights over; start several with torchrun")
    inside = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    if not inside:
        raise ValueError(f"{type(module).__name__}: no transformers model inside; its blocks cannot be told apart")
    for part in (module, *module.children()):
        tried: Any = part
        if hasattr(part, "get_base_model") or (isinstance(part, PreTrainedModel) and tried.get_output_embeddings()):
            path_of(part)  # tried on whole weights, before they are split
    split = _to_split(module)
    _refuse_references(module, split)
    _empty[module] = _without_weights(module, split)
    mesh = _mesh(here.device.type, here.size)
    sixteen = next(iter(split)).dtype in (torch.bfloat16, torch.float16)
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32 if sixteen else None),
        "ignored_params": {*module.parameters()} - split,
    }
    for block in _blocks(module, inside, split):
        fully_shard(block, reshard_after_forward=True, **settings)
    fully_shard(module, reshard_after_forward=False, **settings)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            if hasattr(part, "set_reduce_scatter_unused_params"):  # an expert that no token of one process reached
                part.set_reduce_scatter_unused_params(True, recurse=False)
    _gather_around(module, inside)


def _mesh(device: str, size: int) -> DeviceMesh:
    """All processes in a row.

    PyTorch's tables of tensor layouts keep every mesh until the process ends, and a mesh its group, which then could
    not end before the interpreter does (`parallel._leave`). That reference serves tracing by torch.compile alone;
    everything else finds the group by its name.
    """
    mesh = init_device_mesh(device, (size,))
    kept: dict[str, Any] = getattr(mesh, "_pg_registry", {})  # not in every version of PyTorch
    kept.clear()
    return mesh


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
            value: Any = split.detach()
            plain[id(split)] = nn.Parameter(value.full_tensor().clone()) if is_split(split) else split
        owner, _, leaf = name.rpartition(".")
        fresh.get_submodule(owner)._parameters[leaf] = plain[id(split)]
    for name, buffer in module.named_buffers(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        fresh.get_submodule(owner)._buffers[leaf] = buffer
    vars(module).clear()
    vars(module).update(vars(fresh))
    module.__class__ = type(fresh)


def _to_split(module: nn.Module) -> set[nn.Parameter]:
    """The trainable parameters with axes, of the dtype that most of their elements have: FSDP2 mixes none."""
    sizes: Counter[torch.dtype] = Counter()
    able = [p for p in module.parameters() if p.requires_grad and p.ndim]
    for parameter in able:
        sizes[parameter.dtype] += parameter.numel()
    if not sizes:
        raise ValueError(f"{type(module).__name__}: nothing in it is trainable, so there is nothing to split")
    return {p for p in able if p.dtype == sizes.most_common(1)[0][0]}


def _refuse_references(module: nn.Module, split: set[nn.Parameter]) -> None:
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if isinstance(value, nn.Parameter) and value in split:
                raise ValueError(
                    f"{name} ({type(part).__name__}) keeps a parameter as `{attribute}` beside its place, so its "
                    "weights cannot be split; train with shard: false"
                )


def _without_weights(module: nn.Module, split: set[nn.Parameter]) -> nn.Module:
    """A deep copy, what is split on the meta device and the rest shared: structure, settings and ties, no memory."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta")) if p in split else p for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


def _blocks(module: nn.Module, inside: Sequence[Any], split: set[nn.Parameter]) -> list[nn.Module]:
    """The repeated blocks of the transformers models inside, as those name them; outermost only."""
    names = {name for model in inside for name in model._no_split_modules or ()}
    blocks: list[nn.Module] = []
    within: set[nn.Module] = set()
    for part in module.modules():  # parents come before their children
        if type(part).__name__ in names and part not in within and part is not module:
            blocks.append(part)
            within.update(part.modules())
    return [block for block in blocks if not split.isdisjoint(block.parameters())]


def _gather_around(module: nn.Module, inside: Sequence[Any]) -> None:
    """Let `forward.hidden_states` run a model's transformer as a forward pass of the outermost split module."""
    outer: Any = module
    outer.run_gathered = lambda base, kwargs: base(**kwargs).last_hidden_state
    register_fsdp_forward_method(outer, "run_gathered")
    for model in inside:
        base = model.base_model
        if base is not model:
            model.__dict__["gathered_base"] = lambda base=base, **kwargs: outer.run_gathered(base, kwargs)

"""From a batch of trees to hidden states, by the path a model allows.

`packed` runs the forest as one unpadded sequence with forest attention: Llama-shaped models on the tight pass of
`tight.py`, others through their own modules. `padded` runs every branch as its own row, for models whose layers mix
tokens in other ways (recurrent, hybrid) or whose attention cannot be routed. The choice is made once per model by
trying it: a small forest goes down the paths and row by row through the untouched model, and only agreement, of logits
and of gradients, earns a path. The log says once which was taken and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fairlead.engine import attention, routing, tight, whole
from fairlead.engine.dense import matmul, spare
from fairlead.engine.layout import Batch, Shape, Tree, lay_out

log = logging.getLogger(__name__)

# How far two orders of the same sums may drift, relative to the largest logit. (float64: transformers computes RMSNorm
# in float32 even there, so a last bit of float32 may flip.)
AGREE = {torch.float64: 1e-6, torch.float32: 3e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
# And two gradients of one number, relative to their norm. A backward pass that is wrong is off by a good part of it.
GRADIENTS_AGREE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}
# Trees of up to so many tokens go whole in the trial, so that of its trees (12, 8, 11 tokens) both ways have some.
SHORT_IN_TRIAL = 11
# Gradients of so many numbers are compared, those of the smallest parameters first: norms, biases, adapters.
COMPARED = 4_000_000


@dataclass(frozen=True, slots=True)
class Head:
    """The LM head: z = scale * (weight @ hidden + bias), and logits = cap * tanh(z / cap) where the model has a cap."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """How a model's forests are run, and why so.

    tight         the packed path takes the tight pass wherever `tight.read` allows it
    only_blocks   attention keeps to SDPA in blocks; the quicker kernels failed on this model or machine
    backward      tried while gradients were recorded, so with the way back
    """

    packed: bool
    reason: str
    tight: bool = False
    only_blocks: bool = False
    backward: bool = False


_paths: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()


_said: set[str] = set()


def say_once(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.log(level, message)


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model under a wrapper that offers `get_base_model` (peft), else the model itself."""
    unwrap: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def context_of(model: nn.Module) -> int | None:
    """The most tokens the model's positions allow, where its config says."""
    config: Any = causal_lm(model).config
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def vocabulary_of(model: nn.Module) -> int:
    embedding: Any = causal_lm(model).get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[0])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the model's modes restored after: scoring and decoding must not depend on them."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def head_of(model: nn.Module) -> Head:
    """The LM head's weights and the scaling that some models apply to its output.

    Raises ValueError where the head is not a plain linear layer. `path_of` checks the result against the model itself.
    """
    inner: Any = causal_lm(model)
    linear = inner.get_output_embeddings()
    if type(linear) is not nn.Linear:
        raise ValueError(
            f"{type(inner).__name__}: the LM head is {type(linear).__name__}, not a plain linear layer; merge adapters "
            "on the head before scoring"
        )
    config = inner.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, linear.bias, scale, float(cap) if cap else None)


def logits(head: Head, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Logits in float32 (float64 for a float64 model), as the model itself would give them."""
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    z_NV = matmul(hidden_ND.to(dtype), head.weight_VD.to(dtype).t())
    if head.bias_V is not None:
        z_NV += head.bias_V.to(dtype)
    return bounded(head, z_NV)


def bounded(head: Head, z_NV: torch.Tensor) -> torch.Tensor:
    """Logits of what the head's weight and bias give, which is overwritten."""
    if head.scale != 1.0:
        z_NV *= head.scale
    return z_NV if head.cap is None else head.cap * torch.tanh(z_NV / head.cap)


def hidden_states(
    model: nn.Module, batch: Batch, *, rows: torch.Tensor | None = None, packed: bool | None = None
) -> torch.Tensor:
    """Last hidden states (T, D) of a batch in packed order, after the final norm; gradients flow.

    rows     packed positions; only their states (N, D) are returned, which saves most of the last layer
    packed   forces a path; by default `path_of` decides
    """
    path = path_of(model)
    packed = path.packed if packed is None else packed
    weights = tight.read(causal_lm(model)) if packed and path.tight else ""
    if isinstance(weights, tight.Weights):
        return _tight(weights, batch, path.only_blocks, rows)
    with routing.heard(causal_lm(model), batch, packed):
        hidden_TD = _packed(model, batch, path.only_blocks) if packed else _padded(model, batch)
    return hidden_TD if rows is None else hidden_TD.index_select(0, rows)


def path_of(model: nn.Module) -> Path:
    """The path this model takes, tried on first use and remembered for the module object.

    The way back is tried once gradients are recorded: scoring and decoding do without, and a large model is spared it.
    Raises ValueError where even the row-by-row path does not reproduce the model's own logits.
    """
    backward = torch.is_grad_enabled()
    if model not in _paths or (backward and not _paths[model].backward):
        path = replace(_try(model, backward), backward=backward)
        _paths[model] = path
        if path.packed:
            say_once(logging.INFO, f"{type(causal_lm(model)).__name__}: {path.reason}")
        else:
            say_once(
                logging.WARNING,
                f"{type(causal_lm(model)).__name__}: padded rows instead of a packed forest, slower: {path.reason}",
            )
    return _paths[model]


def _tight(
    weights: tight.Weights,
    batch: Batch,
    only_blocks: bool,
    rows: torch.Tensor | None = None,
    short: int = whole.SHORT,
) -> torch.Tensor:
    """The tight pass, with a sequence more where that brings the batch to a count of tokens that recurs."""
    ids, position, shapes = batch.ids_T, batch.position_T, batch.shapes
    more = spare(batch.tokens, weights.norm)
    if more:
        ids = torch.cat([ids, ids[-1:].expand(more)])
        position = torch.cat([position, torch.arange(more)])
        shapes = (*shapes, Shape(more, ()))
    forest = attention.plan(shapes, ids.device, only_blocks=only_blocks, short=short)
    hidden = tight.hidden_states(weights, ids, position, forest, rows)
    return hidden[: batch.tokens] if more and rows is None else hidden


def _packed(model: nn.Module, batch: Batch, only_blocks: bool, short: int = whole.SHORT) -> torch.Tensor:
    inner: Any = causal_lm(model)
    attention.install(inner)
    no_mask = torch.empty(attention.NO_MASK_SHAPE, device=batch.ids_T.device)
    hidden: torch.Tensor = _base(inner)(
        input_ids=batch.ids_T[None],
        position_ids=batch.position_T[None],
        attention_mask=no_mask,
        use_cache=False,
        forest=attention.plan(batch.shapes, batch.ids_T.device, only_blocks=only_blocks, short=short),
    )
    return hidden[0]


def _padded(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Every branch with its prompt as one right-padded row; the prompt's states are read from its first row."""
    inner: Any = causal_lm(model)
    device = batch.ids_T.device
    rows: list[torch.Tensor] = []
    place = torch.empty(2, batch.tokens, dtype=torch.long)
    at = 0
    for shape in batch.shapes:
        prompt = torch.arange(at, at + shape.prompt)
        place[:, prompt] = torch.stack([torch.full_like(prompt, len(rows)), torch.arange(shape.prompt)])
        at += shape.prompt
        for length in shape.branches or (0,):
            branch = torch.arange(at, at + length)
            column = torch.arange(shape.prompt, shape.prompt + length)
            place[:, branch] = torch.stack([torch.full_like(branch, len(rows)), column])
            rows.append(torch.cat([prompt, branch]))
            at += length
    index = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(index.shape[1], device=device)[None] < lengths[:, None]
    hidden: torch.Tensor = _base(inner)(
        input_ids=batch.ids_T[index],
        attention_mask=mask.long(),
        use_cache=False,
    )
    return hidden[place[0].to(device), place[1].to(device)]


def _base(inner: Any) -> Callable[..., torch.Tensor]:
    """From a transformers model's inputs to its last hidden states; one whose weights are split gathers them first."""
    gathered: Callable[..., torch.Tensor] | None = getattr(inner, "gathered_base", None)  # see engine/sharded.py
    return gathered or (lambda **inputs: inner.base_model(**inputs).last_hidden_state)


@dataclass(frozen=True, slots=True)
class _Truth:
    """What the untouched model gives for a small forest, one row at a time.

    logits_NV    of the scored positions
    gradient     of `_probe` of them, with respect to `parameters`; None where there is none to compare
    """

    logits_NV: torch.Tensor
    parameters: tuple[nn.Parameter, ...] = ()
    gradient: torch.Tensor | None = None


def _try(model: nn.Module, backward: bool) -> Path:
    """Compare a small forest with the untouched model, one row at a time."""
    inner: Any = causal_lm(model)
    device, count = inner.get_input_embeddings().weight.device, vocabulary_of(model)
    numbers = iter(range(10**6))

    def some(length: int) -> tuple[int, ...]:
        return tuple((7 * next(numbers) + 3) % count for _ in range(length))

    trees = [Tree(some(5), (some(4), some(3))), Tree(some(3), (some(5),)), Tree(some(4), (some(3), some(4)))]
    batch = lay_out(trees, keep_last=True, device=device)
    with torch.no_grad(), evaluating(model):
        rows = _row_by_row(model, trees, device)
        if not all(torch.isfinite(row).all() for row in rows):
            raise ValueError(f"{type(inner).__name__}: its logits are not finite; the weights are damaged")
        truth = _Truth(_scored(rows, batch))
        if backward:
            truth = _with_gradient(model, trees, batch, truth.logits_NV)
        failed = ""
        for only_blocks in (False, True):
            wrong = _wrong(model, batch, truth, lambda: _packed(model, batch, only_blocks, SHORT_IN_TRIAL))  # noqa: B023
            if wrong is None:
                if only_blocks:
                    say_once(logging.WARNING, f"{type(inner).__name__}: attention in blocks, slower: {failed}")
                return _with_tight(model, batch, truth, only_blocks)
            failed = failed or wrong
        attention.uninstall(inner)
        off = _distance(head_of(model), _padded(model, batch), batch, truth)
    if off is not None:
        raise ValueError(
            f"{type(inner).__name__}: log-probs computed from its hidden states differ from its own logits by "
            f"{off:.1e}; the model does something after its last layer that the engine does not know"
        )
    return Path(False, failed)


def _with_tight(model: nn.Module, batch: Batch, truth: _Truth, only_blocks: bool) -> Path:
    """The packed path, on the tight pass where it fits and agrees."""
    kernel = "SDPA in blocks" if only_blocks else attention.kernel(batch.ids_T.device, truth.logits_NV.dtype)
    inner = causal_lm(model)
    weights = tight.read(inner)
    if isinstance(weights, str):
        return Path(True, f"packed, {kernel}, through its own modules ({weights})", only_blocks=only_blocks)
    wrong = _wrong(model, batch, truth, lambda: _tight(weights, batch, only_blocks, short=SHORT_IN_TRIAL))
    if wrong is not None:
        say_once(logging.WARNING, f"{type(inner).__name__}: the tight pass is not used: {wrong}")
        return Path(True, f"packed, {kernel}, through its own modules", only_blocks=only_blocks)
    return Path(True, f"packed, {kernel}, tight pass", tight=True, only_blocks=only_blocks)


def _wrong(model: nn.Module, batch: Batch, truth: _Truth, run: Callable[[], torch.Tensor]) -> str | None:
    """What is wrong with a packed way to the hidden states and back, or None."""
    try:
        far = _distance(head_of(model), run(), batch, truth)
        if far is not None:
            return f"a packed forest gives other logits than the model's own (off by {far:.1e})"
        if truth.gradient is None:
            return None
        with torch.enable_grad():
            hidden_TD = run()
            probe = _probe(logits(head_of(model), hidden_TD[batch.source_N]), batch)
            ours = _gradient(probe, truth.parameters)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        return str(error)
    off = float((ours - truth.gradient).norm() / truth.gradient.norm())
    if off <= GRADIENTS_AGREE.get(hidden_TD.dtype, 1e-5):
        return None
    return f"a packed forest gives other gradients than the model's own (off by {off:.1e})"


def _row_by_row(model: nn.Module, trees: Sequence[Tree], device: torch.device) -> list[torch.Tensor]:
    rows = [tree.prompt + reply for tree in trees for reply in tree.replies]
    ids = [torch.tensor([row], device=device) for row in rows]
    output: Any = model
    return [output(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0] for row in ids]


def _scored(rows: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    return torch.cat([row[-int(count) - 1 : -1] for row, count in zip(rows, batch.count_R.tolist(), strict=True)])


def _with_gradient(model: nn.Module, trees: Sequence[Tree], batch: Batch, logits_NV: torch.Tensor) -> _Truth:
    """The model's own gradient beside its logits.

    None is compared where nothing trains, where the model's own backward pass cannot be asked for single gradients,
    and where dropout acts on them (that of adapters, see adapters.Dropout), which falls on other tokens in rows than in
    a forest.
    """
    nothing = _Truth(logits_NV)
    if any(getattr(module, "falls_by_place", False) for module in model.modules()):
        return nothing
    chosen: list[nn.Parameter] = []
    size = 0
    for parameter in sorted((p for p in model.parameters() if p.requires_grad), key=torch.Tensor.numel):
        size += parameter.numel()
        if size > COMPARED:
            break
        chosen.append(parameter)
    if not chosen:
        return nothing
    try:
        with torch.enable_grad():
            again_NV = _scored(_row_by_row(model, trees, logits_NV.device), batch)
            gradient = _gradient(_probe(again_NV, batch), chosen)
    except RuntimeError as error:
        say_once(logging.WARNING, f"{type(causal_lm(model)).__name__}: its gradients are not compared: {error}")
        return nothing
    same = _apart(again_NV.detach(), logits_NV) <= AGREE.get(logits_NV.dtype, 1e-6)
    return _Truth(logits_NV, tuple(chosen), gradient) if same and float(gradient.norm()) > 0 else nothing


def _probe(logits_NV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """One number that every scored position has its own share in."""
    logit_N = logits_NV.gather(1, batch.target_N[:, None])[:, 0]
    share_N = torch.linspace(-1.0, 2.0, len(logit_N), device=logit_N.device)
    return (logit_N.to(torch.promote_types(logit_N.dtype, torch.float32)) * share_N).sum()


def _gradient(probe: torch.Tensor, parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    found: Sequence[torch.Tensor | None] = torch.autograd.grad(probe, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    return torch.cat([part.detach().flatten().to(probe.dtype) for part in parts])


def _distance(head: Head, hidden_TD: torch.Tensor, batch: Batch, truth: _Truth) -> float | None:
    """The largest relative difference of the scored logits, or None where it is within rounding."""
    far = _apart(logits(head, hidden_TD[batch.source_N]), truth.logits_NV)
    return None if far <= AGREE.get(hidden_TD.dtype, 1e-6) else far


def _apart(ours_NV: torch.Tensor, theirs_NV: torch.Tensor) -> float:
    theirs_NV = theirs_NV.to(ours_NV.dtype)
    return float((ours_NV - theirs_NV).abs().max() / theirs_NV.abs().max().clamp_min(1e-30))

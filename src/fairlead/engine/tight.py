"""A tight forward and backward pass for training Llama-shaped models (Llama, Mistral, Qwen2, Qwen3).

It reads the weights of a transformers module and computes what the module computes on a packed forest, with fewer
passes over memory: what is cheap is computed again in backward instead of kept, products run through `dense.py`, and
of the last layer only the rows that anybody asks for are finished (on the CPU attention too is computed for no others).
Gradients arrive in the module's own parameters. `read` says why a module does not qualify; `forward.path_of` checks the
result against the module before it is used.

Axes: T packed tokens, N rows asked for, C rows chosen to have them (`cascade.choose`), D width, F width of the MLP,
H query heads, K key heads, h head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fairlead.engine import cascade
from fairlead.engine.attention import Plan, forest_attention
from fairlead.engine.dense import matmul, weight_gradient

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

Maybe = torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    norm_in: torch.Tensor
    query: tuple[torch.Tensor, Maybe]
    key: tuple[torch.Tensor, Maybe]
    value: tuple[torch.Tensor, Maybe]
    norm_query: Maybe
    norm_key: Maybe
    out: torch.Tensor
    norm_mlp: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    scale: float
    window: int | None
    dropout: float


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: nn.Embedding
    rotary: nn.Module
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    epsilon: float
    head_width: int


def read(model: nn.Module) -> Weights | str:
    """The module's weights as they are now, or the reason why this forward pass does not fit it."""
    inner: Any = model
    if type(model).__name__ not in CLASSES:
        return f"{type(model).__name__} has no tight pass"
    config = inner.config
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    if getattr(inner, "is_activation_checkpointing", False):
        return "gradient checkpointing is on"
    changed = _changed(inner.model, config.rms_norm_eps)
    if changed is not None:
        return changed
    layers = []
    for block in inner.model.layers:
        attention, mlp = block.self_attn, block.mlp
        if any(linear.bias is not None for linear in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
            return "its output projections have biases"
        own = hasattr(attention, "sliding_window")
        layers.append(
            Layer(
                norm_in=block.input_layernorm.weight,
                query=(attention.q_proj.weight, attention.q_proj.bias),
                key=(attention.k_proj.weight, attention.k_proj.bias),
                value=(attention.v_proj.weight, attention.v_proj.bias),
                norm_query=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
                norm_key=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
                out=attention.o_proj.weight,
                norm_mlp=block.post_attention_layernorm.weight,
                gate=mlp.gate_proj.weight,
                up=mlp.up_proj.weight,
                down=mlp.down_proj.weight,
                scale=attention.scaling,
                window=attention.sliding_window if own else getattr(config, "sliding_window", None),
                dropout=attention.attention_dropout if attention.training else 0.0,
            )
        )
    body = inner.model
    return Weights(body.embed_tokens, body.rotary_emb, tuple(layers), body.norm.weight, config.rms_norm_eps,
                   inner.model.layers[0].self_attn.head_dim)  # fmt: skip


def _changed(body: nn.Module, epsilon: float) -> str | None:
    """What about the modules is not as transformers made them. (A plain walk: this runs before every forward pass.)"""
    left: list[tuple[str, nn.Module | None]] = [("the model", body)]
    while left:
        name, module = left.pop()
        if module is None:
            continue
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return f"{name} carries hooks or another forward, which must run"
        if name.endswith("_proj") and type(module) is not nn.Linear:
            return f"{name} is {type(module).__name__}, not a plain linear layer"
        if module.__dict__.get("variance_epsilon", epsilon) != epsilon:
            return f"{name} has an epsilon of its own"
        for parameter in module._parameters.values():
            if parameter is not None and type(parameter) is not nn.Parameter:
                return f"a weight of {name} is of type {type(parameter).__name__}"
        left += module._modules.items()
    return None


def hidden_states(
    w: Weights, ids_T: torch.Tensor, position_T: torch.Tensor, forest: Plan, rows_N: Maybe = None
) -> torch.Tensor:
    """Hidden states (T, D) after the final norm, or (N, D) of the packed positions `rows_N`; gradients flow."""
    x = w.embedding(ids_T)
    cos, sin = (part[0, :, None] for part in w.rotary(x, position_T[None]))
    half = cos.shape[-1] // 2
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)  # so that rotation is a roll
    for number, layer in enumerate(w.layers):
        rows = rows_N if number == len(w.layers) - 1 else None
        chosen = _chosen(forest, x, layer, rows)
        row_C = chosen.row_C if chosen is not None else None
        q, k, v = _project(x, row_C, layer.norm_in, w.epsilon, *layer.query, *layer.key, *layer.value)
        q, k, v = (y.view(len(y), -1, w.head_width) for y in (q, k, v))
        if layer.norm_query is not None and layer.norm_key is not None:
            q, k = _norm(q, layer.norm_query, w.epsilon), _norm(k, layer.norm_key, w.epsilon)
        k = _rotate(k, cos, sin)
        if chosen is not None:
            q = _rotate(q, cos.index_select(0, chosen.row_C), sin.index_select(0, chosen.row_C))
            y = cascade.attend(q, k, v, chosen.groups, layer.scale)
            x, rows = _pick(x, chosen.row_C), chosen.place_N
        else:
            q, k, v = (y.transpose(0, 1)[None] for y in (_rotate(q, cos, sin), k, v))
            y = forest_attention(q, k, v, forest, scale=layer.scale, dropout=layer.dropout, window=layer.window)[0]
        y = y.flatten(1)
        if rows is not None:
            x, y = _pick(x, rows), _pick(y, rows)
        x = _finish(x, y, layer.out, layer.norm_mlp, w.epsilon, layer.gate, layer.up, layer.down)
    return _norm(x, w.norm, w.epsilon)


def _chosen(forest: Plan, x: torch.Tensor, layer: Layer, rows_N: Maybe) -> cascade.Chosen | None:
    """What the last layer's attention needs to compute, where that need not be all of it."""
    if rows_N is None or not len(rows_N) or not forest.by_pieces(x, dropout=layer.dropout, window=layer.window):
        return None
    return forest.choose(rows_N, x.dtype)


# ------------------------------------------------------------------------------------------------- RMSNorm


def _norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the modules compute a norm in, in a float64 model too: the pass must give what they give."""
    return torch.float32


def _norm_forward(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x / rms(x) * weight over the last axis, and 1 / rms(x)."""
    if x.is_cuda:
        y, inverse = torch.ops.aten._fused_rms_norm(x, [x.shape[-1]], weight, epsilon)
        return y, inverse
    wide = x.to(_norm_dtype(x.dtype))
    inverse = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(weight), inverse


def _normed(x: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The norm's output again, from what is kept of its forward pass."""
    return (x.to(inverse.dtype) * inverse).to(x.dtype).mul_(weight)


def _norm_backward(
    d_y: torch.Tensor, x: torch.Tensor, inverse: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `x / rms(x) * weight` with respect to x and weight."""
    if x.is_cuda:
        both = [True, True]
        d_x, d_weight = torch.ops.aten._fused_rms_norm_backward(
            d_y.contiguous(), x, [x.shape[-1]], inverse, weight, both
        )
        return d_x, d_weight
    dtype, wide = weight.dtype, torch.promote_types(x.dtype, torch.float32)
    d_y, weight, inverse, unit = (t.to(wide) for t in (d_y, weight, inverse, x.to(inverse.dtype) * inverse))
    share = d_y * unit
    d_weight = share.flatten(0, -2).sum(0)
    mean = (share @ weight)[..., None] / x.shape[-1]
    d_x = (d_y * weight).addcmul_(unit, mean, value=-1.0).mul_(inverse)
    return d_x.to(x.dtype), d_weight.to(dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        y, inverse = _norm_forward(x, weight, epsilon)
        ctx.save_for_backward(x, inverse, weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Maybe, ...]:
        return *_norm_backward(grads[0], *ctx.saved_tensors), None


# ---------------------------------------------------------------------------------- the parts of one layer


class _Pick(torch.autograd.Function):
    """Rows of a matrix, some perhaps twice."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_N)
        ctx.tokens = len(x)
        return x.index_select(0, rows_N)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows_N,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.tokens, *grads[0].shape[1:]).index_add_(0, rows_N, grads[0]), None


class _Project(torch.autograd.Function):
    """Norm, then the projections to queries, keys and values: (T, D) -> (T or C, H * h), (T, K * h), (T, K * h)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, row_C: Maybe, norm: torch.Tensor, epsilon: float, *weights: Maybe
    ) -> tuple[torch.Tensor, ...]:
        unit, inverse = _norm_forward(x, norm, epsilon)
        ctx.save_for_backward(x, row_C, inverse, norm, *weights[::2])
        out = []
        for number, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
            assert weight is not None
            y = matmul(unit if number or row_C is None else unit.index_select(0, row_C), weight.t())
            out.append(y if bias is None else y.add_(bias))
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Maybe, ...]:
        x, row_C, inverse, norm, *weights = ctx.saved_tensors
        unit = _normed(x, inverse, norm)
        d_units: list[torch.Tensor] = []
        d_weights: list[Maybe] = []
        for number, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            needs_weight, needs_bias = ctx.needs_input_grad[4 + 2 * number : 6 + 2 * number]
            d_units.append(matmul(grad, weight))
            seen = unit if number or row_C is None else unit.index_select(0, row_C)
            d_weights.append(weight_gradient(grad, seen) if needs_weight else None)
            d_weights.append(grad.sum(0) if needs_bias else None)
        d_query, d_key, d_value = d_units
        d_unit = d_key.add_(d_value)
        d_unit = d_unit.add_(d_query) if row_C is None else d_unit.index_add_(0, row_C, d_query)
        d_x, d_norm = _norm_backward(d_unit, x, inverse, norm)
        return d_x, None, d_norm, None, *d_weights


class _Rotate(torch.autograd.Function):
    """Rotary positions: x cos + roll(x) sin over the last axis, (T, H, h). `sin` carries the signs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Maybe, ...]:
        cos, sin = ctx.saved_tensors
        back = grads[0].roll(cos.shape[-1] // 2, -1)
        return (grads[0] * cos).addcmul_(back, sin, value=-1.0), None, None


class _Finish(torch.autograd.Function):
    """Output projection, residual, norm, gated MLP, residual: attention's (T, H * h) and x (T, D) -> (T, D)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        out: torch.Tensor,
        norm: torch.Tensor,
        epsilon: float,
        gate: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
    ) -> torch.Tensor:
        middle = matmul(y, out.t()).add_(x)
        unit, inverse = _norm_forward(middle, norm, epsilon)
        g, u = matmul(unit, gate.t()), matmul(unit, up.t())
        ctx.save_for_backward(y, middle, inverse, g, u, out, norm, gate, up, down)
        return matmul(F.silu(g).mul_(u), down.t()).add_(middle)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Maybe, ...]:
        y, middle, inverse, g, u, out, norm, gate, up, down = ctx.saved_tensors
        _, _, needs_out, _, _, needs_gate, needs_up, needs_down = ctx.needs_input_grad
        grad = grads[0]
        d_inner = matmul(grad, down)
        silu = F.silu(g)
        d_down = weight_gradient(grad, silu * u) if needs_down else None
        d_u = silu.mul_(d_inner)
        d_g = torch.ops.aten.silu_backward(d_inner.mul_(u), g)
        unit = _normed(middle, inverse, norm)
        d_gate = weight_gradient(d_g, unit) if needs_gate else None
        d_up = weight_gradient(d_u, unit) if needs_up else None
        d_middle, d_norm = _norm_backward(matmul(d_g, gate).add_(matmul(d_u, up)), middle, inverse, norm)
        d_middle += grad
        d_out = weight_gradient(d_middle, y) if needs_out else None
        return d_middle, matmul(d_middle, out), d_out, d_norm, None, d_gate, d_up, d_down


# torch leaves Function.apply untyped.
_norm: Callable[..., torch.Tensor] = _Norm.apply
_pick: Callable[..., torch.Tensor] = _Pick.apply
_project: Callable[..., tuple[torch.Tensor, ...]] = _Project.apply
_rotate: Callable[..., torch.Tensor] = _Rotate.apply
_finish: Callable[..., torch.Tensor] = _Finish.apply

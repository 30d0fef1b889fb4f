"""A tight forward pass for Llama-shaped models (Llama, Mistral, Qwen2), for decoding.

It reads the weights of a transformers module and does what the module does with a third of the calls: fused
projections laid out once for the products of a step, a key-value cache that is read from end to end (see `kv.py`), and
attention of single queries as two batched matrix products.

`read` says why a module does not qualify; the caller checks the result against the module itself.

Axes: B rows, P prompt tokens, L layers, H query heads, K key heads, g = H // K, h head width, M cache length, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fairlead.engine.dense import Prepared, prepare
from fairlead.engine.kv import Cache

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
FUSE_BELOW = 100_000_000  # parameters; fusing copies the weights, which a large model should not pay for


class Linear(NamedTuple):
    """The weight and the bias of a linear map."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Projection:
    """One or several linear maps of the same input, side by side."""

    parts: tuple[Prepared, ...]

    def __call__(self, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
        if len(self.parts) == 1:
            return self.parts[0](x, add)
        y = torch.cat([part(x) for part in self.parts], dim=-1)
        return y if add is None else y.add_(add)


@dataclass(frozen=True, slots=True)
class Layer:
    norm_in: torch.Tensor
    qkv: Projection
    out: Projection
    norm_mlp: torch.Tensor
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True)
class Llama:
    """Weights and sizes.

    turn    the rotations of the positions (see `_turns`)
    """

    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    epsilon: float
    heads: int
    key_heads: int
    width: int
    turn: tuple[torch.Tensor, ...]

    def cache(self, rows: int, length: int, most: int) -> Cache:
        """An empty cache of so many positions at first, and at most."""
        groups = self.heads // self.key_heads
        return Cache(len(self.layers), rows, self.key_heads, groups, self.width, length, most, self.embedding)


def read(model: nn.Module, positions: int, rows: int) -> Llama | str:
    """The module's weights for up to `positions` tokens a row, or the reason why this forward pass does not fit it.

    rows    decoded side by side, which the weights are laid out for
    """
    inner: Any = model
    config = inner.config
    if type(model).__name__ not in CLASSES:
        return f"{type(model).__name__} has no tight forward pass"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    if config.rope_parameters.get("rope_type", "default") not in ("default", "linear", "llama3"):
        return f"its rotary positions are of type {config.rope_parameters['rope_type']}, which depends on the length"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < positions and getattr(config, "use_sliding_window", True):
        return f"its attention window of {window} is shorter than the rows"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} carries forward hooks, which must run"
        if name.endswith("_proj") and type(module) is not nn.Linear:
            return f"{name} is {type(module).__name__}, not a plain linear layer"
    body = inner.model
    fuse = sum(p.numel() for p in model.parameters()) <= FUSE_BELOW
    position = torch.arange(positions, device=body.embed_tokens.weight.device)[None]
    cos, sin = body.rotary_emb(body.embed_tokens.weight[:1], position)
    width, pairs = cos.shape[-1], fuse and cos.dtype in (torch.float32, torch.float64)
    rows = rows if fuse else 0
    layers = tuple(
        Layer(
            layer.input_layernorm.weight,
            _join(
                rows,
                _read(layer.self_attn.q_proj, width if pairs else 0),
                _read(layer.self_attn.k_proj, width if pairs else 0),
                _read(layer.self_attn.v_proj),
            ),
            _join(rows, _read(layer.self_attn.o_proj)),
            layer.post_attention_layernorm.weight,
            _join(rows, _read(layer.mlp.gate_proj), _read(layer.mlp.up_proj)),
            _join(rows, _read(layer.mlp.down_proj)),
        )
        for layer in body.layers
    )
    return Llama(
        embedding=body.embed_tokens.weight,
        layers=layers,
        norm=body.norm.weight,
        epsilon=config.rms_norm_eps,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        width=width,
        turn=_turns(cos[0], sin[0], pairs),
    )


def _turns(cos: torch.Tensor, sin: torch.Tensor, pairs: bool) -> tuple[torch.Tensor, ...]:
    """What `_rotate` takes: one complex factor (positions, h / 2), where queries and keys come as pairs that stand next
    to each other; else cos and sin (positions, h), the first half of sin negated, so that rotation is a roll.
    """
    half = cos.shape[-1] // 2
    if pairs:
        return (torch.complex(cos[:, :half], sin[:, :half]),)
    return cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)


def _read(module: nn.Linear, pairs: int = 0) -> Linear:
    """The module's map. `pairs` is the width of a head: its outputs then come in another order in every head, the two
    numbers that are rotated together side by side. Of queries and keys alike, so that their products stay the same.
    """
    bias: torch.Tensor | None = module.bias
    if not pairs:
        return Linear(module.weight, bias)
    order = torch.arange(module.out_features).view(-1, 2, pairs // 2).transpose(1, 2).reshape(-1)
    order = order.to(module.weight.device)
    return Linear(module.weight[order], None if bias is None else bias[order])


def _join(rows: int, *linears: Linear) -> Projection:
    """The linear maps as one, laid out for so many rows; 0: as they are."""
    if not rows:
        return Projection(tuple(Prepared(linear.weight, linear.bias) for linear in linears))
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if len(linears) == 1 or len(biases) not in (0, len(linears)):
        return Projection(tuple(prepare(linear.weight, linear.bias, rows=rows) for linear in linears))
    weights = torch.cat([linear.weight for linear in linears])
    return Projection((prepare(weights, torch.cat(biases) if biases else None, rows=rows),))


@torch.inference_mode()
def prefill(w: Llama, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (L, 2, B, K, P, h) of prompts padded on the right, and hidden states (B, D) at their ends."""
    device = w.embedding.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    B, P = len(prompts), int(lengths.max())
    ids = torch.zeros(B, P, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    x = F.embedding(ids.to(device), w.embedding).view(B * P, -1)
    kv = x.new_empty(len(w.layers), 2, B, w.key_heads, P, w.width)
    turn, rotated = tuple(part[:P, None] for part in w.turn), w.heads + w.key_heads
    end_B = (torch.arange(B) * P + lengths - 1).to(device)
    for number, (layer, cache) in enumerate(zip(w.layers, kv, strict=True)):
        qkv = layer.qkv(_norm(x, layer.norm_in, w.epsilon)).view(B, P, -1, w.width)
        _rotate(qkv[:, :, :rotated], turn)
        q = qkv[:, :, : w.heads].transpose(1, 2)
        cache.copy_(qkv[:, :, w.heads :].view(B, P, 2, -1, w.width).permute(2, 0, 3, 1, 4))
        # Padding stands after every real token, so causal attention never reads it.
        y = F.scaled_dot_product_attention(q, cache[0], cache[1], is_causal=True, enable_gqa=w.heads != w.key_heads)
        y = y.transpose(1, 2).reshape(B * P, -1)
        if number == len(w.layers) - 1:  # of the last layer's output only the ends of the prompts are read
            x, y = x[end_B], y[end_B]
        x = layer.out(y, x)
        x = _mlp(w, layer, x)
    return kv, _norm(x, w.norm, w.epsilon)


@torch.inference_mode()
def step(w: Llama, ids_B: torch.Tensor, position_B: torch.Tensor, kv: Cache) -> torch.Tensor:
    """Feed one token per row at its position; returns hidden states (B, D). Writes keys and values into `kv`.

    A row looks at the positions up to its own.
    """
    B, K, M = len(ids_B), w.key_heads, kv.length
    rotated = w.heads + K
    turn = tuple(part[position_B][:, None] for part in w.turn)
    place = kv.rows_at(position_B)
    mask = later(position_B, M, w.embedding.dtype).repeat_interleave(K, 0)[:, None]
    scale = w.width**-0.5
    x = F.embedding(ids_B, w.embedding)
    for layer, (rows, keys, values) in zip(w.layers, kv.views, strict=True):
        qkv = layer.qkv(_norm(x, layer.norm_in, w.epsilon)).view(B, -1, w.width)
        _rotate(qkv[:, :rotated], turn)
        kv.write(rows, place, qkv[:, w.heads :].reshape(-1, w.width))
        q = qkv[:, : w.heads].reshape(B * K, -1, w.width)
        scores = torch.baddbmm(mask, q, keys, alpha=scale)
        weights = torch.softmax(scores, -1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        x = layer.out(kv.mixed(weights, values), x)
        x = _mlp(w, layer, x)
    return _norm(x, w.norm, w.epsilon)


def later(position_B: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """An additive mask (B, M): 0 up to each row's position, -inf after it."""
    after_BM = torch.arange(length, device=position_B.device) > position_B[:, None]
    return torch.zeros(after_BM.shape, dtype=dtype, device=position_B.device).masked_fill_(after_BM, -torch.inf)


def _mlp(w: Llama, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    gate, up = layer.gate_up(_norm(x, layer.norm_mlp, w.epsilon)).chunk(2, dim=-1)
    return layer.down(F.silu(gate).mul_(up), x)


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)


def _rotate(x: torch.Tensor, turn: tuple[torch.Tensor, ...]) -> None:
    """Rotate queries and keys (.., h) in place, by what `_turns` gives for their positions."""
    if len(turn) == 1:
        torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(turn[0])
    else:
        cos, sin = turn
        turned = x.roll(x.shape[-1] // 2, -1)
        x.mul_(cos).addcmul_(turned, sin)

"""The apprentice in NumPy: a Llama forward pass of a hundred lines, without torch.

It answers where torch is not installed, and it is the engine's independent oracle: written from the published
architecture (RMSNorm, rotary positions, SwiGLU, grouped keys), sharing no code with the engine.
Axes: B rows of equal length, T tokens, V vocabulary, D width, H heads, K width of a head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


@dataclass(frozen=True, slots=True)
class Weights:
    """The arrays of a Llama by their Hugging Face names, in one dtype, and its config."""

    config: Mapping[str, Any]
    arrays: Mapping[str, Array]

    @property
    def head_VD(self) -> Array:
        return self.arrays.get("lm_head.weight", self.arrays["model.embed_tokens.weight"])


@dataclass(slots=True)
class Cache:
    """Keys and values [B, H, T, K] of every layer for the tokens seen so far."""

    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.keys[0].shape[2] if self.keys else 0

    def take(self, rows: Array) -> Cache:
        """The cache of some rows: repeats fan one prompt out to several replies, omissions drop finished rows."""
        return Cache([k[rows] for k in self.keys], [v[rows] for v in self.values])


def read_safetensors(file: Path) -> dict[str, Array]:
    """All arrays of a safetensors file (float16, float32, float64)."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    out: dict[str, Array] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{file}: {name} is {entry['dtype']}; the NumPy forward reads {', '.join(_DTYPES)}")
        start, end = entry["data_offsets"]
        flat: Array = np.frombuffer(raw[8 + size + start : 8 + size + end], dtype=_DTYPES[entry["dtype"]])
        out[name] = flat.reshape(entry["shape"])
    return out


@cache
def load(folder: Path, dtype: type = np.float32) -> Weights:
    """Read `config.json` and `model.safetensors` of a Llama folder, in `dtype`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arrays: dict[str, Array] = {
        name: array.astype(dtype) for name, array in read_safetensors(folder / "model.safetensors").items()
    }
    return Weights(config, arrays)


def _norm(x: Array, scale_D: Array, eps: float) -> Array:
    mean = np.mean(x * x, axis=-1, keepdims=True)
    normed: Array = x / np.sqrt(mean + x.dtype.type(eps)) * scale_D
    return normed


def _rotate(x_BHTK: Array, start: int, theta: float) -> Array:
    """Rotary positions (Su et al. 2021), halves layout as in Hugging Face's Llama."""
    half = x_BHTK.shape[-1] // 2
    rate = theta ** (-np.arange(half, dtype=np.float64) / half)
    angle_TK = np.arange(start, start + x_BHTK.shape[2])[:, None] * rate[None, :]
    cos, sin = (f(angle_TK).astype(x_BHTK.dtype) for f in (np.cos, np.sin))
    a, b = x_BHTK[..., :half], x_BHTK[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    out: Array = e / e.sum(axis=-1, keepdims=True)
    return out


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    out: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


def hidden(weights: Weights, ids_BT: Array, past: Cache | None = None) -> tuple[Array, Cache]:
    """Last hidden states [B, T, D] of rows of equal length that continue `past`, and the cache they leave."""
    config, get = weights.config, weights.arrays
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    eps = config["rms_norm_eps"]
    theta = float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    past = past or Cache()
    start, (rows, steps) = past.length, ids_BT.shape
    x = get["model.embed_tokens.weight"][ids_BT]
    after = Cache()
    hide = np.arange(start + steps)[None, :] > (start + np.arange(steps))[:, None]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        h = _norm(x, get[name + "input_layernorm.weight"], eps)
        q, k, v = (
            (h @ get[f"{name}self_attn.{p}_proj.weight"].T).reshape(rows, steps, n, -1).transpose(0, 2, 1, 3)
            for p, n in (("q", heads), ("k", groups), ("v", groups))
        )
        q, k = _rotate(q, start, theta), _rotate(k, start, theta)
        if past.keys:
            k = np.concatenate([past.keys[layer], k], axis=2)
            v = np.concatenate([past.values[layer], v], axis=2)
        after.keys.append(k)
        after.values.append(v)
        k, v = (np.repeat(t, heads // groups, axis=1) for t in (k, v))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(x.dtype.type(q.shape[-1]))
        scores = np.where(hide, x.dtype.type(-np.inf), scores)
        mixed = (_softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(rows, steps, -1)
        x = x + mixed @ get[name + "self_attn.o_proj.weight"].T
        h = _norm(x, get[name + "post_attention_layernorm.weight"], eps)
        gate = h @ get[name + "mlp.gate_proj.weight"].T
        up = h @ get[name + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ get[name + "mlp.down_proj.weight"].T
    return _norm(x, get["model.norm.weight"], eps), after


def logits(weights: Weights, hidden_ND: Array) -> Array:
    """Scores over the vocabulary for hidden states of any leading shape."""
    out: Array = hidden_ND @ weights.head_VD.T
    return out

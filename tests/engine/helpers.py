"""Tiny random models, and a naive path that shares no code with the engine."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fairlead.engine import tight
from fairlead.engine.layout import Tree

V = 61


def llama(tied: bool, **more: Any) -> torch.nn.Module:
    settings: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | more))


def gpt2(tied: bool) -> torch.nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            tie_word_embeddings=tied,
            initializer_range=0.3,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def qwen2(tied: bool) -> torch.nn.Module:
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=V,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.3,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)  # Qwen2's biases start at zero, which would hide them
    return model


FAMILIES: dict[str, Callable[[bool], torch.nn.Module]] = {"llama": llama, "gpt2": gpt2, "qwen2": qwen2}
MODELS = [f"{family}-{tie}" for family in FAMILIES for tie in ("tied", "untied")]
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
OTHERS: dict[str, Callable[[], torch.nn.Module]] = {
    "mistral, short window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=12)),
    "gemma 2, window and soft caps": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES,
            **SPECIAL,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=5,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "gemma 3, window and two rotaries": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, **SPECIAL, head_dim=8, query_pre_attn_scalar=8, sliding_window=5, layer_types=LAYERS)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen3 moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, head_dim=8, **EXPERTS)),
    "recurrent": lambda: MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4)),
}
_made: dict[str, torch.nn.Module] = {}


def make(name: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A fresh random model by name, the same weights every time."""
    if name not in _made:
        torch.manual_seed(7)
        if name in OTHERS:
            _made[name] = OTHERS[name]().train()
        else:
            family, tie = name.split("-")
            _made[name] = FAMILIES[family](tie == "tied").train()
    model: Any = copy.deepcopy(_made[name]).to(dtype)
    if dtype == torch.float64 and name in (
        "mixtral",
        "qwen3 moe",
    ):  # the grouped product that transformers prefers knows no float64
        model.set_experts_implementation("eager")
    keep_float64(model)
    return model


def keep_float64(model: torch.nn.Module) -> torch.nn.Module:
    """transformers computes RMSNorm in float32 even in a float64 model, which leaves noise of 1e-7; undo that.

    For the class, not the module: a module with a forward of its own would not be taken for what it is. And for the
    tight pass, which does as the modules do.
    """
    tight._norm_dtype = lambda dtype: torch.promote_types(dtype, torch.float32)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            type(module).forward = _rms_norm  # type: ignore[method-assign]
    return model


def _rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * normed.to(x.dtype)


@contextmanager
def all_in_float64() -> Iterator[None]:
    """Softmaxes and norms that transformers casts to float32 stay in float64, so that 1e-9 can be asked for."""
    to_float, softmax = torch.Tensor.float, torch.nn.functional.softmax

    def kept(self: torch.Tensor) -> torch.Tensor:
        return self if self.dtype == torch.float64 else to_float(self)

    def plain(x: torch.Tensor, dim: int | None = None, *more: Any, dtype: Any = None, **rest: Any) -> torch.Tensor:
        return softmax(x, dim, *more, dtype=None if x.dtype == torch.float64 else dtype, **rest)

    with patch.object(torch.Tensor, "float", kept), patch.object(torch.nn.functional, "softmax", plain):
        yield


def forest(seed: int, trees: int = 6, branches: tuple[int, ...] = (1, 2, 3), longest: int = 12) -> list[Tree]:
    rng = random.Random(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(V) for _ in range(rng.randint(low, high)))

    return [Tree(some(1, longest), tuple(some(1, longest) for _ in range(rng.choice(branches)))) for _ in range(trees)]


def naive(model: Any, trees: list[Tree], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of reply tokens by the model's own forward, one row at a time, without packing."""
    logps, entropies = [], []
    for tree in trees:
        for number, reply in enumerate(tree.replies):
            logits = model(input_ids=torch.tensor([tree.prompt + reply])).logits[0]
            logits = logits[len(tree.prompt) - 1 : -1] / temperature
            logp = torch.log_softmax(logits, -1)
            keep = torch.ones(len(reply), dtype=torch.bool)
            if tree.masks is not None and tree.masks[number] is not None:
                keep = torch.tensor(tree.masks[number])
            logps.append(logp.gather(1, torch.tensor(reply)[:, None])[:, 0][keep])
            entropies.append(-(logp.exp() * logp).sum(-1)[keep])
    return torch.cat(logps), torch.cat(entropies)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """float64: 1e-9 elementwise. float32: 1e-5 in norm."""
    if ours.dtype == torch.float64:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    else:
        far = float((ours - theirs).detach().norm() / theirs.detach().norm().clamp_min(1e-12))
        assert far <= 1e-5, f"relative distance {far:.2e}"


def naive_reply(
    model: Any,
    prompt: tuple[int, ...],
    limit: int,
    eos: set[int],
    temperature: float,
    uniforms: list[float],
) -> tuple[list[int], list[float]]:
    """One reply of one row, the whole row recomputed at every step, without a cache."""
    row, logps = list(prompt), []
    for step in range(limit):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0, -1].double()
        logp = torch.log_softmax(logits / (temperature or 1.0), -1)
        token = int(logits.argmax())
        if temperature:
            mass = list(itertools.accumulate(logp.exp().tolist()))
            token = next(number for number, upto in enumerate(mass) if upto > uniforms[step])
        row.append(token)
        logps.append(float(logp[token]))
        if token in eos:
            break
    return row[len(prompt) :], logps

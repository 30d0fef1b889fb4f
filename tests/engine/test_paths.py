"""Which path a model takes, and that its own callers notice nothing."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from engine.helpers import V, close, forest, gradients, make, naive
from fairlead.engine import attention, forward
from fairlead.engine.forward import path_of
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import reply_logprobs

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


def other(name: str) -> torch.nn.Module:
    torch.manual_seed(5)
    if name == "mistral, short window":
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))
    if name == "gemma, window and soft caps":
        return Gemma2ForCausalLM(
            Gemma2Config(
                **SIZES,
                **SPECIAL,
                head_dim=8,
                query_pre_attn_scalar=8,
                sliding_window=5,
                attn_logit_softcapping=2.0,
                final_logit_softcapping=3.0,
            )
        )
    if name == "mixture of experts":
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    assert name == "recurrent"
    return MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4))


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("mistral, short window", True),
        ("gemma, window and soft caps", True),
        ("mixture of experts", True),
        ("recurrent", False),
    ],
)
def test_other_models_are_exact_by_the_path_they_take(name: str, packed: bool) -> None:
    model, trees = other(name), forest(3)
    reference = copy.deepcopy(model)
    got = reply_logprobs(model, trees)
    ours = gradients(model, got.logp_N.sum())
    logp_N = naive(reference, trees)[0]
    theirs = gradients(reference, logp_N.sum())
    assert path_of(model).packed == packed
    close(got.logp_N, logp_N)
    for key in theirs:
        if float(theirs[key].norm()) > 1e-4:
            close(ours[key], theirs[key])


def test_the_padded_path_is_said_once_and_aloud(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(forward, "_said", set())
    with caplog.at_level(logging.INFO, logger="fairlead"):
        for _ in range(2):
            path_of(other("recurrent"))
            path_of(make("llama-tied"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "padded rows instead of a packed forest" in caplog.text


def test_an_unknown_step_after_the_last_layer_is_refused() -> None:
    model: Any = make("llama-tied")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(ValueError, match="differ from its own logits"):
        path_of(model)


def test_an_adapted_head_is_refused() -> None:
    model: Any = make("llama-untied")

    class Adapter(torch.nn.Linear):
        pass

    model.lm_head = Adapter(32, V, bias=False).double()
    with pytest.raises(ValueError, match="the LM head is Adapter, not a plain linear layer"):
        path_of(model)


def test_damaged_weights_are_named() -> None:
    model: Any = make("llama-tied")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="its logits are not finite"):
        path_of(model)


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_other_callers_of_the_model_notice_nothing(own: str) -> None:
    model: Any = make("llama-tied")
    model.set_attn_implementation(own)
    ids = torch.randint(0, V, (2, 9))
    mask = torch.tensor([[1] * 5 + [0] * 4, [1] * 9])
    before = model(input_ids=ids, attention_mask=mask).logits
    reply_logprobs(model, forest(1))
    assert model.config._attn_implementation == attention.PREFIX + own
    close(model(input_ids=ids, attention_mask=mask).logits[:, :5], before[:, :5])
    attention.uninstall(model)
    assert model.config._attn_implementation == own


def test_both_paths_give_the_same_states_in_packed_order() -> None:
    model, trees = make("gpt2-tied"), [*forest(9), Tree((3, 4), ((5,),))]
    from fairlead.engine.logprobs import batch_of

    batch = batch_of(model, trees, keep_last=True)
    close(forward.hidden_states(model, batch, packed=True), forward.hidden_states(model, batch, packed=False))

"""Adapters: what they leave alone, what folding them in gives, what comes back from disk, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.helpers import close, forest, gradients, make
from fairlead.engine import adapters
from fairlead.engine.checkpoint import save_model, weights_hash
from fairlead.engine.decode import generate
from fairlead.engine.logprobs import reply_logprobs, score

pytest.importorskip("peft")

ALL: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}


def stirred(module: Any, seed: int = 0, size: float = 0.1) -> Any:
    """The module with its adapter's B no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return module


def logps(module: Any) -> torch.Tensor:
    return score(module, forest(1)).logp_N


@pytest.mark.parametrize("name", ["llama-tied", "gpt2-untied"])
def test_a_fresh_adapter_changes_nothing_and_trains_alone(name: str) -> None:
    model = make(name, torch.float32)
    before = weights_hash(model)
    adapted = adapters.with_adapter(model, ALL, seed=5)
    ids = torch.arange(20)[None]
    assert torch.equal(adapted(input_ids=ids).logits, model(input_ids=ids).logits)
    close(logps(adapted), logps(model))  # by another path: the tight pass knows plain layers only
    assert {n.split(".")[-3] for n, p in adapted.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    grads = gradients(stirred(adapted), reply_logprobs(adapted, forest(1)).logp_N.sum())
    assert all(g.abs().sum() > 0 for g in grads.values()) and len(grads) == 2 * len(adapters.layers_of(adapted))
    # the weights below are the module's own, and it trains as before
    assert {p.data_ptr() for p in model.parameters()} < {p.data_ptr() for p in adapted.parameters()}
    assert all(p.requires_grad for p in model.parameters()) and weights_hash(model) == before
    twin, other = (adapters.with_adapter(model, ALL, seed=s) for s in (5, 6))
    first, again, third = (next(p for n, p in m.named_parameters() if "lora_A" in n) for m in (adapted, twin, other))
    assert torch.equal(first, again) and not torch.equal(first, third)
    assert float(first.detach().abs().max()) <= first.shape[1] ** -0.5


@pytest.mark.parametrize("name", ["llama-tied", "gpt2-untied"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_folding_in_is_the_formula(name: str, dtype: torch.dtype) -> None:
    """W + alpha/r B A, in NumPy, float64 or float32 sums rounded once; all else is the module's own."""
    model = make(name, dtype)
    adapted = stirred(adapters.with_adapter(model, ALL))
    folded = adapters.merged(adapted)
    assert type(folded) is type(model) and not adapters.is_adapted(folded)
    layers = adapters.layers_of(adapted)
    for own, weight in folded.named_parameters():
        old = dict(model.named_parameters())[own]
        layer = layers.get(own.removesuffix(".weight"))
        if layer is None or own.endswith("bias"):
            assert torch.equal(weight, old) and weight.data_ptr() == old.data_ptr()
            continue
        a, b = (part["default"].weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
        delta = 8 / 4 * (b @ a)
        expected = old.detach().double().numpy() + (delta.T if name.startswith("gpt2") else delta)
        bits = {torch.float64: 1e-15, torch.float32: 2e-7, torch.bfloat16: 2**-8}[dtype]
        assert np.abs(weight.detach().double().numpy() - expected).max() <= bits * 2 * np.abs(expected).max()
        if dtype == torch.bfloat16:  # one rounding: never more than half a step away
            assert torch.equal(weight, torch.from_numpy(expected).float().bfloat16()) or float(
                (weight.double() - torch.from_numpy(expected)).abs().max()
            ) <= 2**-8 * float(np.abs(expected).max())
    if dtype == torch.float64:
        close(logps(folded), logps(adapted))
    assert (logps(folded) - logps(model)).abs().max() > 0.1
    assert all(p.requires_grad for p in folded.parameters())
    assert adapters.merged(model) is model


def test_the_merged_export_reloads_bit_for_bit(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for dtype in (torch.float32, torch.bfloat16):
        where = tmp_path / str(dtype)
        save_model(make("llama-tied", dtype), None, where / "base")  # .to() would round the rotary tables as well
        base = AutoModelForCausalLM.from_pretrained(where / "base", dtype=dtype)
        folded = adapters.merged(stirred(adapters.with_adapter(base, ALL)))
        where = where / "merged"
        assert save_model(folded, None, where) == weights_hash(folded)
        again = AutoModelForCausalLM.from_pretrained(where, dtype=dtype)
        ids = torch.arange(20)[None]
        assert torch.equal(again(input_ids=ids).logits, folded(input_ids=ids).logits)
    with pytest.raises(ValueError, match="carries adapters; fold them in first"):
        save_model(adapters.with_adapter(make("llama-tied", torch.float32), ALL), None, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_kept_adapter_comes_back_bit_for_bit_here_and_in_peft(tmp_path: Path) -> None:
    import peft

    model = make("llama-untied", torch.float32).eval()
    adapted = stirred(adapters.with_adapter(model, ALL))
    kept = adapters.adapter_of(adapted, base="wt:abc")
    assert kept is not None and adapters.adapter_of(model) is None
    adapters.save_adapter(kept, tmp_path / "a")
    loaded = adapters.load_adapter(tmp_path / "a")
    assert loaded.base == "wt:abc"
    again = adapters.with_saved(model, loaded)
    assert torch.equal(logps(again), logps(adapted))
    assert not any(p.requires_grad for p in again.parameters())
    assert weights_hash(adapters.merged(again)) == weights_hash(adapters.merged(adapted))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "a")
    assert torch.equal(logps(theirs), logps(adapted))
    with adapted.disable_adapter():
        close(logps(adapted), logps(model))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = make("llama-untied", torch.float32)
    for targets, message in (
        (("q_proj", "query"), "no layer is called 'query'; .* down_proj, gate_proj"),
        (("lm_head",), "lm_head is no linear layer below the LM head"),
        (("embed_tokens",), "embed_tokens is no linear layer"),
    ):
        with pytest.raises(ValueError, match=message):
            adapters.with_adapter(model, ALL | {"target_modules": targets})
    adapted = adapters.with_adapter(model, ALL | {"target_modules": ("q_proj", "layers.1.mlp.up_proj")})
    assert sorted(n.rpartition("layers.")[2] for n in adapters.layers_of(adapted)) == [
        "0.self_attn.q_proj", "1.mlp.up_proj", "1.self_attn.q_proj",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="carries an adapter already"):
        adapters.with_adapter(adapted, ALL)
    for layer in adapters.layers_of(adapted).values():
        layer.enable_adapters(False)
    with pytest.raises(ValueError, match="is switched off"):
        adapters.merged(adapted)
    kept = adapters.adapter_of(adapters.with_adapter(make("llama-untied", torch.float32), ALL))
    assert kept is not None
    with pytest.raises(ValueError, match="which this model does not have"):
        adapters.with_saved(make("gpt2-untied", torch.float32), kept)
    wrong = {name: torch.zeros(3, 3) for name in kept.tensors}
    with pytest.raises(ValueError, match="does not fit this model"):
        adapters.with_saved(model, adapters.Adapter(kept.config, wrong))
    fewer = dict(list(kept.tensors.items())[1:])
    with pytest.raises(ValueError, match="does not fit this model: .*lora_A"):
        adapters.with_saved(model, adapters.Adapter(kept.config, fewer))
    with pytest.raises(FileNotFoundError, match="is this an adapter's folder"):
        adapters.load_adapter(tmp_path)
    adapters.save_adapter(kept, tmp_path / "a")
    file = tmp_path / "a" / adapters.WEIGHTS
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match="damaged"):
        adapters.load_adapter(tmp_path / "a")
    (tmp_path / "a" / adapters.CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
    adapters.save_adapter(adapters.Adapter({"peft_type": "IA3"}, kept.tensors), tmp_path / "b")
    with pytest.raises(ValueError, match="a IA3 adapter; only LoRA"):
        adapters.load_adapter(tmp_path / "b")


def test_adapters_that_do_more_than_lora_are_not_folded_silently() -> None:
    import peft

    dora = peft.PeftModel(
        make("llama-untied", torch.float32), peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    )
    with pytest.raises(ValueError, match="does more than add s B A"):
        adapters.merged(dora)
    ia3 = peft.PeftModel(
        make("llama-untied", torch.float32), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    )
    with pytest.raises(ValueError, match="another kind than LoRA"):
        adapters.merged(ia3)


def test_dropout_acts_on_gradients_alone_and_repeats_itself() -> None:
    model = make("llama-untied", torch.float32)
    adapted = stirred(adapters.with_adapter(model, ALL | {"lora_dropout": 0.5}, seed=1))
    plain = stirred(adapters.with_adapter(model, ALL, seed=1))
    assert torch.equal(logps(adapted), logps(plain))  # scoring
    drawn = [generate(m, [(1, 2, 3)], n=1, max_tokens=6, temperature=1.0, eos_ids=[], seed=0) for m in (adapted, plain)]
    assert drawn[0][0][0].tokens == drawn[1][0][0].tokens
    once, twice = (reply_logprobs(adapted, forest(1)).logp_N for _ in range(2))
    assert torch.equal(once, twice) and (once - logps(plain)).abs().max() > 0.01
    kept = reply_logprobs(adapted, forest(1)).logp_N
    stirred(adapted, seed=1)  # other weights, another mask
    other = adapters.with_adapter(model, ALL | {"lora_dropout": 0.5}, seed=2)
    assert not torch.equal(kept, reply_logprobs(stirred(other), forest(1)).logp_N)
    x = torch.ones(200, 500)
    layer = next(iter(adapters.layers_of(adapted).values()))
    mask = layer.lora_dropout["default"](x)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.02)  # 100,000 draws: 6 standard errors


def test_putting_one_on_says_nothing_that_a_user_could_not_mend(recwarn: pytest.WarningsRecorder) -> None:
    adapters.with_adapter(make("llama-tied", torch.float32), ALL)
    assert not [w for w in recwarn if "is_gradient_checkpointing" in str(w.message)]

"""Which path a model takes, and that its own callers notice nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from engine.helpers import OTHERS, V, all_in_float64, close, forest, gradients, make, naive
from fairlead.engine import attention, forward
from fairlead.engine.forward import path_of
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import reply_logprobs


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in OTHERS if name != "recurrent"])
def test_other_families_are_exact_on_both_paths(name: str, dtype: torch.dtype, packed: bool) -> None:
    model, reference, trees = make(name, dtype), make(name, dtype), forest(3)
    with all_in_float64():
        assert path_of(model).packed
        got = reply_logprobs(model, trees, packed=packed)
        ours = gradients(model, got.logp_N.sum())
        logp_N = naive(reference, trees)[0]
        theirs = gradients(reference, logp_N.sum())
    close(got.logp_N, logp_N)
    largest = max(float(gradient.norm()) for gradient in theirs.values())
    for key in theirs:
        if float(theirs[key].norm()) > 1e-4 * largest:  # what is smaller is the rounding of a sum that cancels
            close(ours[key], theirs[key])


def test_a_recurrent_model_is_exact_on_padded_rows() -> None:
    model, reference, trees = make("recurrent", torch.float32), make("recurrent", torch.float32), forest(3)
    got = reply_logprobs(model, trees)
    ours = gradients(model, got.logp_N.sum())
    logp_N = naive(reference, trees)[0]
    theirs = gradients(reference, logp_N.sum())
    assert not path_of(model).packed
    close(got.logp_N, logp_N)
    for key in theirs:
        if float(theirs[key].norm()) > 1e-4:
            close(ours[key], theirs[key])


def test_the_padded_path_is_said_once_and_aloud(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(forward, "_said", set())
    with caplog.at_level(logging.INFO, logger="fairlead"):
        for _ in range(2):
            path_of(make("recurrent", torch.float32))
            path_of(make("llama-tied"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "padded rows instead of a packed forest" in caplog.text


def test_a_router_loss_that_is_left_out_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(forward, "_said", set())
    quiet, asking = make("mixtral", torch.float32), make("mixtral", torch.float32)
    asking.config.output_router_logits = True  # type: ignore[union-attr]
    path_of(quiet)
    assert "router" not in caplog.text
    path_of(asking)
    assert "experts are trained without it" in caplog.text


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

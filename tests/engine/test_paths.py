"""Which path a model takes, and that its own callers notice nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from engine.helpers import OTHERS, V, all_in_float64, close, forest, gradients, make, naive
from fairlead.engine import attention, cascade, forward, tight
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


def keys_hear_of_one_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt's keys get no gradient from further branches: values stay as they are."""
    monkeypatch.setattr(cascade.Side, "give", _without_adding(cascade.Side.give))


def _without_adding(real: Any) -> Any:
    return lambda self, out, y, *, add=False: None if add else real(self, out, y)


def turned_back_the_wrong_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions of the tight pass are turned forwards on the way back too."""
    forwards = tight._Rotate.forward
    wrong = type("Wrong", (torch.autograd.Function,), {})
    wrong.forward = staticmethod(forwards)  # type: ignore[attr-defined]

    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        return torch.addcmul(grads[0] * cos, grads[0].roll(cos.shape[-1] // 2, -1), sin), None, None

    wrong.backward = staticmethod(backward)  # type: ignore[attr-defined]
    monkeypatch.setattr(tight, "_rotate", wrong.apply)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("bug", "only_blocks", "is_tight"),
    [(keys_hear_of_one_branch, True, True), (turned_back_the_wrong_way, False, False)],
)
def test_a_way_back_that_is_wrong_is_caught_before_it_is_used(
    bug: Any,
    only_blocks: bool,
    is_tight: bool,
    dtype: torch.dtype,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward, "_said", set())
    model, reference, trees = make("llama-untied", dtype), make("llama-untied", dtype), forest(3)
    with torch.no_grad():
        assert path_of(model).tight, "values alone show nothing"
    bug(monkeypatch)
    path = path_of(model)
    assert path.packed and path.backward and (path.only_blocks, path.tight) == (only_blocks, is_tight)
    assert "gives other gradients than the model's own" in caplog.text
    ours = gradients(model, reply_logprobs(model, trees).logp_N.sum())
    if dtype != torch.bfloat16:
        theirs = gradients(reference, naive(reference, trees)[0].sum())
        for key in theirs:
            close(ours[key], theirs[key])


@pytest.mark.parametrize("name", ["llama-tied", "gpt2-tied", "mixtral", "gemma 2, window and soft caps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sound_models_keep_the_packed_path_when_gradients_are_recorded(
    name: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_said", set())
    path = path_of(make(name, dtype))
    assert path.packed and path.backward and not path.only_blocks
    assert path.tight == ("llama" in name)
    assert "gradients" not in caplog.text


def test_gradients_are_compared_where_something_trains() -> None:
    from fairlead.engine import adapters

    pytest.importorskip("peft")
    frozen = make("llama-tied", torch.float32).requires_grad_(False)
    assert path_of(frozen).packed
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.5, "target_modules": "all-linear"}
    for dropout in (0.0, 0.5):  # dropout falls on other tokens in rows than in a forest: nothing to compare
        assert path_of(
            adapters.with_adapter(make("llama-tied", torch.float32), settings | {"lora_dropout": dropout})
        ).packed


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

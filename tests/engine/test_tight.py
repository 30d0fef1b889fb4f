"""The tight pass against the modules it reads: values, gradients, and when it must not be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.helpers import close, forest, gradients, make, naive
from fairlead.engine import cascade, forward, logprobs, tight
from fairlead.engine.forward import hidden_states, path_of
from fairlead.engine.logprobs import batch_of, reply_logprobs

SHAPED = ["llama-tied", "llama-untied", "qwen2-tied", "qwen3", "mistral, short window"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SHAPED)
def test_states_and_gradients_equal_the_modules_own(name: str, dtype: torch.dtype) -> None:
    model, reference = make(name, dtype), make(name, dtype)
    assert path_of(model).tight
    batch = batch_of(model, forest(2), keep_last=True)
    torch.manual_seed(0)
    weight_TD = torch.randn(batch.tokens, 32, dtype=dtype)
    ours_TD = hidden_states(model, batch)
    theirs_TD = forward._packed(reference, batch, False)
    close(ours_TD, theirs_TD)
    ours, theirs = gradients(model, (ours_TD * weight_TD).sum()), gradients(reference, (theirs_TD * weight_TD).sum())
    assert ours.keys() == theirs.keys()
    largest = max(float(gradient.norm()) for gradient in theirs.values())
    for key in ours:
        if float(theirs[key].norm()) > 1e-4 * largest:
            close(ours[key], theirs[key])


@pytest.mark.parametrize("which", ["scored", "last"])
@pytest.mark.parametrize("name", [*SHAPED, "gpt2-tied"])
def test_only_the_rows_asked_for(name: str, which: str) -> None:
    model, trees = make(name), forest(3)
    batch = batch_of(model, trees, keep_last=which == "last")
    rows = batch.source_N if which == "scored" else batch.last_R
    rows = torch.cat([rows, rows[:3]])  # repeated rows get their gradients added up
    torch.manual_seed(0)
    weight_ND = torch.randn(len(rows), 32, dtype=torch.float64)
    some_ND = hidden_states(model, batch, rows=rows)
    ours = gradients(model, (some_ND * weight_ND).sum())
    all_ND = hidden_states(model, batch)[rows]
    theirs = gradients(model, (all_ND * weight_ND).sum())
    close(some_ND, all_ND)
    for key in theirs:
        close(ours[key], theirs[key])


@pytest.mark.parametrize("more", [0, 1, 5])
def test_spare_tokens_change_nothing(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are added to the tokens and to those scored; in float64, to see the last bit."""
    model, trees = make("llama-tied"), forest(3)
    plain = reply_logprobs(model, trees, entropy=True)
    theirs = gradients(model, plain.logp_N.sum() + plain.entropy_N.sum())  # type: ignore[union-attr]
    states = hidden_states(model, batch_of(model, trees))
    for module in (forward, logprobs, cascade):
        monkeypatch.setattr(module, "spare", lambda rows, like: more)
    ours = reply_logprobs(model, trees, entropy=True)
    close(ours.logp_N, plain.logp_N)
    close(ours.entropy_N, plain.entropy_N)
    close(hidden_states(model, batch_of(model, trees)), states)
    grown = gradients(model, ours.logp_N.sum() + ours.entropy_N.sum())  # type: ignore[union-attr]
    for key in theirs:
        close(grown[key], theirs[key])


def test_frozen_weights_get_no_gradient_and_disturb_no_other() -> None:
    model, reference, trees = make("llama-untied"), make("llama-untied"), forest(1)
    for one in (model, reference):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_("layers.1" in name and "up_proj" not in name)
    ours = gradients(model, reply_logprobs(model, trees).logp_N.sum())
    theirs = gradients(reference, naive(reference, trees)[0].sum())
    assert ours.keys() == theirs.keys() and any("q_proj" in key for key in ours)
    for key in ours:
        close(ours[key], theirs[key])


def test_the_padding_token_keeps_its_embedding() -> None:
    model, reference, trees = make("llama-untied"), make("llama-untied"), forest(1)
    for one in (model, reference):
        one.model.embed_tokens.padding_idx = trees[0].prompt[0]  # type: ignore[union-attr, assignment]
    ours = gradients(model, reply_logprobs(model, trees).logp_N.sum())["model.embed_tokens.weight"]
    close(ours, gradients(reference, naive(reference, trees)[0].sum())["model.embed_tokens.weight"])
    assert not ours[trees[0].prompt[0]].any()


def hooked(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 1.5)


def another_forward(model: Any) -> None:
    own = model.model.norm.forward
    model.model.norm.forward = lambda x: own(x) * 1.5


def another_linear(model: Any) -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.5

    model.model.layers[0].mlp.up_proj.__class__ = Adapted


@pytest.mark.parametrize("change", [hooked, another_forward, another_linear])
@pytest.mark.parametrize("before", [True, False])
def test_a_model_that_does_more_runs_through_its_own_modules(change: Any, before: bool) -> None:
    model, trees = make("llama-tied"), forest(1)
    if not before:
        assert path_of(model).tight
    change(model)
    assert isinstance(tight.read(model), str)
    close(reply_logprobs(model, trees).logp_N, naive(model, trees)[0])


def test_gradient_checkpointing_and_other_shapes_run_through_their_own_modules() -> None:
    model: Any = make("llama-tied")
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert "checkpointing" in str(tight.read(model))
    assert "no tight pass" in str(tight.read(make("gpt2-tied")))


def test_a_wrong_tight_pass_is_caught_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward, "_said", set())
    real = tight._rotate
    monkeypatch.setattr(tight, "_rotate", lambda x, cos, sin: real(x, cos, -sin))
    model, trees = make("llama-tied"), forest(1)
    assert path_of(model).packed and not path_of(model).tight
    assert "the tight pass is not used" in caplog.text
    close(reply_logprobs(model, trees).logp_N, naive(model, trees)[0])


def test_bfloat16_stays_as_near_to_float32_as_the_modules_do() -> None:
    wide = make("llama-untied", torch.float32)
    narrow = make("llama-untied", torch.float32).to(torch.bfloat16)
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    trees = forest(5)
    truth = gradients(wide, reply_logprobs(wide, trees).logp_N.sum())
    ours = gradients(narrow, reply_logprobs(narrow, trees).logp_N.sum())
    theirs = gradients(narrow, naive(narrow, trees)[0].sum())

    def far(other: dict[str, torch.Tensor]) -> float:
        return max(float((other[k].float() - truth[k]).norm() / truth[k].norm()) for k in truth)

    assert path_of(narrow).tight
    assert far(ours) <= 1.5 * far(theirs)

"""Replies one step off: corrected for the weights that have moved, and never drawn from weights that move."""

from __future__ import annotations

import logging
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from tests.methods.policies import objectives, prompts, settings  # noqa: E402
from tests.methods.trainable import Tiny, tiny_model  # noqa: E402

import fairlead.methods.policy as loop  # noqa: E402
from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.methods.config import Lora  # noqa: E402
from fairlead.methods.experience import Experience  # noqa: E402
from fairlead.methods.policy import train_policy  # noqa: E402
from fairlead.methods.rollouts import LocalSampler  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny_model()


def learnt_from(monkeypatch: pytest.MonkeyPatch, model: Tiny, **more: Any) -> list[Experience]:
    """What each step of a run learnt from."""
    seen: list[Experience] = []
    plain = loop.Loop.learn
    monkeypatch.setattr(loop.Loop, "learn", lambda self, step, number: seen.append(step) or plain(self, step, number))
    train_policy(model, prompts(), objectives(), settings("grpo", **{"steps": 3, "lr": 0.02, **more}))
    return seen


def test_replies_of_older_weights_are_corrected_by_hand_reckoned_weights(
    monkeypatch: pytest.MonkeyPatch, model: Tiny
) -> None:
    first, second, third = learnt_from(monkeypatch, model, asynchronous=True, importance_cap=1.5)
    assert first.told["staleness"] == 0 and "importance_N" not in first.more
    for step in (second, third):
        assert step.told["staleness"] == 1 and step.told["mismatch_mean"] > 1e-3
        ratio_N = (step.more["old_N"] - step.sampler_N).exp()
        assert torch.allclose(step.more["importance_N"], ratio_N.clamp(max=1.5), rtol=1e-12)
        assert 0 < step.told["importance_capped"] == float((ratio_N >= 1.5).double().mean()) < 1
    then = score(model.module, second.trees).logp_N  # drawn before the first update
    assert torch.allclose(second.sampler_N, then, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "plain", [{"asynchronous": False, "passes": 2}, {"mismatch_bound": 1e9}, {"importance_cap": None}]
)
def test_what_needs_none_has_none(monkeypatch: pytest.MonkeyPatch, model: Tiny, plain: dict[str, Any]) -> None:
    steps = learnt_from(monkeypatch, model, **{"asynchronous": True, **plain})
    assert len(steps) == 3 and not any("importance_N" in step.more for step in steps)


def test_a_sampler_that_draws_from_moving_weights_is_refused(model: Tiny) -> None:
    config = settings("grpo", steps=2, asynchronous=True)
    moving = LocalSampler(model.tokenizer)

    class Wrapped:
        name, exact, sampler = "wrapped", True, moving

    for sampler in (moving, Wrapped()):
        with pytest.raises(InputError, match=r"asynchronous: .*LocalSampler\(tokenizer, copy=True\)"):
            train_policy(model, prompts(), objectives(), config, sampler=sampler)  # type: ignore[arg-type]
    for fine in (config, config.model_copy(update={"lora": Lora(rank=2), "asynchronous": True})):
        sampler = LocalSampler(model.tokenizer, copy=fine.lora is None)
        assert len(train_policy(model, prompts(), objectives(), fine, sampler=sampler).steps) == 2


def test_old_log_probs_of_the_update_are_not_those_of_older_weights() -> None:
    with pytest.raises(ValidationError, match="asynchronous replies are of older weights"):
        settings("grpo", asynchronous=True, old_logprobs="update")


def test_a_kl_that_nobody_measures_is_said(model: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    said = "nobody measures the KL (kl: 0, watch_kl: false), so kl_burst: 1000 stops nothing"
    for watch in (True, False):
        with caplog.at_level(logging.WARNING, "fairlead"):
            train_policy(model, prompts(), objectives(), settings("grpo", steps=1, kl=0.0, watch_kl=watch))
        assert any(said in text for text in caplog.messages) is not watch

"""The routers' loss in training: a whole step's, however it is cut; of models that have one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.methods.trainable import Tiny, demonstrations, pairs, tiny_model, weights  # noqa: E402
from transformers import MixtralConfig, MixtralForCausalLM  # noqa: E402

from engine.helpers import SIZES, all_in_float64, keep_float64  # noqa: E402
from fairlead.engine.logprobs import batch_of, reply_logprobs  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.methods.config import DPOConfig, SFTConfig  # noqa: E402
from fairlead.methods.config_reward import RewardConfig  # noqa: E402
from fairlead.methods.loop import Run, Updates, batches  # noqa: E402
from fairlead.methods.losses import sft_nll  # noqa: E402
from fairlead.methods.preference import train_dpo  # noqa: E402
from fairlead.methods.reward import train_reward  # noqa: E402
from fairlead.methods.rows import exchange_rows  # noqa: E402
from fairlead.methods.sft import train_sft  # noqa: E402

MIXED = SFTConfig(epochs=1, rows_per_step=8, lr=1e-3, weight_decay=0.0, grad_clip=None, router_loss=0.3)


def mixture() -> Tiny:
    plain = tiny_model()
    torch.manual_seed(3)
    sizes = SIZES | {"vocab_size": len(plain.tokenizer), "max_position_embeddings": 128}
    model: Any = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, router_aux_loss_coef=0.02)).double()
    model.set_experts_implementation("eager")
    return replace(plain, module=keep_float64(model))


def gradients(config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Any]:
    """Of one step's whole loss, and its record."""
    model, found = mixture(), {}
    rows = exchange_rows(model, demonstrations())
    updates = Updates(model.module, rows, config, Run())
    step = updates.optimiser.step
    monkeypatch.setattr(
        updates.optimiser, "step", lambda: found.update({n: p.grad.clone() for n, p in updates.parameters.items()})
    )
    with all_in_float64():
        for batch in batches(rows, config):
            updates.step(sft_nll(reply_logprobs(updates.module, batch.trees).logp_N, tokens=batch.step_tokens), batch)
    assert step is not None and len(updates.records) == 1
    return found, updates.records[0]


@pytest.mark.parametrize("budget", [20, 45, 90])
def test_it_does_not_depend_on_how_a_step_is_cut(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, one = gradients(MIXED, monkeypatch)
    cut, many = gradients(MIXED.model_copy(update={"tokens_per_batch": budget}), monkeypatch)
    for name, grad in whole.items():
        torch.testing.assert_close(cut[name], grad, rtol=1e-9, atol=1e-12, msg=name)
    assert many.loss == pytest.approx(one.loss, rel=1e-12)
    assert many.metrics()["router_loss"] == pytest.approx(one.metrics()["router_loss"], rel=1e-12)


def test_loss_and_gradient_are_those_of_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, record = gradients(MIXED, monkeypatch)
    model: Any = mixture()
    trees = exchange_rows(model, demonstrations()).trees
    rows = [torch.tensor([*t.prompt, *t.replies[0][:-1]]) for t in trees]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    with all_in_float64():
        aux = model.module(input_ids=ids, attention_mask=mask.long(), output_router_logits=True).aux_loss
        batch = batch_of(model.module, trees)
        nll = sft_nll(reply_logprobs(model.module, batch).logp_N, tokens=len(batch.target_N))
        (nll + 0.3 * aux).backward()
    assert record.loss == pytest.approx(float(nll + 0.3 * aux), rel=1e-6)
    assert record.metrics()["router_loss"] == pytest.approx(0.3 * float(aux), rel=1e-6)
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_by_default_it_has_the_weight_of_the_configuration_and_0_turns_it_off() -> None:
    told = {}
    for given in (None, 0.02, 0.0):
        tuned = train_sft(mixture(), demonstrations(), MIXED.model_copy(update={"router_loss": given}))
        told[given] = (weights(tuned.model), tuned.records[0].metrics().get("router_loss"))  # type: ignore[arg-type]
    assert torch.equal(told[None][0], told[0.02][0]) and not torch.equal(told[None][0], told[0.0][0])
    assert told[None][1] == told[0.02][1] > 0.02 and told[0.0][1] is None


def test_pairs_and_reward_models_learn_with_it_in_any_cut() -> None:
    for train, config in (
        (train_dpo, DPOConfig(epochs=1, rows_per_step=4, lr=1e-3, router_loss=0.3)),
        (train_reward, RewardConfig(epochs=1, rows_per_step=4, lr=1e-3, router_loss=0.3)),
    ):
        told = []
        for budget in (16_384, 45):
            with all_in_float64():
                done: Any = train(mixture(), pairs(), config.model_copy(update={"tokens_per_batch": budget}))
            told.append([record.metrics()["router_loss"] for record in done.records])
        assert told[0] == pytest.approx(told[1], rel=1e-6) and len(told[0]) == 2 and min(told[0]) > 0.3


def test_a_weight_for_a_model_without_experts_is_refused() -> None:
    with pytest.raises(InputError, match="router_loss is 0.3, but the model is no mixture of experts"):
        train_sft(tiny_model(), demonstrations(), MIXED)
    train_sft(tiny_model(), demonstrations(), MIXED.model_copy(update={"router_loss": 0.0}))

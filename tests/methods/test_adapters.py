"""LoRA in the trainers: what the reference is, what comes out, one adapter after another, a quantised base, heads."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from pydantic import ValidationError  # noqa: E402
from tests.methods.trainable import demonstrations, pairs, tiny_model  # noqa: E402
from tests.support import tiny  # noqa: E402

from fairlead.engine import adapters as engine  # noqa: E402
from fairlead.engine.checkpoint import weights_hash  # noqa: E402
from fairlead.errors import InputError, MissingResource  # noqa: E402
from fairlead.judges.reward_model import open_reward  # noqa: E402
from fairlead.methods import preference  # noqa: E402
from fairlead.methods.adapters import merged, starting_point, trainable_copy  # noqa: E402
from fairlead.methods.config import DPOConfig, Lora, SFTConfig, Training  # noqa: E402
from fairlead.methods.config_reward import ProcessConfig, RewardConfig  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.preference import train_dpo  # noqa: E402
from fairlead.methods.process import train_process_reward  # noqa: E402
from fairlead.methods.reward import train_reward  # noqa: E402
from fairlead.methods.sft import train_sft  # noqa: E402
from fairlead.models.adapted import with_adapter  # noqa: E402
from fairlead.models.local import LocalModel, open_local  # noqa: E402

LORA = Lora(rank=4, alpha=8)
MORE: dict[str, Any] = {"steps": 4, "rows_per_step": 4, "lr": 3e-3, "warmup": 0, "lora": LORA}
SFT = SFTConfig(**MORE)
DPO = DPOConfig(**MORE, kl_samples=0)


def local(dtype: torch.dtype = torch.float32, width: int = 32) -> LocalModel:
    words = tiny.tokenizer()
    return LocalModel("tiny", tiny.llama(len(words), width=width).to(dtype), words)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.module(input_ids=torch.arange(30)[None]).logits
    return out


def test_sft_under_an_adapter_gives_a_plain_model_and_the_adapter(tmp_path: Path) -> None:
    base = local()
    before = weights_hash(base.module)
    got = train_sft(base, demonstrations(), SFT)
    assert not engine.is_adapted(got.model.module) and type(got.model.module) is type(base.module)
    assert got.records[-1].loss < got.records[0].loss
    assert weights_hash(base.module) == before and all(p.requires_grad for p in base.module.parameters())
    moved = {
        n.rpartition(".")[0].rpartition(".")[2]
        for (n, a), b in zip(got.model.module.named_parameters(), base.module.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert got.adapter is not None and got.adapter.base == base.lineage
    # the export, and base plus adapter, both reload bit for bit
    opened = open_local(str(got.model.save(tmp_path / "m")))  # type: ignore[attr-defined]
    assert torch.equal(logits(opened), logits(got.model))
    engine.save_adapter(got.adapter, tmp_path / "a")
    again = with_adapter(base, tmp_path / "a")
    assert again.lineage == got.model.lineage and torch.equal(logits(again), logits(got.model))
    with pytest.raises(InputError, match=r"was trained on wt:\w+, and tiny is wt:\w+"):
        with_adapter(again, tmp_path / "a")
    with pytest.raises(InputError, match="is this an adapter's folder"):
        with_adapter(base, tmp_path)
    assert train_sft(base, demonstrations(), SFT.model_copy(update={"lora": None})).adapter is None


@pytest.mark.parametrize("kept", ["folded", "under it"])
def test_dpo_on_top_of_sft_is_compared_with_the_sft_model(monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    """Two adapters, one after the other. The trap: a reference without any adapter is the model before SFT."""
    base = local(torch.float64)
    sft = train_sft(base, demonstrations(), SFT.model_copy(update={"lr": 3e-2}))
    assert sft.adapter is not None
    given: Any = sft.model
    if kept == "under it":  # a model that still carries its first adapter, as peft would hand it over
        given = base.with_weights(engine.with_saved(base.module, sft.adapter))
        assert (logits(given) - logits(sft.model)).abs().max() < 1e-6
    seen: list[torch.Tensor] = []
    real = preference.cached_logprobs

    def spy(model: Any, *rest: Any) -> torch.Tensor:
        seen.append(logits(model))
        return real(model, *rest)

    monkeypatch.setattr(preference, "cached_logprobs", spy)
    got = train_dpo(given, pairs(), DPO)
    assert (seen[0] - logits(sft.model)).abs().max() < 1e-6  # the reference is the SFT model
    assert (seen[0] - logits(base)).abs().max() > 0.1  # and far from the base
    assert abs(got.records[0].sums["margin"]) < 1e-6  # at first policy and reference agree
    assert got.records[-1].loss < got.records[0].loss
    # the final model without the DPO adapter is the SFT model
    assert got.adapter is not None
    top = engine.with_saved(sft.model.module, got.adapter)
    assert (logits(base.with_weights(top)) - logits(got.model)).abs().max() < 1e-5
    with top.disable_adapter():
        assert torch.equal(logits(base.with_weights(top)), logits(sft.model))
    scale = LORA.alpha / LORA.rank
    for name, layer in engine.layers_of(top).items():
        delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * scale
        change = got.model.module.get_submodule(name).weight - sft.model.module.get_submodule(name).weight
        assert (change - delta).abs().max() < 1e-7 and delta.abs().max() > 1e-5


def test_full_training_goes_on_from_the_adapter_it_is_given() -> None:
    base = local(torch.float64)
    sft = train_sft(base, demonstrations(), SFT)
    assert sft.adapter is not None
    under = base.with_weights(engine.with_saved(base.module, sft.adapter))
    plain = SFT.model_copy(update={"lora": None, "lr": 1e-3})
    got, expected = (train_sft(m, demonstrations(), plain) for m in (under, sft.model))
    assert not engine.is_adapted(got.model.module)
    assert (logits(got.model) - logits(expected.model)).abs().max() < 1e-9


def test_starting_points() -> None:
    model = local()
    assert starting_point(model, Training()) is model
    assert starting_point(model, SFT) is model
    adapted = model.with_weights(trainable_copy(model.module, SFT))
    start = starting_point(adapted, SFT)
    assert not engine.is_adapted(start.module) and torch.equal(logits(start), logits(model))
    copied = trainable_copy(model.module, Training())
    assert copied is not model.module and copied.lm_head.weight.data_ptr() != model.module.lm_head.weight.data_ptr()
    assert merged(copied) is copied


def test_the_log_says_what_is_trained_and_settings_are_checked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainable_copy(local().module, SFT)
    assert "LoRA of rank 4 on 14 layers (down_proj, gate_proj, k_proj" in caplog.text
    with pytest.raises(InputError, match="lora: no layer is called 'nothing'"):
        trainable_copy(local().module, Training(lora=Lora(targets=("nothing",))))
    for wrong in ({"rank": 0}, {"dropout": 1.0}, {"alpha": 0}, {"targets": ()}, {"ranks": 3}, {"quantise": "int3"}):
        with pytest.raises(ValidationError):
            Lora(**wrong)
    switched = trainable_copy(local().module, SFT)
    for layer in engine.layers_of(switched).values():
        layer.enable_adapters(False)
    with pytest.raises(InputError, match="cannot be folded in: .* is switched off"):
        merged(switched)


def test_micro_batches_do_not_change_the_result() -> None:
    model = tiny_model()
    whole, cut = (
        train_dpo(model, pairs(), DPO.model_copy(update={"tokens_per_batch": tokens})).model for tokens in (4096, 60)
    )
    assert (logits(whole) - logits(cut)).abs().max() < 1e-6
    assert (logits(whole) - logits(model)).abs().max() > 1e-3


class Killed(Exception):
    pass


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, dropout: float) -> None:
    model, config = tiny_model(), SFT.model_copy(update={"lora": Lora(rank=4, dropout=dropout)})

    def die(r: StepRecord) -> None:
        if r.step == 1:
            raise Killed

    whole = train_sft(model, demonstrations(), config)
    with pytest.raises(Killed):
        train_sft(model, demonstrations(), config, Run(checkpoint=tmp_path, every=1, progress=die))
    assert len(list(tmp_path.glob("training-*/step-*"))) >= 1
    again = train_sft(model, demonstrations(), config, Run(checkpoint=tmp_path, every=1))
    assert weights_hash(whole.model.module) == weights_hash(again.model.module)
    assert [r.loss for r in whole.records] == [r.loss for r in again.records]


# -------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_a_head_is_trained_in_full_and_kept_with_its_adapter(tmp_path: Path, kind: str) -> None:
    """Save, reload, same score: as a whole, and as adapter and head over the base."""
    from fairlead.exchange import Stepped, exchange, user

    base = local()
    item = exchange("what is boat ? 0", "the boat is blue\nno")
    if kind == "outcome":
        reward = train_reward(base, pairs(), RewardConfig(**MORE)).model
    else:
        rows = [Stepped((user(f"a {i} ?"),), ("the boat", "no"), (1.0, 0.0)) for i in range(4)]
        reward = train_process_reward(base, rows, ProcessConfig(**MORE)).model
    start = engine.with_adapter(base.module, {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"})
    from fairlead.engine.heads import new_head

    assert not torch.equal(reward.head.weight_D, new_head(start).weight_D)  # trained
    assert reward.adapter is not None and reward.base == base.lineage
    whole = open_reward(reward.save(tmp_path / "whole"))
    small = open_reward(reward.save(tmp_path / "small", adapter_only=True), base=base)
    for again in (whole, small):
        assert again.judge([item])[0].raw == reward.judge([item])[0].raw
        assert again.lineage == reward.lineage
    size = {n: sum(f.stat().st_size for f in (tmp_path / n).rglob("*.safetensors")) for n in ("whole", "small")}
    assert size["small"] < 0.5 * size["whole"]
    with pytest.raises(InputError, match=r"an adapter alone; give the model it was trained on \(base=…, wt:"):
        open_reward(tmp_path / "small")
    with pytest.raises(InputError, match="was trained on"):
        open_reward(tmp_path / "small", base=whole.model)


# -------------------------------------------------------------------------------------------------- QLoRA


QLORA = Lora(rank=4, alpha=8, quantise="nf4")


def test_a_quantised_base_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else real(n, *a))
    with pytest.raises(MissingResource, match="pip install bitsandbytes") as caught:
        train_sft(local(), demonstrations(), SFT.model_copy(update={"lora": QLORA}))
    assert caught.value.exit_code == 4


def test_a_platform_that_cannot_quantise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: True if n == "bitsandbytes" else real(n, *a))

    def cannot(module: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(engine, "quantised", cannot)
    with pytest.raises(MissingResource, match=r"cannot quantise on cpu here \(no kernel image\)"):
        starting_point(local(), Training(lora=QLORA))
    with pytest.raises(InputError, match=r"torch.float64 model cannot be quantised"):
        starting_point(local(torch.float64), Training(lora=QLORA))


def test_under_a_quantised_base_the_reference_is_quantised_too() -> None:
    pytest.importorskip("bitsandbytes")
    base = local(width=64)
    start = starting_point(base, Training(lora=QLORA))
    kinds = {type(m).__name__ for m in start.module.modules()}
    assert "Linear4bit" in kinds and type(start.module.lm_head).__name__ == "Linear"
    off = (logits(start) - logits(base)).abs().max()
    assert off > 1e-3
    for name in engine.linear_layers(base.module):
        old, new = base.module.get_submodule(name).weight, engine.plain_weight(start.module.get_submodule(name))
        assert float((old - new).detach().norm() / old.detach().norm()) < 0.12  # normal weights: 0.092
    before = weights_hash(base.module)
    got = train_dpo(base, pairs(), DPO.model_copy(update={"lora": QLORA, "steps": 8}))
    assert weights_hash(base.module) == before
    assert abs(got.records[0].sums["margin"]) < 1e-5  # policy and reference start as one
    assert got.records[-1].loss < got.records[0].loss
    assert {type(m).__name__ for m in got.model.module.modules()}.isdisjoint({"Linear4bit"})
    # the model that comes out is the dequantised base and the adapter, and computes what was trained
    assert got.adapter is not None
    adapted = engine.with_saved(start.module, got.adapter)
    assert (logits(start.with_weights(adapted)) - logits(got.model)).abs().max() < 1e-4


def test_a_kernel_that_quantises_wrongly_is_caught() -> None:
    """bitsandbytes 0.50 on a CPU, layers of 32 inputs; where it is mended, quantising is right and this says nothing."""
    pytest.importorskip("bitsandbytes")
    try:
        start = starting_point(local(), Training(lora=QLORA))
    except MissingResource as error:
        assert "of a block's largest weight, where NF4 allows" in str(error)
        return
    for name in engine.linear_layers(start.module):
        old, new = local().module.get_submodule(name).weight, engine.plain_weight(start.module.get_submodule(name))
        assert float((old - new).detach().norm() / old.detach().norm()) < 0.12

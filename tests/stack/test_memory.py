"""What a training is reckoned to hold, against sums by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fairlead.engine.forward import path_of  # noqa: E402
from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import reply_logprobs  # noqa: E402
from fairlead.methods import adapters  # noqa: E402
from fairlead.methods.config import Lora  # noqa: E402
from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig  # noqa: E402
from fairlead.stack.dryrun_policy import _memory  # noqa: E402
from fairlead.stack.memory import footprint, peak_resident  # noqa: E402
from support import tiny  # noqa: E402
from support.live import Live  # noqa: E402


class Sized:
    """The sizes of a model as transformers names them."""

    def __init__(self, **sizes: int) -> None:
        self.__dict__.update(sizes)


def module(config: object | None, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    made = torch.nn.Linear(10, 100, bias=False).to(dtype)  # 1,000 parameters
    made.config = config
    return made


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_full_weights(dtype: torch.dtype, width: int) -> None:
    found = footprint(module(Sized(num_hidden_layers=2, hidden_size=8, intermediate_size=16), dtype), 50)
    assert (found.weights, found.gradients, found.moments) == (2000 * width, 1000 * width, 2000 * width)
    assert found.activations == 2 * (8 * 8 + 4 * 16) * 50 * width
    assert found.total == 5000 * width + found.activations


def test_adapters_hold_no_second_copy_of_the_weights() -> None:
    found = footprint(module(Sized(n_layer=1, n_embd=8)), 1, trained=10)
    assert (found.weights, found.gradients, found.moments) == (4 * 1010, 40, 80)
    assert found.activations == (8 * 8 + 4 * 32) * 4  # GPT-2's inner width is four times its width


@pytest.mark.parametrize("config", [None, Sized(hidden_size=8)])
def test_unknown_sizes_are_not_guessed(config: object | None) -> None:
    found = footprint(module(config), 50)
    assert found.activations is None and found.total == 5000 * 4


def test_logits_of_what_is_scored_at_once() -> None:
    words = Sized(num_hidden_layers=1, hidden_size=8, vocab_size=1000)
    assert footprint(module(words), 50).logits == 50 * 1000 * 4
    assert footprint(module(words), 50_000).logits == 8_000_000 * 4
    assert footprint(module(words, torch.bfloat16), 50).logits == 50 * 1000 * 4 + 2 * 4 * 1000 * 8


SHAPES = {  # vocabulary, width, inner width, layers, rows: what most of the memory goes to
    "activations": (460, 64, 128, 4, 40),
    "weights": (460, 256, 512, 4, 1),
    "logits": (20_000, 32, 64, 1, 20),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_is_near_what_a_training_step_holds(shape: str) -> None:
    """Against the bytes of all tensors alive at once, over two steps of AdamW. The tight pass keeps less than reckoned."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words, width, inner, layers, rows = SHAPES[shape]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=words, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
                    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    ).eval()  # fmt: skip
    trees = [Tree(tuple(range(i, i + 40)), (tuple(range(1, 21)), tuple(range(2, 22)))) for i in range(rows)]
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    path_of(model)
    with Live() as seen:
        trained = copy.deepcopy(model)
        optimiser = torch.optim.AdamW(trained.parameters(), lr=1e-4, fused=True)
        for _ in range(2):
            reply_logprobs(trained, trees).logp_N.sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    found = footprint(model, sum(tree.tokens for tree in trees))
    assert getattr(found, shape) > 0.35 * found.total  # of five parts
    assert 0.5 * found.total < own + seen.most < 1.15 * found.total


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_resident()
    assert before is not None
    held = torch.ones(50_000_000)
    after = peak_resident()
    assert after is not None and after >= 200_000_000 and after >= before
    del held


def test_adapters_of_policy_and_critic_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic that starts as the policy has as many; one of another body has its own."""
    pytest.importorskip("peft")
    copies: list[object] = []
    plain = adapters.trainable_copy
    monkeypatch.setattr(
        adapters, "trainable_copy", lambda module, config: copies.append(module) or plain(module, config)
    )
    model, other = (SimpleNamespace(module=tiny.llama(40, width=width)) for width in (32, 64))
    config = ALGORITHMS["ppo"].settings({"lora": Lora(rank=2), "max_tokens": 4, "prompts_per_step": 2})
    totals = []
    for start in (None, SimpleNamespace(model=other)):
        copies.clear()
        job: Any = SimpleNamespace(config=config, model=model, critic=start, sampler=None)
        totals.append(_memory(job, 6, 2)["critic"])
        assert copies == ([model.module] if start is None else [model.module, other.module])
    sizes = [footprint(m.module, 20, trained=_trained(m.module, config)) for m in (model, other)]
    assert totals == [f.weights + f.gradients + f.moments + (f.activations or 0) for f in sizes]
    assert sizes[0].trained < sizes[1].trained


def _trained(module: torch.nn.Module, config: PolicyConfig) -> int:
    return sum(p.numel() for p in adapters.trainable_copy(module, config).parameters() if p.requires_grad)

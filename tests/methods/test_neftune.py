"""Noise on the embeddings: of the published size, of the row and step alone, gone after; and SFT on whole texts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from tests.engine.helpers import keep_float64  # noqa: E402
from tests.methods.trainable import Tiny, demonstrations, tiny_model, weights  # noqa: E402

from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import batch_of, reply_logprobs  # noqa: E402
from fairlead.exchange import Exchange, Message, Text, ToolCall, ToolResult, assistant, user  # noqa: E402
from fairlead.methods.config import SFTConfig  # noqa: E402
from fairlead.methods.losses import sft_nll  # noqa: E402
from fairlead.methods.neftune import noise_of_row, noisy_embeddings  # noqa: E402
from fairlead.methods.rows import exchange_rows, whole_texts  # noqa: E402
from fairlead.methods.sft import train_sft  # noqa: E402

SHORT: dict[str, Any] = {"epochs": 2, "rows_per_step": 4, "lr": 3e-3}


@pytest.fixture(scope="module")
def model() -> Tiny:
    made = tiny_model()
    keep_float64(made.module)
    return made


def test_the_noise_has_the_published_size() -> None:
    """Uniform on [-1, 1] times alpha / sqrt(L D): its largest entry, its mean and its spread."""
    tree = Tree(tuple(range(150)), (tuple(range(50)),))
    noise = noise_of_row(tree, 64, 5.0, (0, 0, 0)).double()
    top = 5.0 / math.sqrt(200 * 64)
    assert noise.shape == (200, 64)
    assert 0.999 * top < noise.abs().max() <= top * (1 + 1e-6)
    assert abs(noise.mean()) < 4 * top / math.sqrt(3 * noise.numel())  # 4 standard errors
    assert noise.std().item() == pytest.approx(top / math.sqrt(3), rel=0.02)


def test_every_row_and_step_has_its_own_noise() -> None:
    tree = Tree((1, 2, 3), ((4, 5),))
    seen = [noise_of_row(tree, 8, 5.0, seed) for seed in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert torch.equal(seen[0], noise_of_row(tree, 8, 5.0, (0, 0, 0)))


@pytest.mark.parametrize("packed", [True, False])
def test_log_probs_under_noise_equal_a_row_by_row_forward(model: Tiny, packed: bool) -> None:
    """Against the untouched model, fed each row's embeddings with its noise added by hand."""
    trees = exchange_rows(model, demonstrations(5)).trees
    seeds = [(7, 3, row) for row in range(5)]
    layout = batch_of(model.module, trees)
    with noisy_embeddings(model.module, layout, trees, 5.0, seeds):
        got = reply_logprobs(model.module, layout, packed=packed).logp_N
    expected = []
    for tree, seed in zip(trees, seeds, strict=True):
        ids = torch.tensor(tree.prompt + tree.replies[0])
        embedded = model.module.get_input_embeddings()(ids) + noise_of_row(tree, 32, 5.0, seed)
        every = model.module(inputs_embeds=embedded[None].double()).logits[0].log_softmax(-1)
        expected += [every[at - 1, ids[at]] for at in range(len(tree.prompt), len(ids))]
    assert torch.allclose(got, torch.stack(expected), atol=1e-9)
    clean = reply_logprobs(model.module, trees, packed=packed).logp_N
    assert (clean - got).abs().max() > 1e-3  # and after the block it is gone


def test_the_size_of_micro_batches_does_not_change_the_noise(model: Tiny) -> None:
    config = SFTConfig(**SHORT, neftune=5.0)
    whole, pieces = (
        weights(train_sft(model, demonstrations(), config.model_copy(update={"tokens_per_batch": tokens})).model)  # type: ignore[arg-type]
        for tokens in (4096, 40)
    )
    plain = weights(train_sft(model, demonstrations(), SFTConfig(**SHORT)).model)  # type: ignore[arg-type]
    assert (whole - pieces).abs().max() < 1e-7
    assert (whole - plain).abs().max() > 1e-4
    other = weights(train_sft(model, demonstrations(), config.model_copy(update={"seed": 1})).model)  # type: ignore[arg-type]
    assert not torch.equal(whole, other)


def test_the_trained_model_carries_no_noise(model: Tiny) -> None:
    got = train_sft(model, demonstrations(), SFTConfig(**SHORT, neftune=15.0)).model
    trees = exchange_rows(model, demonstrations(2)).trees
    first, second = (reply_logprobs(got.module, trees).logp_N for _ in range(2))
    assert torch.equal(first, second)


# ------------------------------------------------------------------------------------------------ whole texts


def test_whole_texts_score_every_token_after_the_first(model: Tiny) -> None:
    call = Message("assistant", (Text("let me see"), ToolCall("1", "look", '{"at": "boat"}')))
    result = Message("tool", (ToolResult("1", (Text("the boat is blue"),)),))
    rows = exchange_rows(
        model, [*demonstrations(3), Exchange((user("what colour ?"),), (call, result, assistant("blue")))]
    )
    whole = whole_texts(rows)
    naive, count = 0.0, 0
    for before, tree in zip(rows.trees, whole.trees, strict=True):
        ids = torch.tensor([before.prompt + before.replies[0]])
        assert tree.prompt + tree.replies[0] == tuple(ids[0].tolist())
        every = model.module(ids).logits[0].log_softmax(-1)
        naive -= every[:-1].gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    logp = reply_logprobs(model.module, whole.trees)
    assert int(logp.count_R.sum()) == count
    assert sft_nll(logp.logp_N, tokens=count).item() == pytest.approx(naive / count, abs=1e-9)


def test_sft_on_whole_texts_learns_the_prompts_too(model: Tiny) -> None:
    replies, texts = (train_sft(model, demonstrations(), SFTConfig(**SHORT, loss_on=on)) for on in ("reply", "text"))
    assert texts.records[0].tokens > replies.records[0].tokens
    whole = whole_texts(exchange_rows(model, demonstrations()))

    def of_prompt(m: Any) -> float:
        logp = reply_logprobs(m.module, whole.trees)
        return logp.logp_N.mean().item()

    assert of_prompt(texts.model) > of_prompt(replies.model)


@pytest.mark.parametrize("bad", [{"neftune": -1.0}, {"neftune": math.nan}, {"loss_on": "prompt"}, {"packing": True}])
def test_settings_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SFTConfig(**bad)


def test_noise_depends_on_no_global_generator() -> None:
    tree = Tree((1, 2), ((3,),))
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    first = noise_of_row(tree, 4, 1.0, (0, 0, 0))
    torch.manual_seed(1)
    assert torch.equal(first, noise_of_row(tree, 4, 1.0, (0, 0, 0)))

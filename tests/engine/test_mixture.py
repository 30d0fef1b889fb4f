"""Decoding from two models' geometric mixture, against one row at a time without a cache."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import pytest
import torch

from engine.helpers import V, gpt2, keep_float64, llama, make
from fairlead.engine import counter
from fairlead.engine.decode import generate
from fairlead.engine.mixture import generate_mixture, mixed_logits

RNG = random.Random(1)
PROMPTS = [tuple(RNG.randrange(V) for _ in range(length)) for length in (5, 1, 11, 5)]
EOS = tuple(range(1, 8))
HOW: dict[str, Any] = {"n": 2, "max_tokens": 7, "eos_ids": EOS, "seed": 4, "rows": 3}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Two models of one vocabulary and unlike shapes, in float64."""
    torch.manual_seed(3)
    return make("llama-tied"), keep_float64(llama(False, num_hidden_layers=1, hidden_size=16).double())


def naive(models: Any, prompt: tuple[int, ...], mix: float, temperature: float, stream: Any) -> Any:
    row, logps = list(prompt), []
    for step in range(HOW["max_tokens"]):
        with torch.no_grad():
            ours, theirs = (model(input_ids=torch.tensor([row])).logits[0, -1] / temperature for model in models)
        logp = torch.log_softmax((1 - mix) * ours.log_softmax(-1) + mix * theirs.log_softmax(-1), -1)
        uniform = float(counter.uniforms(stream, step)[0])
        token = int((logp.exp().cumsum(-1) <= uniform).sum())
        row.append(token)
        logps.append(float(logp[token]))
        if token in EOS:
            break
    return tuple(row[len(prompt) :]), logps


@pytest.mark.parametrize(("mix", "temperature"), [(0.125, 1.0), (0.5, 1.0), (0.5, 0.7)])
def test_equal_to_one_row_at_a_time_without_a_cache(pair: Any, mix: float, temperature: float) -> None:
    got = generate_mixture(*pair, PROMPTS, mix=mix, temperature=temperature, **HOW)
    for number, (prompt, row) in enumerate(zip(PROMPTS, got, strict=True)):
        for sample, reply in enumerate(row):
            tokens, logps = naive(pair, prompt, mix, temperature, counter.streams(4, number, sample))
            assert reply.tokens == tokens
            assert reply.logprobs == pytest.approx(logps, abs=1e-9)
            assert reply.finish == ("stop" if tokens[-1] in EOS else "length")
    assert {reply.finish for row in got for reply in row} == {"stop", "length"}, "the test needs both"


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_at_its_ends_it_is_one_model_alone(pair: Any, temperature: float) -> None:
    for mix, alone in ((0, pair[0]), (1, pair[1])):
        mixture = generate_mixture(*pair, PROMPTS, mix=mix, temperature=temperature, **HOW)
        plain = generate(alone, PROMPTS, temperature=temperature, **HOW)
        for a, b in zip(chain(*mixture), chain(*plain), strict=True):
            assert (a.tokens, a.finish) == (b.tokens, b.finish)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-6)


def test_replies_are_named_by_their_keys_and_not_by_their_company(pair: Any) -> None:
    whole = generate_mixture(*pair, PROMPTS, mix=0.3, **HOW)
    split = generate_mixture(*pair, PROMPTS[2:], mix=0.3, keys=[2, 3], **HOW | {"rows": 1})
    assert [[reply.tokens for reply in row] for row in split] == [[r.tokens for r in row] for row in whole[2:]]


def test_the_modes_of_both_models_are_left_as_they_were(pair: Any) -> None:
    pair[0].train()
    pair[1].eval()
    generate_mixture(*pair, PROMPTS[:1], mix=0.3, **HOW)
    assert pair[0].training and not pair[1].training


def test_a_token_that_one_model_rules_out_is_ruled_out() -> None:
    ours = torch.tensor([[0.0, -torch.inf, 1.0]])
    theirs = torch.tensor([[-torch.inf, 0.0, 1.0]])
    assert mixed_logits([ours.clone(), theirs.clone()], mix=0.5).softmax(-1).tolist() == [[0, 0, 1]]
    assert torch.equal(mixed_logits([ours.clone(), theirs.clone()], mix=0), ours)
    assert torch.equal(mixed_logits([ours.clone(), theirs.clone()], mix=1), theirs)


def test_what_cannot_be_mixed_is_refused(pair: Any) -> None:
    for mix in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="0 is the model alone"):
            generate_mixture(*pair, PROMPTS, mix=mix)
    with pytest.raises(ValueError, match=f"vocabularies of {V} and 9"):
        generate_mixture(pair[0], llama(True, vocab_size=9), PROMPTS, mix=0.5)
    with pytest.raises(ValueError, match="row 1: the prompt has no tokens"):
        generate_mixture(*pair, [(1,), ()], mix=0.5)


def test_the_shorter_context_ends_a_reply(pair: Any) -> None:
    short = keep_float64(llama(True, max_position_embeddings=8).double())
    (reply,) = generate_mixture(pair[0], short, [PROMPTS[0]], mix=0.5, max_tokens=20)[0]
    assert len(reply.tokens) == 3 and reply.finish == "length"
    assert generate_mixture(pair[0], gpt2(True).double(), [], mix=0.5) == []

"""Decoding against one row at a time without a cache, and against a recompute on the training path."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch

from engine.helpers import MODELS, OTHERS, V, make, naive_reply
from fairlead.engine import counter, decode, decode_hf, dense, kv, llama, slots
from fairlead.engine.decode import Completion, generate
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import score
from fairlead.engine.sampling import Choice

RNG = random.Random(0)
PROMPTS = [tuple(RNG.randrange(V) for _ in range(RNG.randint(1, 18))) for _ in range(7)]
EOS = (1, 2, 3)
RUNNERS = [(name, tight) for name in MODELS for tight in ([True, False] if "gpt2" not in name else [False])]


def tokens(replies: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[reply.tokens for reply in row] for row in replies]


def from_recompute(model: Any, replies: list[list[Completion]], temperature: float) -> torch.Tensor:
    """How far each log-prob is from the training path's of the same token."""
    trees = [Tree(p, tuple(reply.tokens for reply in row)) for p, row in zip(PROMPTS, replies, strict=True)]
    again = score(model, trees, temperature=temperature or 1.0).logp_N
    drawn = [logp for row in replies for reply in row for logp in reply.logprobs]
    return (again - torch.tensor(drawn, dtype=again.dtype)).abs()


def far_from_recompute(model: Any, replies: list[list[Completion]], temperature: float) -> float:
    return float(from_recompute(model, replies, temperature).max())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("name", "tight"), RUNNERS)
def test_equal_to_one_row_at_a_time_without_a_cache(name: str, tight: bool, temperature: float) -> None:
    model = make(name).eval()
    got = generate(model, PROMPTS, n=2, max_tokens=9, temperature=temperature, eos_ids=EOS, seed=3, rows=5, tight=tight)
    for number, row in enumerate(got):
        for sample, reply in enumerate(row):
            stream = counter.streams(3, number, sample)
            uniforms = [float(counter.uniforms(stream, step)[0]) for step in range(9)]
            ids, logps = naive_reply(model, PROMPTS[number], 9, set(EOS), temperature, uniforms)
            assert list(reply.tokens) == ids
            assert max(abs(a - b) for a, b in zip(reply.logprobs, logps, strict=True)) < 1e-9
            assert reply.finish == ("stop" if ids[-1] in EOS else "length")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "tight"), RUNNERS)
def test_log_probs_agree_with_the_training_path(name: str, tight: bool, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    cut: dict[str, Any] = {"temperature": 1.0, "top_k": 6, "top_p": 0.8}
    for how in ({"temperature": 1.0}, {"temperature": 0.7}, {"temperature": 0.0}, cut):
        replies = generate(model, PROMPTS, n=3, max_tokens=12, eos_ids=EOS, rows=8, tight=tight, **how)
        far = far_from_recompute(model, replies, how["temperature"])
        assert far < (1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", ["llama-tied", "llama-untied", "qwen2-tied"])
def test_what_large_sizes_take_is_as_exact_and_says_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights, values mixed as bags, a cache that grows step by step, prompts prefilled a few at a time."""
    how: dict[str, Any] = {"n": 3, "max_tokens": 12, "eos_ids": EOS, "rows": 8, "tight": True}
    small = generate(make(name, torch.float32), PROMPTS, **how)
    for module, constant, value in ((dense, "WORTH", 0), (kv, "BAGS", 0), (kv, "SPARE", 1), (slots, "PREFILL_CPU", 20)):
        monkeypatch.setattr(module, constant, value)
    model = make(name, torch.float32)
    large = generate(model, PROMPTS, **how)
    assert tokens(large) == tokens(small)
    assert far_from_recompute(model, large, 1.0) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["llama-untied", "qwen2-tied"])
def test_a_model_too_large_to_copy_its_weights_says_the_same(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotated by a roll, where small ones have queries and keys laid out as pairs."""
    how: dict[str, Any] = {"n": 3, "max_tokens": 12, "eos_ids": EOS, "rows": 8, "tight": True}
    small = generate(make(name, dtype), PROMPTS, **how)
    monkeypatch.setattr(llama, "FUSE_BELOW", 0)
    large = generate(model := make(name, dtype), PROMPTS, **how)
    assert tokens(large) == tokens(small)
    assert far_from_recompute(model, large, 1.0) < (1e-9 if dtype == torch.float64 else 1e-5)


def test_the_cache_is_as_long_as_its_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama-tied")
    generate(model, PROMPTS[:1], max_tokens=1)
    monkeypatch.setattr(kv, "SPARE", 4)
    lengths, real = [], llama.step

    def seen(w: Any, ids: Any, place: torch.Tensor, cache: kv.Cache) -> torch.Tensor:
        lengths.append((int(place.max()) + 1, cache.length, len(cache.layers[0][0])))
        return real(w, ids, place, cache)

    monkeypatch.setattr(llama, "step", seen)
    prompts = [tuple(range(30)), *[(5, 6)] * 6]
    generate(model, prompts, max_tokens=16, rows=3)
    assert all(needed <= length for needed, length, _ in lengths)
    assert all(length <= (needed + needed // 4 + 4) / decode.slots.COMPACT for needed, length, _ in lengths)
    assert max(length for *_, length, _ in lengths) >= 46 > 24 >= lengths[-1][1]  # it grew, then shrank


@pytest.mark.parametrize("tight", [True, False])
def test_how_far_bfloat16_is_from_the_training_path(tight: bool, record_property: Any) -> None:
    model = make("llama-untied", torch.bfloat16)
    replies = generate(model, PROMPTS, n=3, max_tokens=12, eos_ids=EOS, rows=8, tight=tight)
    apart = from_recompute(model, replies, 1.0)
    mean, most = float(apart.mean()), float(apart.max())
    record_property("bfloat16 log-probs", f"mean {mean:.1e}, largest {most:.1e} apart")
    print(f"bfloat16, tight {tight}: log-probs are {mean:.1e} apart in the mean, {most:.1e} at most")
    assert mean < 0.1  # a check of sanity: eight bits of mantissa promise no more


@pytest.mark.parametrize("tight", [True, False])
def test_the_log_prob_of_the_draw_is_told_where_the_distribution_was_cut(tight: bool) -> None:
    model = make("llama-tied")
    how: dict[str, Any] = {"n": 2, "max_tokens": 6, "rows": 3, "tight": tight}
    for reply in (reply for row in generate(model, PROMPTS, **how) for reply in row):
        assert reply.cut_logprobs is None
    replies = generate(model, PROMPTS, temperature=1.3, top_k=5, **how)
    for prompt, row in zip(PROMPTS, replies, strict=True):
        for reply in row:
            z = model(input_ids=torch.tensor([prompt + reply.tokens])).logits[0, len(prompt) - 1 : -1] / 1.3
            kept = z.masked_fill(z < z.topk(5).values[:, -1:], -torch.inf).log_softmax(-1)
            own = kept.gather(1, torch.tensor(reply.tokens)[:, None])[:, 0]
            assert reply.cut_logprobs is not None
            torch.testing.assert_close(torch.tensor(reply.cut_logprobs, dtype=own.dtype), own, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "tight"), [("llama-tied", True), ("llama-tied", False), ("gpt2-untied", False)])
def test_replies_do_not_depend_on_their_company(name: str, tight: bool) -> None:
    model = make(name)
    more: dict[str, Any] = {"max_tokens": 12, "eos_ids": EOS, "seed": 9, "tight": tight}
    whole = tokens(generate(model, PROMPTS, n=3, rows=64, **more))
    assert tokens(generate(model, PROMPTS, n=3, rows=1, **more)) == whole
    assert tokens(generate(model, PROMPTS, n=3, rows=7, **more)) == whole
    assert tokens(generate(model, PROMPTS[:3], n=3, **more)) == whole[:3]
    assert tokens(generate(model, PROMPTS, n=1, **more)) == [row[:1] for row in whole]
    split = [*generate(model, PROMPTS[4:], n=3, keys=[4, 5, 6], **more)]
    assert tokens(split) == whole[4:]
    assert tokens(generate(model, PROMPTS, n=3, **{**more, "seed": 10})) != whole


def test_every_prompt_is_prefilled_once_and_no_step_runs_for_finished_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama-tied")
    prefilled, stepped = [], []
    prefill, step = llama.prefill, llama.step

    def counted_prefill(w: Any, prompts: Any) -> Any:
        prefilled.extend(prompts)
        return prefill(w, prompts)

    def counted_step(w: Any, ids: Any, *more: Any) -> Any:
        stepped.append(len(ids))
        return step(w, ids, *more)

    generate(model, PROMPTS, n=1, max_tokens=2)  # the first use of a model proves the decoder, with steps of its own
    monkeypatch.setattr(llama, "prefill", counted_prefill)
    monkeypatch.setattr(llama, "step", counted_step)
    replies = generate(model, PROMPTS, n=6, max_tokens=12, eos_ids=EOS, rows=6)
    assert sorted(prefilled) == sorted(PROMPTS)
    needed = sum(len(reply.tokens) - 1 for row in replies for reply in row)
    assert needed <= sum(stepped) <= 1.15 * needed  # the rest is the tail, between compactions


@pytest.mark.parametrize("name", ["llama-tied", "gpt2-tied", "gemma 2, window and soft caps", "mixtral"])
def test_the_generic_path_feeds_one_token_a_step(name: str) -> None:
    model: Any = make(name)
    generate(model, PROMPTS[:1], max_tokens=1, tight=False)  # proves the model, with whole rows
    fed: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, inputs: fed.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    generate(model, [PROMPTS[0], PROMPTS[0][::-1]], max_tokens=5, tight=False)
    handle.remove()
    assert fed == [len(PROMPTS[0]), 1, 1, 1, 1]


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_decode_as_one_row_at_a_time(name: str) -> None:
    model = make(name).eval()
    got = generate(model, PROMPTS[:4], n=2, max_tokens=7, eos_ids=EOS, seed=3, rows=5)
    for number, row in enumerate(got):
        for sample, reply in enumerate(row):
            uniforms = [float(counter.uniforms(counter.streams(3, number, sample), step)[0]) for step in range(7)]
            ids, logps = naive_reply(model, PROMPTS[number], 7, set(EOS), 1.0, uniforms)
            assert list(reply.tokens) == ids
            assert reply.logprobs == pytest.approx(logps, abs=1e-5)  # some modules compute in float32 throughout


def test_the_context_ends_a_reply() -> None:
    model = make("llama-tied")
    prompt = tuple(range(60))
    (reply,) = generate(model, [prompt], max_tokens=50, temperature=0.0)[0]
    assert len(reply.tokens) == 4 and reply.finish == "length"
    (other,) = generate(model, [prompt], max_tokens=50, temperature=0.0, tight=False)[0]
    assert other.tokens == reply.tokens


def test_an_end_token_at_once_and_no_prompts() -> None:
    model = make("llama-tied")
    (reply,) = generate(model, [(4, 5)], eos_ids=range(V), seed=1)[0]
    assert len(reply.tokens) == 1 and reply.finish == "stop"
    assert generate(model, []) == []


@pytest.mark.parametrize(
    ("prompts", "more", "message"),
    [
        ([(1,), ()], {}, "row 1: the prompt has no tokens"),
        ([(1,), (1,) * 64], {}, "row 1: a prompt of 64 tokens leaves no room"),
        ([(V,)], {}, f"row 0: a token id is outside the model's vocabulary of {V}"),
        ([(1,)], {"max_tokens": 0}, "max_tokens is 0"),
        ([(1,)], {"n": 0}, "n is 0"),
        ([(1,)], {"keys": [1, 2]}, "2 keys for 1 prompts"),
    ],
)
def test_what_cannot_be_decoded_is_refused(prompts: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(make("llama-tied"), prompts, **more)


def test_hooks_on_the_model_run() -> None:
    model: Any = make("llama-tied")
    plain = generate(model, PROMPTS, max_tokens=6, temperature=0.0)
    handle = model.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 3 + 1)
    assert tokens(generate(model, PROMPTS, max_tokens=6, temperature=0.0)) != tokens(plain)
    with pytest.raises(ValueError, match="carries forward hooks"):
        generate(model, PROMPTS, tight=True)
    handle.remove()
    assert tokens(generate(model, PROMPTS, max_tokens=6, temperature=0.0)) == tokens(plain)


# Planted bugs: each must break the comparison with the training path.


def temperature_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "Choice", lambda temperature, top_k, top_p: Choice(1.0, top_k, top_p))


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = llama.step
    monkeypatch.setattr(llama, "step", lambda w, ids, place, kv: real(w, ids, (place - 1).clamp_min(0), kv))


def stale_cache_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    real = llama.later
    monkeypatch.setattr(llama, "later", lambda *sizes: torch.zeros_like(real(*sizes)))


def padding_counted_as_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode_hf._forward
    monkeypatch.setattr(
        decode_hf, "_forward", lambda model, ids, mask, *more: real(model, ids, torch.ones_like(mask), *more)
    )


def wrongly_fed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """The generic path, with the inputs of the model's forward changed on their way."""
    real = decode_hf._forward

    def fed(model: Any, *more: Any) -> Any:
        forward = model.forward

        @functools.wraps(forward)  # its parameters are looked at
        def changed(**inputs: Any) -> Any:
            return forward(**(inputs | change(inputs)))

        with monkeypatch.context() as inside:
            inside.setattr(model, "forward", changed)
            return real(model, *more)

    monkeypatch.setattr(decode_hf, "_forward", fed)


def left_padding_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    wrongly_fed(monkeypatch, lambda inputs: {"attention_mask": torch.ones_like(inputs["attention_mask"])})


def off_by_one_after_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(inputs: Any) -> Any:
        return {"position_ids": inputs["position_ids"] + (inputs["input_ids"].shape[1] == 1)}

    wrongly_fed(monkeypatch, later)


@pytest.mark.parametrize(
    ("bug", "tight"),
    [
        (temperature_ignored, True),
        (temperature_ignored, False),
        (off_by_one, True),
        (stale_cache_visible, True),
        (padding_counted_as_positions, False),
        (left_padding_visible, False),
        (off_by_one_after_the_prompt, False),
    ],
)
def test_planted_bugs_break_the_comparison(bug: Any, tight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama-untied")
    generate(model, PROMPTS[:1], max_tokens=1)
    bug(monkeypatch)
    replies = generate(model, PROMPTS, n=2, max_tokens=8, temperature=0.6, rows=8, tight=tight)
    assert far_from_recompute(model, replies, 0.6) > 1e-3


def test_a_wrong_tight_pass_is_caught_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_one(monkeypatch)
    with pytest.raises(ValueError, match="its logits differ"):
        generate(make("llama-untied"), PROMPTS, tight=True)
    model = make("llama-untied", torch.float32)
    assert far_from_recompute(model, generate(model, PROMPTS, max_tokens=6), 1.0) < 1e-5

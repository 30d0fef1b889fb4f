"""Log-probs of packed, prefix-shared and padded batches against the model's own forward, one row at a time."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import helpers
from engine.helpers import MODELS, V, close, forest, gradients, make, naive
from fairlead.engine import attention, blocks, cascade, forward, layout, logprobs, whole
from fairlead.engine.dense import spare
from fairlead.engine.layout import Shape, Tree, pack
from fairlead.engine.logprobs import reply_logprobs, score, score_positions, token_logprobs
from support.live import Live

DTYPES = [torch.float64, torch.float32]


def weighted(logp_N: torch.Tensor, entropy_N: torch.Tensor) -> torch.Tensor:
    """A loss that gives every token its own weight, so that swapped tokens show."""
    weight = torch.linspace(-1, 1, len(logp_N), dtype=logp_N.dtype)
    return (logp_N * weight).sum() + (entropy_N * weight.flip(0)).sum()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_equal_one_row_at_a_time(name: str, dtype: torch.dtype, packed: bool) -> None:
    model, trees = make(name, dtype), forest(1)
    got = reply_logprobs(model, trees, temperature=0.7, entropy=True, chunk=16, packed=packed)
    assert got.entropy_N is not None
    ours = gradients(model, weighted(got.logp_N, got.entropy_N))
    logp_N, entropy_N = naive(make(name, dtype), trees, 0.7)
    reference = make(name, dtype)
    theirs = gradients(reference, weighted(*naive(reference, trees, 0.7)))
    close(got.logp_N, logp_N)
    close(got.entropy_N, entropy_N)
    assert ours.keys() == theirs.keys()
    for key in ours:
        close(ours[key], theirs[key])


def test_the_small_models_take_the_packed_path() -> None:
    for name in MODELS:
        assert forward.path_of(make(name)).packed


@pytest.mark.parametrize("trees", [forest(2, branches=(1,)), forest(2, branches=(4,)), [forest(2)[0]] * 3])
def test_forests_of_other_shapes(trees: list[Tree]) -> None:
    model = make("llama-untied")
    close(reply_logprobs(model, trees).logp_N, naive(model, trees)[0])


def test_masks_and_sums() -> None:
    trees = [
        Tree((1, 2), ((3, 4, 5), (6, 7)), ((True, False, True), None)),
        Tree((8,), ((9,),)),
        Tree((8,), ((9, 1),), ((False, False),)),
    ]
    model = make("llama-tied")
    got = reply_logprobs(model, trees)
    logp_N = naive(model, trees)[0]
    assert got.count_R.tolist() == [2, 2, 1, 0]
    close(got.logp_N, logp_N)
    close(got.sum_R(), torch.stack([logp_N[:2].sum(), logp_N[2:4].sum(), logp_N[4], logp_N[5:].sum()]))
    close(got.mean_R()[:3], torch.stack([logp_N[:2].mean(), logp_N[2:4].mean(), logp_N[4]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_and_company_do_not_matter(dtype: torch.dtype) -> None:
    model, trees = make("llama-untied", dtype), forest(4, trees=12)
    whole = torch.split(score(model, trees).logp_N, score(model, trees).count_R.tolist())
    order = list(range(12))
    random.Random(0).shuffle(order)
    shuffled = score(model, [trees[row] for row in order], token_budget=40)
    first = [sum(len(tree.replies) for tree in trees[:row]) for row in range(12)]
    expected = torch.cat([whole[first[row] + i] for row in order for i in range(len(trees[row].replies))])
    close(shuffled.logp_N, expected)
    alone = reply_logprobs(model, [trees[3]])
    close(alone.logp_N, torch.cat(whole[first[3] : first[4]]))


def test_micro_batches_add_up_to_the_whole_gradient() -> None:
    model, trees = make("qwen2-tied"), forest(6, trees=10)
    whole = gradients(model, reply_logprobs(model, trees).logp_N.sum())
    model.zero_grad()
    for rows in pack(trees, 45):
        reply_logprobs(model, [trees[row] for row in rows]).logp_N.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, whole[name])


def test_gradient_checkpointing_changes_nothing() -> None:
    model, trees = make("llama-tied"), forest(1)
    plain = gradients(model, reply_logprobs(model, trees).logp_N.sum())
    again: Any = make("llama-tied")
    again.activation_checkpointing_enable({"use_reentrant": False})
    recomputed = gradients(again, reply_logprobs(again, trees).logp_N.sum())
    for key in plain:
        close(recomputed[key], plain[key])


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [True, False])
def test_head_bias_scale_and_cap(cap: float | None, bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, 8, dtype=torch.float64, requires_grad=True)
    bias_V = torch.randn(V, dtype=torch.float64, requires_grad=True) if bias else None
    target = torch.randint(0, V, (11,))
    inputs = [hidden, weight] + ([bias_V] if bias_V is not None else [])

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        z = hidden @ weight.t() + (bias_V if bias_V is not None else 0)
        z = 0.5 * z
        z = z if cap is None else cap * torch.tanh(z / cap)
        logp = torch.log_softmax(z / 1.3, -1)
        return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    logp, entropy, _ = token_logprobs(hidden, forward.Head(weight, bias_V, 0.5, cap), target, 1.3, True, 4)
    assert entropy is not None
    ours = torch.autograd.grad(weighted(logp, entropy), inputs)
    close(logp, plain()[0])
    close(entropy, plain()[1])
    for mine, other in zip(ours, torch.autograd.grad(weighted(*plain()), inputs), strict=True):
        close(mine, other)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_chance_that_two_draws_are_the_same(cap: float | None) -> None:
    """log sum p^2 over the vocabulary, chunk by chunk; asking for it changes neither log-probs nor gradients."""
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, 8, dtype=torch.float64, requires_grad=True)
    target, head = torch.randint(0, V, (11,)), forward.Head(weight, None, 0.5, cap)
    logp, _, collision = token_logprobs(hidden, head, target, 1.3, chunk=4, collision=True)
    z = 0.5 * (hidden @ weight.t())
    p = torch.softmax((z if cap is None else cap * torch.tanh(z / cap)) / 1.3, -1)
    assert collision is not None and not collision.requires_grad
    close(collision, (p * p).sum(-1).log().detach())
    plain, _, none = token_logprobs(hidden, head, target, 1.3, chunk=4)
    assert none is None and torch.equal(logp, plain)
    for ours, other in zip(*(torch.autograd.grad(x.sum(), [hidden, weight]) for x in (logp, plain)), strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2-untied"])
def test_what_is_asked_of_a_forest_comes_row_by_row(name: str) -> None:
    model, trees = make(name), forest(3, 5)
    got = reply_logprobs(model, trees, entropy=True, collision=True)
    assert got.collision_N is not None and got.collision_N.shape == got.logp_N.shape
    alone = [reply_logprobs(model, [tree], collision=True).collision_N for tree in trees]
    close(got.collision_N, torch.cat([part for part in alone if part is not None]))


def test_score_positions_reads_options_after_prompts() -> None:
    model, prompts = make("gpt2-untied"), [(1, 2, 3), (4,), (5, 6)]
    got = score_positions(model, prompts, [(7, 8), (8, 9), (7, 7)])
    for row, options in enumerate([(7, 8), (8, 9), (7, 7)]):
        logits = model(input_ids=torch.tensor([prompts[row]])).logits[0, -1]
        close(got[row], torch.log_softmax(logits, -1)[list(options)].detach())


def test_scoring_switches_dropout_off_and_the_mode_back() -> None:
    model = make("gpt2-tied")
    model.transformer.drop.p = 0.5  # type: ignore[union-attr, assignment]
    model.eval()
    quiet = score(model, forest(1)).logp_N
    model.train()
    close(score(model, forest(1)).logp_N, quiet)
    assert model.training and model.transformer.drop.training  # type: ignore[union-attr]


@pytest.mark.parametrize(("more", "message"), [({"temperature": 0.0}, "temperature"), ({"chunk": 0}, "chunk")])
def test_settings_that_make_no_sense(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reply_logprobs(make("llama-tied"), forest(1), **more)


def test_rows_that_cannot_be_scored_are_named() -> None:
    with pytest.raises(ValueError, match="row 1: 71 tokens do not fit the model's context of 64"):
        reply_logprobs(make("llama-tied"), [Tree((1,), ((2,),)), Tree((1,) * 70, ((2,),))])


class Largest(TorchDispatchMode):
    """The most elements of any tensor that has the vocabulary as an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and V in leaf.shape[-1:] and leaf.numel() > V * 32:
                self.logits = max(self.logits, leaf.numel())
        return out


def test_no_tensor_of_logits_over_all_positions_ever() -> None:
    model, trees = make("llama-untied", torch.float32), forest(8, trees=30)
    forward.path_of(model)
    scored = sum(len(reply) for tree in trees for reply in tree.replies)
    assert scored > 300
    with Largest() as seen:
        reply_logprobs(model, trees, chunk=40, entropy=True).logp_N.sum().backward()
    assert 0 < seen.logits <= 40 * V
    with Largest() as control:
        naive(model, [Tree((1,) * 30, ((2,) * 30,))])[0].sum().backward()
    assert control.logits >= 60 * V  # the recorder does see what the plain way makes


@pytest.mark.parametrize("entropy", [False, True])
def test_without_a_chunk_size_logits_still_cover_the_scored_positions_alone(entropy: bool) -> None:
    model = make("llama-untied", torch.float32)
    trees = [Tree(tree.prompt * 4, tree.replies) for tree in forest(8, trees=12)]
    forward.path_of(model)
    scored = sum(len(reply) for tree in trees for reply in tree.replies)
    with Largest() as seen:
        reply_logprobs(model, trees, entropy=entropy).logp_N.sum().backward()
        score(model, trees)
    scored += spare(scored, torch.empty(0))
    assert 0 < seen.logits <= scored * V < sum(tree.tokens for tree in trees) * V / 2


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [None, 100])
def test_the_peak_of_memory_is_one_chunk_of_logits(chunk: int | None, entropy: bool) -> None:
    """Bytes alive at once over forward and backward, whatever their shapes, where logits outweigh all else.

    Entropies need their probabilities beside the logits, so two of a chunk.
    """
    words, scored = 20_000, 1200
    model = helpers.llama(True, vocab_size=words)
    trees = [Tree((number, *range(1, 20)), (tuple(range(20, 40)), tuple(range(30, 50)))) for number in range(30)]
    forward.path_of(model)
    with Live() as seen:
        got = reply_logprobs(model, trees, chunk=chunk, entropy=entropy)
        loss = weighted(got.logp_N, got.logp_N if got.entropy_N is None else got.entropy_N)
        loss.backward()  # type: ignore[no-untyped-call]
    one = (chunk or logprobs.ELEMENTS["cpu"] // words) * words * 4
    rest = 20_000_000  # hidden states, attention's softmax, and twice the gradient of embedding and head
    assert one * (1 + entropy) < seen.most < one * (1 + entropy) + rest < scored * words * 4
    with Live() as control:
        naive(model, trees[:1])[0].sum().backward()
    assert control.most >= 2 * 40 * words * 4  # the recorder does see what the plain way makes


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_heads_are_summed_in_float32_and_rounded_once(dtype: torch.dtype, chunk: int | None) -> None:
    """Against float64 arithmetic on the very same 16-bit numbers."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 96).to(dtype), (0.3 * torch.randn(300, 96)).to(dtype)
    target = torch.randint(0, 300, (200,))
    narrow = [hidden.requires_grad_(), weight.requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    logp, entropy, _ = token_logprobs(narrow[0], forward.Head(narrow[1]), target, 0.7, True, chunk)
    assert entropy is not None and logp.dtype == entropy.dtype == torch.float32
    every = torch.log_softmax(wide[0] @ wide[1].t() / 0.7, -1)
    truth, spread = every.gather(1, target[:, None])[:, 0], -(every.exp() * every).sum(-1)
    assert float((logp - truth).detach().norm() / truth.detach().norm()) < 1e-6
    assert float((entropy - spread).detach().norm() / spread.detach().norm()) < 1e-6
    ours = torch.autograd.grad(weighted(logp, entropy), narrow)
    half_a_step = torch.finfo(dtype).eps / 2
    for mine, other in zip(ours, torch.autograd.grad(weighted(truth, spread), wide), strict=True):
        assert mine.dtype == dtype
        limit = 1.01 * half_a_step * other.abs() + 1e-5 * other.abs().max()
        assert bool(((mine.double() - other).abs() <= limit).all())


@pytest.mark.parametrize("chunk", [None, 16])
def test_a_second_backward_gives_the_same_gradients(chunk: int | None) -> None:
    model, trees = make("llama-tied"), forest(1)
    got = reply_logprobs(model, trees, chunk=chunk)
    got.logp_N.sum().backward(retain_graph=True)
    first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    second = gradients(model, got.logp_N.sum())
    for key in first:
        close(second[key], first[key])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama-tied", "gpt2-tied"])
def test_scores_are_those_of_padded_batches_of_either_side(name: str, side: str) -> None:
    model, trees = make(name, torch.float32).eval(), forest(4, trees=12)
    rows = [(tree.prompt, reply) for tree in trees for reply in tree.replies]
    longest = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    ends = []
    for row, (prompt, reply) in enumerate(rows):
        length = len(prompt) + len(reply)
        start = longest - length if side == "left" else 0
        ids[row, start : start + length] = torch.tensor(prompt + reply)
        mask[row, start : start + length] = 1
        ends.append(start + length)
    position = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        logp = model(input_ids=ids, attention_mask=mask, position_ids=position).logits.log_softmax(-1)
    theirs = torch.stack(
        [
            logp[row, end - len(reply) - 1 : end - 1].gather(1, torch.tensor(reply)[:, None]).sum()
            for row, ((_, reply), end) in enumerate(zip(rows, ends, strict=True))
        ]
    )
    orders = random.Random(1)
    for budget in (60, 10_000):
        order = list(range(len(trees)))
        orders.shuffle(order)
        got = score(model, [trees[i] for i in order], token_budget=budget).sum_R()
        first = [sum(len(tree.replies) for tree in trees[:i]) for i in range(len(trees))]
        back = torch.cat([torch.arange(first[i], first[i] + len(trees[i].replies)) for i in order])
        torch.testing.assert_close(got, theirs[back], rtol=1e-5, atol=1e-5)


# Planted bugs: each must break the comparison above, and where the path is tried first, be refused there.


def positions_not_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layout.lay_out

    def mutant(*args: Any, **more: Any) -> layout.Batch:
        batch = real(*args, **more)
        batch.position_T.copy_(torch.arange(batch.tokens) % 60)
        return batch

    monkeypatch.setattr(logprobs, "lay_out", mutant)
    monkeypatch.setattr(forward, "lay_out", mutant)


def siblings_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.plan
    monkeypatch.setattr(
        attention, "plan", lambda shapes, device, **more: real(tuple(Shape(s.tokens, ()) for s in shapes), device)
    )


def trees_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.plan
    monkeypatch.setattr(
        attention, "plan", lambda shapes, device, **more: real((Shape(sum(s.tokens for s in shapes), ()),), device)
    )


def branches_see_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, flash = blocks._seen, cascade._flash
    monkeypatch.setattr(blocks, "_seen", lambda *args: torch.ones_like(seen(*args)))
    monkeypatch.setattr(cascade, "_flash", lambda q, k, v, p, causal, **more: flash(q, k, v, p, False, **more))
    groups = whole.groups
    monkeypatch.setattr(
        whole, "groups", lambda *args: tuple(replace(g, mask_m1q1k=g.mask_m1q1k.clamp(min=0.0)) for g in groups(*args))
    )


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layout.lay_out

    def mutant(*args: Any, **more: Any) -> layout.Batch:
        batch = real(*args, **more)
        batch.source_N.add_(1).clamp_(max=batch.tokens - 1)
        return batch

    monkeypatch.setattr(logprobs, "lay_out", mutant)


def temperature_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    real = logprobs.token_logprobs
    monkeypatch.setattr(logprobs, "token_logprobs", lambda h, head, y, t, *more: real(h, head, y, 1.0, *more))


BUGS = [positions_not_restarted, siblings_see_each_other, trees_see_each_other, branches_see_ahead]


@pytest.mark.parametrize("bug", [*BUGS, off_by_one, temperature_ignored])
def test_planted_bugs_break_the_comparison(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    trees = forest(1)
    got = reply_logprobs(make("llama-untied"), trees, temperature=0.7, packed=True)
    with pytest.raises(AssertionError):
        close(got.logp_N, naive(make("llama-untied"), trees, 0.7)[0])


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_bugs_are_caught_when_the_path_is_tried(
    bug: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    if bug is positions_not_restarted:
        monkeypatch.setattr(logprobs, "lay_out", layout.lay_out)
    assert not forward.path_of(make("llama-untied", dtype)).packed

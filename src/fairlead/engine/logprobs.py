"""Log-probs of reply tokens: the one primitive all methods are made of.

Only positions that predict a scored token reach the LM head, a chunk at a time, in float32 (float64 for a float64
model). No tensor of logits over all positions exists in the forward or the backward pass: backward computes each
chunk's logits again and folds them into the gradients of the hidden states and of the head's weights at once.

Axes: T packed tokens, N scored tokens, C scored tokens of one chunk, R replies, P prompts, K options, V vocabulary,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fairlead.engine.dense import matmul, spare, weight_gradient
from fairlead.engine.forward import (
    Head,
    context_of,
    evaluating,
    head_of,
    hidden_states,
    logits,
    path_of,
    vocabulary_of,
)
from fairlead.engine.layout import Batch, Tree, check, lay_out, pack

# Logits held at once where no chunk is asked for: about a CPU's last cache; on a GPU enough rows to fill it.
ELEMENTS = {"cpu": 8_000_000, "cuda": 512_000_000}
# Tokens scored at once on a CPU, whatever more the budget allows: larger batches leave its caches, and take a fifth
# longer per token (measured with widths of 192 and 256).
SCORED_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class ReplyLogprobs:
    """Log-probs of scored tokens, flat, reply after reply in the order of the trees given.

    logp_N      log-prob of the token at the temperature asked for, float32 (float64 for a float64 model)
    entropy_N   entropy of the distribution it was drawn from, in nats, if asked for
    collision_N log-prob that two tokens drawn from that distribution are the same, log sum p^2, if asked for; without
                a gradient
    reply_N     the reply each token belongs to
    count_R     scored tokens of each reply
    """

    logp_N: torch.Tensor
    reply_N: torch.Tensor
    count_R: torch.Tensor
    entropy_N: torch.Tensor | None = None
    collision_N: torch.Tensor | None = None

    def sum_R(self, values_N: torch.Tensor | None = None) -> torch.Tensor:
        """Log-prob of each reply; or sums over each reply of other per-token values."""
        values_N = self.logp_N if values_N is None else values_N
        return values_N.new_zeros(len(self.count_R)).index_add(0, self.reply_N, values_N)

    def mean_R(self) -> torch.Tensor:
        """Log-prob per scored token of each reply; nan for a reply with every token masked."""
        return self.sum_R() / self.count_R


def reply_logprobs(
    model: nn.Module,
    trees: Sequence[Tree] | Batch,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    collision: bool = False,
    chunk: int | None = None,
    packed: bool | None = None,
) -> ReplyLogprobs:
    """Log-probs of every scored reply token of one micro-batch; gradients flow to all of the model's weights.

    temperature   divides the logits; above 0
    chunk         rows of logits held at once; by default as many as fit a fixed amount of memory
    packed        forces the packed or the padded path (see forward.path_of, which decides by default)
    Raises ValueError naming the row for what cannot be scored (see layout.check).
    """
    batch = batch_of(model, trees)
    source_N, target_N = batch.source_N, batch.target_N
    count = len(source_N)
    more = spare(count, head_of(model).weight_VD) if count else 0
    if more:  # tokens that nobody reads, to a count that recurs
        source_N, target_N = (torch.cat([x, x[-1:].expand(more)]) for x in (source_N, target_N))
    hidden_ND = hidden_states(model, batch, rows=source_N, packed=packed)
    head = head_of(model)  # only now: weights that are split over processes are whole after a forward pass
    logp_N, *asked = token_logprobs(hidden_ND, head, target_N, temperature, entropy, chunk, collision)
    if more:
        logp_N, asked = logp_N[:count], [None if values_N is None else values_N[:count] for values_N in asked]
    return ReplyLogprobs(logp_N, batch.reply_N, batch.count_R, *asked)


def score(
    model: nn.Module,
    trees: Sequence[Tree],
    token_budget: int = 8192,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ReplyLogprobs:
    """`reply_logprobs` of many trees without gradients, dropout off, packed into micro-batches.

    The result is in the order of the trees, on the CPU. A tree above the budget widens it to that tree: scoring keeps
    no activations. `progress` is called with the number of trees done after each micro-batch.
    """
    replies = [len(tree.replies) for tree in trees]
    check(trees, context=context_of(model), vocabulary=vocabulary_of(model))
    parts: list[tuple[torch.Tensor, torch.Tensor | None]] = [(torch.empty(0), None)] * sum(replies)
    first = torch.tensor([0, *replies]).cumsum(0).tolist()
    with torch.no_grad(), evaluating(model):
        for rows in pack(trees, scoring_budget(model, trees, token_budget)):
            got = reply_logprobs(model, [trees[row] for row in rows], temperature=temperature, entropy=entropy)
            sizes = got.count_R.tolist()
            logps = torch.split(got.logp_N.cpu(), sizes)
            entropies: Sequence[torch.Tensor | None] = [None] * len(sizes)
            if got.entropy_N is not None:
                entropies = torch.split(got.entropy_N.cpu(), sizes)
            places = [place for row in rows for place in range(first[row], first[row + 1])]
            for place, logp, spread in zip(places, logps, entropies, strict=True):
                parts[place] = (logp, spread)
            if progress is not None:
                progress(len(rows))
    count_R = torch.tensor([len(logp) for logp, _ in parts], dtype=torch.long)
    spreads = [spread for _, spread in parts if spread is not None]
    return ReplyLogprobs(
        torch.cat([logp for logp, _ in parts]) if parts else torch.empty(0),
        torch.repeat_interleave(torch.arange(len(parts)), count_R),
        count_R,
        torch.cat(spreads) if spreads else None,
    )


def score_positions(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[int]],
    token_budget: int = 8192,
) -> torch.Tensor:
    """Log-probs (P, K) of K one-token options as the next token of each prompt, over the whole vocabulary.

    No gradients. One forward pass per prompt serves all its options. `options` holds one row of K token
    ids per prompt; for options of several tokens, `score` trees whose replies they are.
    """
    if len(options) != len(prompts) or len({len(row) for row in options}) > 1:
        raise ValueError("options: give one row of option ids per prompt, all of the same length")
    trees = [
        Tree(tuple(prompt), tuple((option,) for option in row)) for prompt, row in zip(prompts, options, strict=True)
    ]
    return score(model, trees, token_budget).logp_N.view(len(prompts), -1)


def score_next(
    model: nn.Module,
    trees: Sequence[Tree],
    options: Sequence[Sequence[int]],
    token_budget: int = 8192,
) -> torch.Tensor:
    """Log-probs (R, K) of K one-token options as the next token after each branch, over the whole vocabulary.

    float32 (float64 for a float64 model), on the CPU.
    For questions that share a beginning: the root is what they share, every branch the rest of one question, and
    `options` holds one row of K token ids per branch, in the order of the trees. No gradients.
    """
    sizes = [len(tree.replies) for tree in trees]
    if len(options) != sum(sizes) or len({len(row) for row in options}) > 1:
        raise ValueError("options: give one row of option ids per branch, all of the same length")
    if not options:
        return torch.empty(0, 0)
    check(trees, context=context_of(model), vocabulary=vocabulary_of(model))
    first = torch.tensor([0, *sizes]).cumsum(0).tolist()
    wanted_RK = torch.tensor([list(row) for row in options])
    head = head_of(model)
    out_RK = torch.empty(wanted_RK.shape, dtype=torch.promote_types(head.weight_VD.dtype, torch.float32))
    with torch.no_grad(), evaluating(model):
        for rows in pack(trees, scoring_budget(model, trees, token_budget)):
            batch = batch_of(model, [trees[row] for row in rows], keep_last=True)
            last_RD = hidden_states(model, batch, rows=batch.last_R)
            places = [place for row in rows for place in range(first[row], first[row + 1])]
            target_RK = wanted_RK[places].to(last_RD.device)
            each_ND = last_RD.repeat_interleave(target_RK.shape[1], dim=0)
            logp_N, _, _ = token_logprobs(each_ND, head, target_RK.flatten())
            out_RK[places] = logp_N.view(target_RK.shape).cpu()
    return out_RK


def scoring_budget(model: nn.Module, trees: Sequence[Tree], token_budget: int) -> int:
    """Tokens of one micro-batch for scoring: it keeps no activations, so a tree above the budget just widens it."""
    if head_of(model).weight_VD.device.type == "cpu":
        token_budget = min(token_budget, SCORED_AT_ONCE)
    return max([token_budget, *(tree.tokens for tree in trees)])


def batch_of(model: nn.Module, trees: Sequence[Tree] | Batch, *, keep_last: bool = False) -> Batch:
    """Check and lay out trees for a model, on its device."""
    if isinstance(trees, Batch):
        return trees
    path_of(model)
    check(trees, context=context_of(model), vocabulary=vocabulary_of(model))
    return lay_out(trees, keep_last=keep_last, device=head_of(model).weight_VD.device)


def token_logprobs(
    hidden_ND: torch.Tensor,
    head: Head,
    target_N: torch.Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
    collision: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-probs (and entropies, and log sum p^2) of target tokens from hidden states, chunk by chunk."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probs need one above 0")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 row")
    size = chunk or max(16, ELEMENTS.get(hidden_ND.device.type, 8_000_000) // head.weight_VD.shape[0])
    shape = (head.scale, head.cap)
    logp_N, entropy_N, collision_N = _apply(
        hidden_ND, head.weight_VD, head.bias_V, target_N, shape, temperature, entropy, size, collision
    )
    return logp_N, entropy_N if entropy else None, collision_N if collision else None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_N: torch.Tensor,
        shape: tuple[float, float | None],
        temperature: float,
        entropy: bool,
        chunk: int,
        collision: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        head = Head(weight_VD, bias_V, *shape)
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        logp_N = hidden_ND.new_empty(len(target_N), dtype=dtype)
        entropy_N = torch.empty_like(logp_N) if entropy else logp_N.new_empty(0)
        collision_N = torch.empty_like(logp_N) if collision else logp_N.new_empty(0)
        parts = _chunks(len(target_N), chunk)
        logp_CV = None
        for part in parts:
            logp_CV = None  # let go of one chunk before the next is made
            logp_CV = _log_softmax(head, hidden_ND[part], temperature)
            logp_N[part] = logp_CV.gather(1, target_N[part, None])[:, 0]
            if entropy:
                entropy_N[part] = -(logp_CV.exp().mul_(logp_CV)).sum(1)
            if collision:
                collision_N[part] = logp_CV.exp().square_().sum(1).log_()
        ctx.mark_non_differentiable(collision_N)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, target_N, entropy_N)
        ctx.settings = (shape, temperature, entropy, chunk)
        # Backward begins here, so the last chunk may stay as it is: no more memory than backward needs for it anyway.
        ctx.kept = logp_CV if any(ctx.needs_input_grad[:3]) else None
        return logp_N, entropy_N, collision_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        hidden_ND, weight_VD, bias_V, target_N, entropy_N = ctx.saved_tensors
        shape, temperature, entropy, chunk = ctx.settings
        head, (scale, cap) = Head(weight_VD, bias_V, *shape), shape
        grad_N, grad_entropy_N = grads[:2]
        dtype = grad_N.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        weight = weight_VD.to(dtype)
        d_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        d_weight: torch.Tensor | None = None
        d_bias = torch.zeros(len(weight), dtype=dtype, device=weight.device) if needs_bias else None
        for part in reversed(_chunks(len(target_N), chunk)):
            logp_CV, ctx.kept = ctx.kept, None  # the last chunk's, in the first round only; a second backward has none
            if logp_CV is None:
                logp_CV = _log_softmax(head, hidden_ND[part], temperature)
            slope_CV = None
            if cap is not None:  # z = cap tanh(raw / cap), so dz/draw = 1 - (z / cap)^2
                slope_CV = logits(head, hidden_ND[part]).div_(cap).square_().neg_().add_(1)
            # logp[y] = z[y] - logsumexp(z): d/dz = onehot(y) - p.   H = -sum p logp: d/dz = -p (logp + H).
            if entropy:
                p_CV = logp_CV.exp()
                d_CV = logp_CV.add_(entropy_N[part, None]).mul_(grad_entropy_N[part, None]).add_(grad_N[part, None])
                d_CV.mul_(p_CV).neg_()
                del p_CV
            else:
                d_CV = logp_CV.exp_().mul_(-grad_N[part, None])
            d_CV.scatter_add_(1, target_N[part, None], grad_N[part, None])
            if slope_CV is not None:
                d_CV *= slope_CV
            if scale != temperature:
                d_CV *= scale / temperature
            if d_hidden is not None:
                d_hidden[part] = matmul(d_CV, weight).to(hidden_ND.dtype)
            if needs_weight:
                d_part = weight_gradient(d_CV, hidden_ND[part].to(dtype))
                d_weight = d_part if d_weight is None else d_weight.add_(d_part)
            if d_bias is not None:
                d_bias += d_CV.sum(0)
            del logp_CV, d_CV, slope_CV  # before the next chunk is made
        if needs_weight:
            d_weight = torch.zeros_like(weight) if d_weight is None else d_weight
            d_weight = d_weight.to(weight_VD.dtype)
        if d_bias is not None:
            d_bias = d_bias.to(bias_V.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None, None, None


def _log_softmax(head: Head, hidden_CD: torch.Tensor, temperature: float) -> torch.Tensor:
    z_CV = logits(head, hidden_CD)
    if temperature != 1.0:
        z_CV /= temperature
    if z_CV.device.type == "cpu":
        return torch.log_softmax(z_CV, -1, out=z_CV)  # its kernel reads a row before it writes it
    return torch.log_softmax(z_CV, -1)


_apply: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = _TokenLogprobs.apply  # torch leaves it untyped


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]

"""What a pairwise loss reads of a micro-batch, and which loss a configuration means.

Axes: B pairs of a micro-batch, R replies (2 per pair: chosen, rejected; TPO's gold one behind them), P pairs of the
data set, N reply tokens. Log-probs are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fairlead.engine.logprobs import ReplyLogprobs
from fairlead.errors import InputError
from fairlead.exchange import Preference
from fairlead.methods import losses
from fairlead.methods.config import (
    CPOConfig,
    DPOConfig,
    IPOConfig,
    ORPOConfig,
    PairwiseConfig,
    SimPOConfig,
    TPOConfig,
)
from fairlead.methods.config_losses import COUPLED, PER_TOKEN
from fairlead.methods.rows import Rows

Loss = Callable[[Tensor, Tensor], Tensor]
SIDES = ("chosen", "rejected")  # the first replies of every row; a gold one may follow


@dataclass(frozen=True, slots=True)
class Labels:
    """What the data says of each pair, [P]: P(chosen is better), and by how much it should lead (0: not asked)."""

    strength_P: Tensor
    margin_P: Tensor

    @property
    def ties(self) -> int:
        return int((self.strength_P == 0.5).sum())


@dataclass(frozen=True, slots=True)
class Pairs:
    """B pairs: log-probs of both replies under the policy (gradients flow) and, where the loss reads it, the reference.

    These are sums over a reply's tokens, the tail weighed by `ld_alpha`; `imitated_B` is the plain sum of the reply
    whose NLL is taken, the chosen or the gold one. `*_tokens_B` count scored tokens. `weight_B`, without a gradient,
    is what the pair's loss is multiplied by.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    imitated_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    imitated_tokens_B: Tensor
    label_B: Tensor
    margin_B: Tensor
    ref_chosen_B: Tensor | None = None
    ref_rejected_B: Tensor | None = None
    weight_B: Tensor | None = None


def labels_of(preferences: Sequence[Preference], rows: Rows, config: PairwiseConfig) -> Labels:
    """Strength and margin of the rows in training. Raises InputError naming a row that lacks what the loss asks for."""
    kept = [preferences[i] for i in rows.source]
    weight = config.margin if isinstance(config, DPOConfig) else 0.0
    if weight:
        bare = [i for i, pair in enumerate(kept) if pair.margin is None]
        if bare:
            raise InputError(
                f"{rows.place(bare[0])}: margin is {weight}, but {len(bare):,} rows have no margin of their own, this "
                "one first. Give every row one, or set margin: 0"
            )
    if isinstance(config, DPOConfig) and config.coupled:
        soft = [i for i, pair in enumerate(kept) if pair.strength < 1]
        if soft:
            raise InputError(
                f"{rows.place(soft[0])}: strength {kept[soft[0]].strength} (and {len(soft) - 1:,} more below 1), but "
                f"loss: {_coupled(config)} compares distributions of rewards and knows no label of one pair. Take them "
                "out"
            )
    margins = [weight * (pair.margin or 0.0) if weight else 0.0 for pair in kept]
    return Labels(
        torch.tensor([pair.strength for pair in kept], dtype=torch.float64),
        torch.tensor(margins, dtype=torch.float64),
    )


def pairs_of(
    logp: ReplyLogprobs, rows: Sequence[int], labels: Labels, reference_BR: Tensor | None, config: PairwiseConfig
) -> Pairs:
    """The pairs of a micro-batch from its log-probs and the reference's; `rows` are their indices into `labels`."""
    tail, width = tail_weight(config), len(SIDES) + config.reads_gold
    sums, tokens = reply_sums(logp, tail).view(-1, width), logp.count_R.view(-1, width)
    chosen_B, rejected_B, imitated = sums[:, 0], sums[:, 1], imitated_reply(config)
    at = list(rows)
    ref = None if reference_BR is None else reference_BR.to(chosen_B)
    return Pairs(
        chosen_B,
        rejected_B,
        sums[:, imitated] if tail == 1.0 else logp.sum_R().view(-1, width)[:, imitated],
        tokens[:, 0],
        tokens[:, 1],
        tokens[:, imitated],
        labels.strength_P[at].to(chosen_B),
        labels.margin_P[at].to(chosen_B),
        None if ref is None else ref[:, 0],
        None if ref is None else ref[:, 1],
        on_policy_weights(logp) if weighted(config) else None,
    )


def imitated_reply(config: PairwiseConfig) -> int:
    """Which reply of a row the NLL term imitates: the chosen one, or the gold one behind both."""
    return len(SIDES) if config.reads_gold else 0


def weighted(config: PairwiseConfig) -> bool:
    """Whether pairs count by how likely the policy is to write them; `reply_logprobs` is then asked for `collision`."""
    return isinstance(config, DPOConfig) and config.on_policy


def on_policy_weights(logp: ReplyLogprobs) -> Tensor:
    """By how much a pair is the policy's own, [B], no gradient: WPO, Zhou et al. 2024 (arXiv 2406.11827), eq. 2.

    The product over both replies of exp(mean over its tokens of log p(token) - log sum_v p(v)^2). The sum is the
    probability that a token drawn from the policy there has on average (the paper's sampled alignment), so that a reply
    of the policy's own weighs about 1 however many words would have fitted.
    """
    assert logp.collision_N is not None
    with torch.no_grad():
        mean_R = logp.sum_R(logp.logp_N - logp.collision_N) / logp.count_R
        return mean_R.view(-1, 2).sum(1).exp()


def tail_weight(config: PairwiseConfig) -> float:
    """Weight of the tokens by which the longer reply of a pair is longer."""
    return config.ld_alpha if isinstance(config, DPOConfig) else 1.0


def reply_sums(logp: ReplyLogprobs, tail: float = 1.0) -> Tensor:
    """Log-prob of each reply, [R], nats; with `tail` below 1 length-desensitised.

    LD-DPO, Liu et al. 2024 (arXiv 2409.06411): tokens beyond the length of the pair's shorter reply count `tail` times.
    Lengths are counted in scored tokens.
    """
    if tail == 1.0:
        return logp.sum_R()
    count_R = logp.count_R
    first_R = count_R.cumsum(0) - count_R
    place_N = torch.arange(len(logp.reply_N), device=count_R.device) - first_R[logp.reply_N]
    shorter_R = count_R.view(-1, 2).amin(1).repeat_interleave(2)
    weight_N = torch.where(place_N < shorter_R[logp.reply_N], 1.0, tail).to(logp.logp_N)
    return logp.sum_R(logp.logp_N * weight_N)


# --------------------------------------------------------------------------------------------------- the loss


def scores_of(pairs: Pairs, config: PairwiseConfig) -> tuple[Tensor, Tensor]:
    """What the loss compares, chosen and rejected, [B]: log-ratios to the reference, means per token, and so on."""
    chosen_B, rejected_B = pairs.chosen_B, pairs.rejected_B
    if config.needs_reference:
        assert pairs.ref_chosen_B is not None and pairs.ref_rejected_B is not None
        chosen_B, rejected_B = chosen_B - pairs.ref_chosen_B, rejected_B - pairs.ref_rejected_B
    if isinstance(config, DPOConfig):
        chosen_B = losses.divergence_score(chosen_B, config.divergence, alpha=config.alpha)
        rejected_B = losses.divergence_score(rejected_B, config.divergence, alpha=config.alpha)
    per_token = isinstance(config, SimPOConfig | ORPOConfig)
    if per_token or (isinstance(config, DPOConfig | IPOConfig | TPOConfig) and config.length == "mean"):
        chosen_B, rejected_B = chosen_B / pairs.chosen_tokens_B, rejected_B / pairs.rejected_tokens_B
    if isinstance(config, SimPOConfig):
        chosen_B = losses.shaped_score(chosen_B, alpha=config.alpha)
        rejected_B = losses.shaped_score(rejected_B, alpha=config.alpha)
    return chosen_B, rejected_B


def preference_loss(pairs: Pairs, config: PairwiseConfig) -> Tensor:
    """The loss of each pair, [B], without the NLL term. Coupled losses (AOT) are not in it: see `coupled.py`."""
    chosen_B, rejected_B = scores_of(pairs, config)
    match config:
        case SimPOConfig():
            return losses.soft(
                partial(losses.simpo, beta=config.beta, gamma=config.gamma), chosen_B, rejected_B, pairs.label_B
            )
        case ORPOConfig():
            return config.odds * losses.soft(losses.orpo, chosen_B, rejected_B, pairs.label_B)
        case CPOConfig():
            return losses.soft(partial(losses.cpo, beta=config.beta), chosen_B, rejected_B, pairs.label_B)
        case TPOConfig():
            loss: Loss = {
                "sigmoid": partial(losses.tpo, beta=config.beta, gamma=config.gamma),
                "hinge": partial(losses.hinge, beta=config.beta),
                "ipo": partial(losses.ipo, beta=config.beta),
            }[config.loss]
            return losses.soft(loss, chosen_B, rejected_B, pairs.label_B)
        case IPOConfig():
            return losses.soft(partial(losses.ipo, beta=config.beta), chosen_B, rejected_B, pairs.label_B)
        case DPOConfig():
            loss_B = _dpo_family(chosen_B, rejected_B, pairs, config)
            return loss_B if pairs.weight_B is None else pairs.weight_B * loss_B
    raise TypeError(f"no pairwise loss for {type(config).__name__}")


def _dpo_family(chosen_B: Tensor, rejected_B: Tensor, pairs: Pairs, config: DPOConfig) -> Tensor:
    """The weighted sum of the losses of single pairs, [B]; coupled ones (AOT) are added over the step: `coupled.py`."""
    loss_B = torch.zeros_like(chosen_B)
    for name, weight in config.mixture.items():
        if name not in COUPLED:
            loss_B = loss_B + weight * _one_loss(name, chosen_B, rejected_B, pairs, config)
    return loss_B


def _one_loss(name: str, chosen_B: Tensor, rejected_B: Tensor, pairs: Pairs, config: DPOConfig) -> Tensor:
    noise, beta = config.label_smoothing, config.beta
    # A share `noise` of the labels is wrong: what the label then says of the pair.
    smooth_B = pairs.label_B * (1 - noise) + (1 - pairs.label_B) * noise
    if name in PER_TOKEN:
        chosen_B, rejected_B = chosen_B / pairs.chosen_tokens_B, rejected_B / pairs.rejected_tokens_B
    if name == "exo":
        return losses.exo(chosen_B, rejected_B, beta=beta, label_B=smooth_B)
    if name == "robust":  # it takes the wrong labels out again by itself
        return losses.soft(partial(losses.robust, beta=beta, noise=noise), chosen_B, rejected_B, pairs.label_B)
    if config.margin:
        chosen_B = chosen_B - pairs.margin_B / beta
    loss: Loss = {
        "sigmoid": partial(losses.sigmoid, beta=beta),
        "sigmoid_norm": partial(losses.sigmoid, beta=beta),
        "hinge": partial(losses.hinge, beta=beta),
        "ipo": partial(losses.ipo, beta=beta),
        "ipo_norm": partial(losses.ipo, beta=beta),
        "discopop": partial(losses.discopop, beta=beta, tau=config.tau),
        "nca": partial(losses.nca, beta=beta),
        "bco_pair": partial(losses.bco_pair, beta=beta),
        "sppo": partial(losses.sppo, beta=beta),
        "apo_zero": partial(losses.apo_zero, beta=beta),
        "apo_down": partial(losses.apo_down, beta=beta),
    }[name]
    return losses.soft(loss, chosen_B, rejected_B, smooth_B)


def _coupled(config: DPOConfig) -> str:
    return next(name for name in config.mixture if name in COUPLED)


def nll_loss(pairs: Pairs, config: PairwiseConfig, *, step_rows: int, step_tokens: int) -> Tensor:
    """The imitated (chosen or gold) replies' NLL, a scalar: this micro-batch's share of the mean over a step.

    `step_rows` and `step_tokens` count the pairs and the imitated replies' tokens of the whole step.
    """
    if config.nll_mean == "tokens":
        return losses.sft_nll(pairs.imitated_B, tokens=step_tokens)
    return losses.chosen_nll(pairs.imitated_B, pairs.imitated_tokens_B).sum() / step_rows


def reward_margin(pairs: Pairs, config: PairwiseConfig) -> Tensor:
    """By how much the loss finds chosen better than rejected, [B], no gradient: beta times the scores' difference.

    For ORPO the difference of log odds.
    """
    with torch.no_grad():
        chosen_B, rejected_B = scores_of(pairs, config)
        if isinstance(config, ORPOConfig):
            return losses.log_odds(chosen_B) - losses.log_odds(rejected_B)
        beta: float = config.beta  # type: ignore[attr-defined]  # every other one has it
        return beta * (chosen_B - rejected_B)

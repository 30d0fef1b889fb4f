"""Choosing the next token of many rows at once: greedy, or inverse CDF with one uniform per row.

Axes: B rows, V vocabulary, N blocks of C tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

BLOCK = 128  # tokens searched at once inside a large vocabulary
DIRECT = 50_000  # numbers below which one search over all of them is as quick
SORTED = 256  # tokens looked at first for top_p


@dataclass(frozen=True, slots=True)
class Choice:
    """How tokens are drawn. temperature 0 is greedy; top_k and top_p cut the distribution at that temperature."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")

    def cuts(self, vocabulary: int) -> bool:
        """Whether tokens are drawn from less than the whole distribution (greedy draws from none)."""
        fewer = self.top_k is not None and self.top_k < vocabulary
        return self.temperature > 0 and (fewer or (self.top_p is not None and self.top_p < 1))


class Chosen(NamedTuple):
    """Next tokens, and what they were drawn with: natural logarithms, float32 (float64 for float64 logits).

    logp_B   log-prob in the whole distribution at the temperature (at temperature 1 for greedy)
    cut_B    log-prob in what top_k and top_p left of it: of the draw itself. None where nothing was cut
    """

    token_B: torch.Tensor
    logp_B: torch.Tensor
    cut_B: torch.Tensor | None = None


def choose(logits_BV: torch.Tensor, how: Choice, uniform_B: torch.Tensor) -> Chosen:
    """The next token of every row.

    `logp_B` is always that of the whole distribution at the temperature, which is what a recompute on the training
    path gives, and so what a ratio new / old needs. Where top_k or top_p cut the distribution, the token was drawn from
    a renormalised part of it: `cut_B` is higher, by minus the log of the kept mass, and ratios then weigh samples that
    came from another distribution. exp(logp - cut) is the weight that corrects this among the tokens that were kept;
    those that were cut nothing brings back. Ratios are best formed from samples that were not cut.

    logits_BV is float32 or float64 and is overwritten. Equal values at the edge of top_k or top_p are all kept.
    """
    if how.temperature == 0:
        token_B = logits_BV.argmax(-1)
        return Chosen(token_B, _picked(logits_BV, token_B) - logits_BV.logsumexp(-1))
    z_BV = logits_BV.div_(how.temperature) if how.temperature != 1 else logits_BV
    p_BV = torch.softmax(z_BV, -1)  # half the time of exp and sum
    token_B, mass_B = _inverse(_cut(p_BV, how), uniform_B)
    logp_B = _picked(p_BV, token_B).log()  # what was drawn has mass
    if not how.cuts(p_BV.shape[-1]):
        return Chosen(token_B, logp_B)
    return Chosen(token_B, logp_B, logp_B - mass_B.log().to(logp_B.dtype))


def _inverse(p_BV: torch.Tensor, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first token whose cumulated mass exceeds u times the total, and the total; masses are cumulated in float64.

    Tokens without mass are never the first. A large vocabulary is searched in two steps, for the block and inside it:
    the masses of all blocks are summed, but only one block of a row is cumulated.
    """
    B, V = p_BV.shape
    if B * V < DIRECT:
        cdf_BV = p_BV.cumsum(-1, dtype=torch.float64)
        total_B1 = cdf_BV[:, -1:]
        return _first(cdf_BV, total_B1 * uniform_B.to(total_B1)[:, None])[:, 0], total_B1[:, 0]
    part_BNC = (p_BV if V % BLOCK == 0 else F.pad(p_BV, (0, -V % BLOCK))).view(B, -1, BLOCK)
    upto_BN = part_BNC.sum(-1).cumsum(-1, dtype=torch.float64)
    target_B1 = upto_BN[:, -1:] * uniform_B.to(upto_BN)[:, None]
    block_B1 = _first(upto_BN, target_B1)
    inside_BC = part_BNC[torch.arange(B, device=p_BV.device), block_B1[:, 0]].cumsum(-1, dtype=torch.float64)
    before_B1 = F.pad(upto_BN, (1, 0)).gather(1, block_B1)
    token_B1 = block_B1 * BLOCK + _first(inside_BC, target_B1 - before_B1)
    return token_B1[:, 0], upto_BN[:, -1]


def _first(cdf_BN: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
    """The first place (B, 1) whose cumulated mass exceeds the target; a target rounded up to the total is below it."""
    total_B1 = cdf_BN[:, -1:]
    below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    return torch.searchsorted(cdf_BN, torch.minimum(target_B1, below_B1), right=True)


def _cut(p_BV: torch.Tensor, how: Choice) -> torch.Tensor:
    if how.top_k is not None and how.top_k < p_BV.shape[-1]:
        floor_B1 = p_BV.topk(how.top_k, dim=-1).values[:, -1:]
        p_BV = p_BV.masked_fill(p_BV < floor_B1, 0.0)
    if how.top_p is not None and how.top_p < 1:
        mass_B1 = how.top_p * p_BV.sum(-1, keepdim=True)
        # The largest few hold the mass most of the time, and are found in a fifth of the time of a sort.
        sorted_BV = p_BV.topk(min(SORTED, p_BV.shape[-1]), dim=-1).values
        if bool((sorted_BV.sum(-1, keepdim=True) < mass_B1 * 1.001).any()):
            sorted_BV = p_BV.sort(dim=-1, descending=True).values
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        floor_B1 = sorted_BV.masked_fill(before_BV >= mass_B1, torch.inf).amin(-1, keepdim=True)
        p_BV = p_BV.masked_fill(p_BV < floor_B1, 0.0)
    return p_BV


def _picked(z_BV: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    return z_BV.gather(1, token_B[:, None])[:, 0]

"""Choosing the next token of many rows at once: greedy, or inverse CDF with one uniform per row.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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


def choose(logits_BV: torch.Tensor, how: Choice, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B,) and their log-probs (B,).

    The log-prob is always that of the whole distribution at the temperature (at temperature 1 for greedy), which is
    what a recompute on the training path gives. With top_k or top_p the token was drawn from a renormalised
    part of it: the log-prob of that draw is higher, by minus the log of the kept mass. Ratios of policies should be
    formed from samples that were not cut.

    logits_BV is float32 or float64 and is overwritten. Equal values at the edge of top_k or top_p are all kept.
    """
    if how.temperature == 0:
        token_B = logits_BV.argmax(-1)
        return token_B, _picked(logits_BV, token_B) - logits_BV.logsumexp(-1)
    z_BV = logits_BV.div_(how.temperature) if how.temperature != 1 else logits_BV
    z_BV -= z_BV.amax(-1, keepdim=True)
    p_BV = z_BV.exp()
    mass_B = p_BV.sum(-1)
    kept_BV = _cut(p_BV, how)
    cdf_BV = kept_BV.cumsum(-1, dtype=torch.float64)
    # The first token whose cumulated mass exceeds u times the total; tokens without mass are never the first.
    target_B1 = cdf_BV[:, -1:] * uniform_B.to(cdf_BV)[:, None]
    token_B = torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0]
    return token_B, _picked(z_BV, token_B) - mass_B.log()


def _cut(p_BV: torch.Tensor, how: Choice) -> torch.Tensor:
    if how.top_k is not None and how.top_k < p_BV.shape[-1]:
        floor_B1 = p_BV.topk(how.top_k, dim=-1).values[:, -1:]
        p_BV = p_BV.masked_fill(p_BV < floor_B1, 0.0)
    if how.top_p is not None and how.top_p < 1:
        sorted_BV = p_BV.sort(dim=-1, descending=True).values
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        inside_BV = before_BV < how.top_p * sorted_BV.sum(-1, keepdim=True)
        floor_B1 = sorted_BV.masked_fill(~inside_BV, torch.inf).amin(-1, keepdim=True)
        p_BV = p_BV.masked_fill(p_BV < floor_B1, 0.0)
    return p_BV


def _picked(z_BV: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    return z_BV.gather(1, token_B[:, None])[:, 0]

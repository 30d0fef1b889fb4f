"""The losses of DPO's family by name, one or several with weights, and which settings go with which. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from fairlead.methods.config import DPOConfig

LossName: TypeAlias = Literal[
    "sigmoid", "hinge", "robust", "exo", "discopop",
    "nca", "bco_pair", "sppo", "apo_zero", "apo_down", "aot", "aot_unpaired",
]  # fmt: skip
MixedLoss: TypeAlias = Literal[
    "sigmoid", "hinge", "robust", "exo", "discopop", "ipo", "sigmoid_norm", "ipo_norm",
    "nca", "bco_pair", "sppo", "apo_zero", "apo_down", "aot", "aot_unpaired",
]  # fmt: skip
"""What may stand beside others: the same, IPO, and two on scores per token (TRL's `ipo` is `ipo_norm`)."""

PER_TOKEN = ("sigmoid_norm", "ipo_norm")
COUPLED = ("aot", "aot_unpaired")
"""Losses of a whole step: that of a pair depends on the other pairs."""
LEADS = ("sigmoid", "sigmoid_norm", "hinge")
"""Losses that a row's own margin can be asked of."""
DIFFERENCE = ("sigmoid", "hinge", "robust", "exo", "discopop", "ipo", *PER_TOKEN)
"""Losses that read nothing but the difference of the two scores."""


def problems(c: DPOConfig) -> Iterator[str]:
    """Why settings of DPO's family cannot work together."""
    given, names = c.model_fields_set, c.mixture
    said = f"loss is {c.loss}" if not c.losses else f"losses are {', '.join(c.losses)}"
    if c.losses:
        if "loss" in given:
            yield "loss and losses are both given: losses names all of them, with their weights"
        if len(c.losses) == 1:
            yield "losses joins several losses, each with its weight; for a single one give loss"
        if c.length == "mean":
            yield "length is of a single loss; in losses, those per token are called sigmoid_norm and ipo_norm"
    if "robust" in names and not c.label_smoothing:
        yield "loss: robust without label_smoothing is plain DPO: give the share of wrong labels"
    if "exo" in names and not c.label_smoothing:
        yield "loss: exo is infinite for certain labels: give label_smoothing (the paper: 0.001)"
    if "tau" in given and "discopop" not in names:
        yield f"tau belongs to loss: discopop; {said}"
    if "alpha" in given and c.divergence != "alpha":
        yield f"alpha belongs to divergence: alpha; divergence is {c.divergence}"
    if c.on_policy and c.coupled:
        coupled = next(name for name in names if name in COUPLED)
        yield f"on_policy weighs the loss of one pair; loss: {coupled} has none, only that of a step"
    if c.margin and not set(names) <= set(LEADS):
        yield f"margin belongs to loss: sigmoid or hinge; {said}"
    alone = next((name for name in names if name not in DIFFERENCE), None)
    plain = {"reference_free": False, "length": "sum", "divergence": "reverse_kl"}
    changed = next((name for name, value in plain.items() if getattr(c, name) != value), None)
    if alone and changed:
        yield (
            f"{changed} changes the score that loss: {alone} reads by itself, not in a difference; it belongs to loss: "
            f"{', '.join(DIFFERENCE)}"
        )
    if c.reference_free and c.divergence != "reverse_kl":
        yield "reference_free leaves nothing to diverge from: take one of reference_free, divergence"
    if c.ld_alpha != 1 and (c.length == "mean" or any(name in PER_TOKEN for name in names)):
        yield "length: mean (and sigmoid_norm, ipo_norm) and ld_alpha both correct for length: take one"

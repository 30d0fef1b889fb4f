"""The load-balancing loss of mixtures of experts, of a whole step however it is cut into micro-batches.

`engine/routing.py` hears the routers and has the formula. The shares f of the whole step, over all processes, are
counted by a pass without gradients before its first micro-batch learns from them; where one micro-batch of one process
is the whole step, its own pass tells them.

Axes: E experts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fairlead.engine import parallel, routing
from fairlead.engine.forward import evaluating, hidden_states
from fairlead.engine.layout import Tree, lay_out
from fairlead.errors import InputError
from fairlead.methods.rows import Rows

if TYPE_CHECKING:
    from fairlead.methods.loop import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """Of a whole step: how often each expert was chosen, per token and layer; and how many of those there are."""

    share_E: torch.Tensor
    tokens: float


class Balance:
    """What `Updates` adds to a micro-batch's loss.

    weight   of the loss; None: the one in each model's own configuration
    Raises InputError where a weight is given and the module has no mixture of experts that can be heard.
    """

    def __init__(self, module: nn.Module, weight: float | None) -> None:
        self._heard: list[tuple[routing.Routers, nn.Module, float]] = []
        any_found = False
        for model in _models(module):
            own = routing.weight_of(model)
            if own is None:
                continue
            any_found = True
            chosen = own if weight is None else weight
            if chosen:
                self._heard.append((routing.listen(model), model, chosen))
                log.info("%s: its routers learn to share out tokens, with a weight of %g", type(model).__name__, chosen)
        if weight and not any_found:
            raise InputError(
                f"router_loss is {weight:g}, but the model is no mixture of experts whose routers can be heard: leave "
                "router_loss out"
            )
        self._steps: list[_Step] = []
        self._lot: tuple[int, Rows, tuple[int, ...]] | None = None

    def __bool__(self) -> bool:
        return bool(self._heard)

    def loss(self, batch: Batch, rows: Rows, token_budget: int) -> torch.Tensor | None:
        """This micro-batch's part of the step's loss: over all micro-batches, and processes, the parts add up to it.

        rows    what `batch.members` counts in; a step may have two lots of rows, and each is balanced by itself
        None where no router was heard.
        """
        heard = [routers.take() for routers, _, _ in self._heard]
        lot = (batch.step, rows, batch.members)
        if lot != self._lot:  # the lot's first micro-batch here, and so on all processes
            self._lot = lot
            step = [rows.trees[row] for row in batch.members]
            alone = parallel.world().size == 1 and len(batch.trees) == len(step)
            self._steps = [
                _Step(h.count_E / h.tokens, h.tokens)
                if alone
                else _counted(routers, model, h, batch.trees, step, token_budget)
                for (routers, model, _), h in zip(self._heard, heard, strict=True)
                if h is not None
            ]
        total = None
        present = [(w, h) for (_, _, w), h in zip(self._heard, heard, strict=True) if h is not None]
        for (weight, h), whole in zip(present, self._steps, strict=True):
            part = weight * len(whole.share_E) * (whole.share_E @ h.probability_E) / whole.tokens
            total = part if total is None else total + part
        return total


def _counted(
    routers: routing.Routers, model: nn.Module, first: routing.Heard, own: Sequence[Tree], step: Sequence[Tree],
    token_budget: int,
) -> _Step:  # fmt: skip
    """The step's shares, by a pass over all its rows without gradients, fed as the first micro-batch was."""
    keep_last = first.fed == sum(tree.tokens for tree in own)
    count_E, tokens = torch.zeros_like(first.count_E, dtype=torch.float64), 0.0
    routers.counting = True
    try:
        with torch.no_grad(), evaluating(model):
            for group, weight in parallel.deal(step, token_budget):
                hidden_states(model, lay_out([step[i] for i in group], keep_last=keep_last, device=count_E.device))
                h = routers.take()
                assert h is not None
                count_E += weight * h.count_E
                tokens += weight * h.tokens
    finally:
        routers.counting = False
        routers.take()
    both = parallel.total(torch.cat([count_E.cpu(), torch.tensor([tokens], dtype=torch.float64)]))
    return _Step((both[:-1] / both[-1]).to(first.probability_E), float(both[-1]))


def _models(module: nn.Module) -> list[nn.Module]:
    """The language models within a module, as `hidden_states` is given them: those with a head over the vocabulary."""
    found = []
    for model in module.modules():
        head = getattr(model, "get_output_embeddings", None)
        if head is not None and not hasattr(model, "get_base_model") and head() is not None:
            found.append(model)
    return found

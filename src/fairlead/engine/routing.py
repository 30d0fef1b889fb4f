"""What the routers of a mixture of experts said in a training pass, for their load-balancing loss.

The loss is E * sum_e f_e P_e (Fedus et al. 2021, arXiv 2101.03961, eq. 4 to 6), added up as transformers'
`load_balancing_loss_func` does: f_e counts how often expert e was chosen, P_e its mean probability, both over all
tokens and layers. A token of a prompt counts once for each of its replies, as in rows. Both are means over a batch, and
a product of means is not the mean of products: whoever cuts a step into micro-batches has to know f of the whole step
first (`methods/balance.py`).

`listen` finds the routers; from then on `heard` fills in what a pass through `forward.hidden_states` made them say.

Axes: T packed tokens, E experts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fairlead.engine.layout import Batch


@dataclass(frozen=True, slots=True)
class Heard:
    """Of one pass, over all layers.

    probability_E   sum of the routers' probabilities; gradients flow
    count_E         how often each expert was among the chosen
    tokens          counted tokens, once for each layer
    fed             packed tokens of the pass
    """

    probability_E: torch.Tensor
    count_E: torch.Tensor
    tokens: float
    fed: int


class Routers:
    """The routers of one model. The first pass since `take` is heard if it has gradients, and any while `counting`."""

    def __init__(self, model: nn.Module, choices: int) -> None:
        self.model, self.choices = weakref.ref(model), choices
        self.counting = False
        self._heard: Heard | None = None
        self._weight: torch.Tensor | None = None  # of the tokens that a pass feeds, while one runs

    def take(self) -> Heard | None:
        """What the first pass since the last call made them say, or None where there was none."""
        heard, self._heard = self._heard, None
        return heard

    def add(self, logits: torch.Tensor) -> None:
        """The logits of one router, a row per fed token."""
        if self._weight is None:
            return
        wide = torch.promote_types(logits.dtype, torch.float32)
        p_TE = torch.softmax(logits.flatten(0, -2).to(wide), -1)
        weight_T = self._weight.to(p_TE)
        chosen = p_TE.detach().topk(self.choices, -1).indices
        count_E = p_TE.new_zeros(p_TE.shape[1])
        count_E.scatter_add_(0, chosen.flatten(), weight_T.repeat_interleave(self.choices))
        before = self._heard
        self._heard = Heard(
            weight_T @ p_TE + (0 if before is None else before.probability_E),
            count_E + (0 if before is None else before.count_E),
            float(weight_T.sum()) + (0 if before is None else before.tokens),
            before.fed if before is not None else 0,
        )

    @contextmanager
    def hearing(self, batch: Batch, packed: bool) -> Iterator[None]:
        """Hear what one pass over this batch makes them say."""
        if self._heard is not None or not (torch.is_grad_enabled() or self.counting):
            yield
            return
        self._weight = _weights(batch, packed)
        try:
            yield
        finally:
            self._weight = None
        if self._heard is not None:
            h: Heard = self._heard
            self._heard = Heard(h.probability_E, h.count_E, h.tokens, batch.tokens)


_listening: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Routers]] = weakref.WeakKeyDictionary()


def weight_of(model: nn.Module) -> float | None:
    """The weight of the load-balancing loss in a model's configuration; None for models that have none."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    text = config.get_text_config()
    if not hasattr(text, "output_router_logits") or not _recorders(model):
        return None
    return float(getattr(text, "router_aux_loss_coef", 0.0) or 0.0)


def listen(model: nn.Module) -> Routers:
    """Hear the routers of a model that `weight_of` knows, for as long as what is returned lives."""
    inner: Any = model
    text = inner.config.get_text_config()
    choices = getattr(inner, "num_experts_per_tok", None) or text.num_experts_per_tok
    routers = Routers(model, int(choices))
    me = weakref.ref(routers)
    handles = [
        module.register_forward_hook(_hook(me, index))
        for kind, index in _recorders(model)
        for module in model.modules()
        if isinstance(module, kind)
    ]
    _listening[model] = me
    weakref.finalize(routers, _remove, handles)
    return routers


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _hook(me: weakref.ref[Routers], index: int) -> Callable[..., None]:
    def hear(module: nn.Module, args: Any, output: Any) -> None:
        routers = me()
        if routers is not None:
            routers.add(output[index] if isinstance(output, tuple) else output)

    return hear


def _recorders(model: nn.Module) -> list[tuple[type[nn.Module], int]]:
    """The classes of a model's routers, and which of their outputs are the logits, as transformers records them."""
    found: list[tuple[type[nn.Module], int]] = []
    for module in model.modules():
        named = getattr(module, "_can_record_outputs", None) or {}
        specs = named.get("router_logits", [])
        for one in specs if isinstance(specs, list) else [specs]:
            pair = (getattr(one, "target_class", None) or one, int(getattr(one, "index", 0)))
            if isinstance(pair[0], type) and pair not in found:
                found.append(pair)
    return [pair for pair in found if any(isinstance(module, pair[0]) for module in model.modules())]


@contextmanager
def heard(model: nn.Module, batch: Batch, packed: bool) -> Iterator[None]:
    """Around one pass: what its routers say is heard by whoever listens to this model."""
    me = _listening.get(model)
    routers = None if me is None else me()
    if routers is None:
        yield
    else:
        with routers.hearing(batch, packed):
            yield


def _weights(batch: Batch, packed: bool) -> torch.Tensor:
    """How often each fed token counts: in a forest a prompt's for each branch, in padded rows 1, and 0 for padding."""
    if packed:
        counts = [(max(1, len(s.branches)), 1) for s in batch.shapes]
        lengths = [(s.prompt, s.tokens - s.prompt) for s in batch.shapes]
        weight = torch.tensor([float(n) for pair in counts for n in pair])
        return weight.repeat_interleave(torch.tensor([n for pair in lengths for n in pair])).to(batch.ids_T.device)
    rows = torch.tensor([s.prompt + length for s in batch.shapes for length in s.branches or (0,)])
    return (torch.arange(int(rows.max()))[None] < rows[:, None]).float().flatten().to(batch.ids_T.device)

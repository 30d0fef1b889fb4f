"""How much memory a training takes: reckoned from the model's sizes, and measured on this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

# Kept for the backward pass, per layer and token, in numbers as wide as the weights: what the two norms, the three
# projections before attention, attention itself and the projection after it read or gave (8 times the width), and gate,
# up, their activation and their product (4 times the inner width).
_WIDTHS, _INNER_WIDTHS = 8, 4


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a training beside the program itself; an estimate.

    weights       of the model that came in (the reference) and of the one that is trained
    gradients     one number for each parameter that is trained
    moments       AdamW's two for each of those
    activations   kept for the backward pass of one micro-batch of `tokens`; None where the layers' sizes are not known
    logits        of as many tokens as the engine scores at once, and where weights have 16 bits, the LM head and its
                  gradient in 32; 0 where the vocabulary's size is not known
    """

    parameters: int
    trained: int
    tokens: int
    weights: int
    gradients: int
    moments: int
    activations: int | None
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + (self.activations or 0) + self.logits


def footprint(module: Any, tokens: int, *, trained: int | None = None) -> Footprint:
    """Of training a module on micro-batches of up to so many tokens.

    `trained` is the number of parameters that get a gradient: all of them by default; fewer under adapters, which
    leave the reference's weights in place and need no second copy.
    """
    sizes = [(p.numel(), p.element_size()) for p in module.parameters()]
    every = sum(count for count, _ in sizes)
    weights = sum(count * width for count, width in sizes)
    width = max((size for _, size in sizes), default=4)
    copies = weights if trained is None else trained * width
    own = every if trained is None else trained
    per_token = _per_token(module)
    return Footprint(
        parameters=every,
        trained=own,
        tokens=tokens,
        weights=weights + copies,
        gradients=own * width,
        moments=2 * own * width,
        activations=None if per_token is None else per_token * width * tokens,
        logits=_logits(module, width, tokens),
    )


def keys_values(module: Any, rows: int, tokens: int) -> int | None:
    """Bytes of the keys and values of so many rows decoded side by side, of so many tokens each; None where unknown."""
    config = _config(module)
    layers, heads = _size(config, "num_hidden_layers", "n_layer"), _size(config, "num_attention_heads", "n_head")
    width = _size(config, "hidden_size", "n_embd")
    if layers is None or heads is None or width is None:
        return None
    head = _size(config, "head_dim") or width // heads
    kept = _size(config, "num_key_value_heads") or heads
    return 2 * layers * kept * head * rows * tokens * max((p.element_size() for p in module.parameters()), default=4)


def _logits(module: Any, width: int, tokens: int) -> int:
    from fairlead.engine.logprobs import ELEMENTS

    config = _config(module)
    words = None if config is None else _size(config, "vocab_size")
    if words is None:
        return 0
    device = next((p.device.type for p in module.parameters()), "cpu")
    at_once = words * min(tokens, max(16, ELEMENTS.get(device, ELEMENTS["cpu"]) // words)) * max(width, 4)
    return at_once if width >= 4 else at_once + 2 * 4 * words * (_size(config, "hidden_size", "n_embd") or 0)


def _config(module: Any) -> Any:
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _per_token(module: Any) -> int | None:
    config = _config(module)
    if config is None:
        return None
    layers, width = _size(config, "num_hidden_layers", "n_layer"), _size(config, "hidden_size", "n_embd")
    if layers is None or width is None:
        return None
    inner = _size(config, "intermediate_size", "n_inner") or 4 * width
    return layers * (_WIDTHS * width + _INNER_WIDTHS * inner)


def _size(config: Any, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def peak_resident() -> int | None:
    """The most bytes this process has held so far: of the GPU's memory where torch uses one, else resident.

    None where the system does not say.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

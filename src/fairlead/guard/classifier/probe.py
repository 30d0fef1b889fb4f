"""A linear probe on the hidden states of a model that we host: next to no cost, since the model has made them anyway.

A probe is a folder of a few kilobytes beside the model: which model (its lineage), which layer, one weight per width.
A token's logit is averaged exponentially over the tokens of the reply, and the highest average is the score, so a reply
can be stopped while it grows. Alain & Bengio 2016 (linear probes); the average as in Anthropic's cheap monitors, 2025.

N exchanges, T tokens of a reply, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.guard.classifier import arrays, artefact
from fairlead.guard.classifier.card import auroc_interval
from fairlead.guard.classifier.fit import STRENGTHS, auroc, logistic, platt, threshold_at
from fairlead.guard.classifier.model import sigmoid
from fairlead.judges.lineage import Lineage, leaf
from fairlead.models.render import render_exchange
from fairlead.models.toolong import TooLong

Floats = NDArray[np.float32]
MEMORY = 0.9  # of the average, from one token to the next
LAST = -1


@dataclass(frozen=True)
class Probe:
    """`model` is the lineage of the weights it was fitted on: on others it says nothing. `constitution` is the sha256
    of the one whose principle it stands for ("" where nobody said)."""

    principle: str
    model: str
    layer: int
    weight_D: Floats
    bias: float
    slope: float
    offset: float
    threshold: float
    memory: float = MEMORY
    constitution: str = ""
    sha256: str = ""

    @property
    def lineage(self) -> Lineage:
        sha256 = self.sha256 or artefact.digest(_written(self, _weights(self)))  # saved or not, it is the same
        return leaf("classifier", model=f"{self.model}/{sha256[:16]}")

    def logits(self, hidden_TD: NDArray[Any]) -> Floats:
        """The averaged logit at every token (T), as a stream would see it."""
        return averaged(np.asarray(hidden_TD, np.float32) @ self.weight_D + np.float32(self.bias), self.memory)

    def probability(self, hidden_TD: NDArray[Any]) -> float:
        """P(broken) of a reply, or of what there is of one. Raises ValueError for states of another width or none."""
        if hidden_TD.ndim != 2 or not len(hidden_TD) or hidden_TD.shape[1] != len(self.weight_D):
            raise ValueError(f"hidden states of shape {hidden_TD.shape}; needed are (tokens, {len(self.weight_D)})")
        top = self.logits(hidden_TD).max()
        return float(sigmoid(np.array(top * np.float32(self.slope) + np.float32(self.offset), np.float32)))


def averaged(logit_T: Floats, memory: float) -> Floats:
    """Exponential average from the first token on, with the weights of the tokens there are adding up to 1."""
    out = np.empty(len(logit_T), np.float32)
    total, weight = 0.0, 0.0
    for t, value in enumerate(logit_T):
        total, weight = memory * total + float(value), memory * weight + 1.0
        out[t] = total / weight
    return out


def hidden_states(model: Any, exchanges: Sequence[Exchange], layer: int = LAST) -> list[Floats]:
    """The hidden states (T, D) of every reply's tokens under `layer`, of a local model or the apprentice on NumPy.

    layer   as transformers counts hidden states: 0 the embeddings, -1 the last; the apprentice on NumPy gives -1 alone

    Raises InputError for an exchange without a reply, one that the model has no room for (TooLong), for a layer that it
    does not have, and for a model that is not hosted here.
    """
    if getattr(model, "tokenizer", None) is None:
        raise InputError(f"{model.name}: gives no hidden states; a probe needs a model hosted here")
    rendered = [render_exchange(model.tokenizer, item) for item in exchanges]
    for r in rendered:
        if model.context and len(r.prompt) + len(r.reply) > model.context:
            told = f"{len(r.prompt) + len(r.reply)} tokens, but the model has room for {model.context}"
            raise TooLong(f"{model.name}: an exchange has {told}")
    module = getattr(model, "module", None)
    out: list[Floats] = []
    if module is None:
        from fairlead.apprentice import forward

        weights = getattr(model, "_weights", None)
        if weights is None or layer != LAST:
            raise InputError(
                f"{model.name}: gives no hidden states of layer {layer}; a probe needs a model hosted here"
            )
        for r in rendered:
            states, _ = forward.hidden(weights, np.array([r.prompt + r.reply]))
            out.append(np.asarray(states[0, len(r.prompt) :], np.float32))
        return out
    import torch

    with torch.no_grad():
        for r in rendered:
            ids = torch.tensor([r.prompt + r.reply], device=module.device)
            layers = module(input_ids=ids, output_hidden_states=True).hidden_states
            if not -len(layers) <= layer < len(layers):
                raise InputError(f"{model.name}: gives hidden states 0 to {len(layers) - 1}, and none of layer {layer}")
            out.append(layers[layer][0, len(r.prompt) :].float().cpu().numpy())
    return out


def fit_probe(
    model: Any, principle: str, train: Sequence[tuple[Exchange, bool]], valid: Sequence[tuple[Exchange, bool]],
    *, layer: int = LAST, rate: float = 0.05,
) -> Probe:  # fmt: skip
    """A probe for one principle from labelled exchanges (True is broken): learnt on `train`, set on `valid`.

    Raises ValueError where it is no better than chance on `valid`, or too few kept ones are there for `rate`.
    """
    x_ND = np.stack([h.mean(0) for h in hidden_states(model, [e for e, _ in train], layer)]).astype(np.float64)
    y_N = np.array([y for _, y in train])
    middle, scale = x_ND.mean(0), x_ND.std(0) + 1e-6
    held, y_held = hidden_states(model, [e for e, _ in valid], layer), np.array([y for _, y in valid])
    best: tuple[float, Floats, float, Floats] | None = None
    for strength in STRENGTHS:
        w, b = logistic((x_ND - middle) / scale, y_N, None, strength / 100)
        weight = (w / scale).astype(np.float32)
        bias = float(b - (w / scale) @ middle)
        z = np.array([averaged(h @ weight + np.float32(bias), MEMORY).max() for h in held], np.float32)
        value = auroc(z, y_held)
        if best is None or value > best[0] + 1e-4:
            best = (value, weight, bias, z)
    assert best is not None
    _, weight, bias, z = best
    told = auroc_interval(z, y_held, range(len(z)))
    if not told.low > 0.5:
        raise ValueError(
            f"{told.value:.2f} [{told.low:.2f}, {told.high:.2f}] is its AUROC on valid: not told from chance"
        )
    slope, offset = platt(z.astype(np.float64), y_held)
    p = sigmoid(z * np.float32(slope) + np.float32(offset))
    return Probe(
        principle, model.lineage, layer, weight, bias, float(slope), float(offset), threshold_at(p[~y_held], rate)
    )


def save_probe(probe: Probe, folder: Path) -> str:
    """Write `probe.safetensors` and `probe.json` (which names its sha256). Returns the sha256 of the latter."""
    body = _weights(probe)
    raw = _written(probe, body)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe.safetensors").write_bytes(body)
    (folder / "probe.json").write_bytes(raw)
    return artefact.digest(raw)


def _weights(probe: Probe) -> bytes:
    return arrays.dump({"weight_D": probe.weight_D})


def _written(probe: Probe, weights: bytes) -> bytes:
    """All that it says by; of the weights their sha256."""
    about = {k: v for k, v in asdict(probe).items() if k not in ("weight_D", "sha256")}
    return json.dumps({**about, "weights": artefact.digest(weights)}, indent=1, sort_keys=True).encode() + b"\n"


def load_probe(folder: Path, *, model: str | None = None) -> Probe:
    """Read and verify a probe. `model` is the lineage of the model it is to read; another one is refused."""
    try:
        raw, body = (folder / "probe.json").read_bytes(), (folder / "probe.safetensors").read_bytes()
        about = json.loads(raw)
        wanted = about.pop("weights")
        if artefact.digest(body) != wanted:
            raise InputError(f"{folder}: probe.safetensors was changed after it was written; fit the probe anew")
        probe = Probe(**about, weight_D=arrays.load(body)["weight_D"], sha256=artefact.digest(raw))
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{folder}: holds no probe that can be read ({problem})") from None
    if model is not None and probe.model != model:
        raise InputError(f"{folder}: was fitted on {probe.model}, but the model is {model}; fit a probe for it")
    return probe


def load_probes(folder: Path, *, model: str | None = None) -> list[Probe]:
    """All probes of a folder: the one that it is, or one for each folder in it, as `fairlead guard train --probe`
    writes them. Raises InputError where there is none."""
    found = sorted(file.parent for file in (*folder.glob("probe.json"), *folder.glob("*/probe.json")))
    if not found:
        raise InputError(f"{folder}: holds no probe; fit some with `fairlead guard train --probe MODEL -o {folder}`")
    return [load_probe(one, model=model) for one in found]

"""Heads on a sentence encoder: frozen, or fine-tuned first; int8 where that is quicker and says the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InputError
from fairlead.guard.classifier.encoder import Encoder, EncoderScorer
from fairlead.guard.classifier.export import int8_of, onnx_of
from fairlead.guard.classifier.finetune import Example, Tuning
from fairlead.guard.classifier.fit import auroc
from fairlead.guard.classifier.pooling import Pooling, read_pooling
from fairlead.guard.classifier.reading import Pair
from fairlead.guard.classifier.soup import soup
from fairlead.guard.classifier.train import Learn, Learnt, Valid, fit_heads

TOLERATED = 0.005  # AUROC that int8 may cost on the validation part, on any head
TIMED = 64  # texts that speed is taken on


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which form of an encoder serves, and the numbers that decided. Times are CPU milliseconds for one text."""

    onnx: bytes
    form: str
    ms: dict[str, float]
    lost: float
    agreement: float


def encoder_learner(
    folder: Path, out: Path, *, tune: bool = False, tuning: Tuning | None = None, runs: int = 1, max_tokens: int = 128,
    seed: int = 0, say: Callable[[str], None] = lambda _: None,
) -> Learn:  # fmt: skip
    """How `train` learns with the encoder in `folder`. A fine-tuning run lives beside `out` and may be stopped and gone
    on with; of several `runs`, whose seeds follow each other, the weights are averaged."""
    if not (folder / "tokenizer.json").exists():
        raise InputError(f"{folder}: holds no encoder (no tokenizer.json); give a folder, or --encoder tfidf")
    pooling = Pooling() if (folder / "model.onnx").exists() else read_pooling(folder)  # such a graph pools by itself
    if tune and pooling.mode != "mean":
        say(f"{folder} pools by {pooling.mode}; what is fine-tuned pools by the mean")

    def learn(pairs: Sequence[Pair], labels_NH: NDArray[np.float32], groups: Sequence[str], valid: Valid) -> Learnt:
        if tune:
            settings = tuning or Tuning(seed=seed, max_tokens=max_tokens)
            examples = [Example(p, y, g) for p, y, g in zip(pairs, labels_NH, groups, strict=True)]
            seeds = range(settings.seed, settings.seed + runs)
            tuned = soup(folder, examples, settings, seeds, out.with_name(out.name + ".tuning"), say=say)
            onnx, tokenizer = onnx_of(tuned.folder, unit=False), (folder / "tokenizer.json").read_bytes()
            weight_HD, bias_H = tuned.weight_HD, tuned.bias_H
        else:
            onnx, tokenizer = (
                onnx_of(folder, unit=pooling.unit, mode=pooling.mode),
                (folder / "tokenizer.json").read_bytes(),
            )
            encoder = Encoder.of_bytes(onnx, tokenizer, max_tokens)
            x_ND, x_valid = encoder.embed(pairs), encoder.embed(valid.pairs)
            weight_HD, bias_H = fit_heads(x_ND, labels_NH, x_valid, valid.labels_NH)
        chosen = quicker(onnx, tokenizer, max_tokens, weight_HD, bias_H, valid)
        say(f"serves in {chosen.form}: CPU ms a text {chosen.ms}, AUROC lost {chosen.lost:.4f}")
        scorer = EncoderScorer(Encoder.of_bytes(chosen.onnx, tokenizer, max_tokens), weight_HD, bias_H)
        about = (
            f"The encoder serves in {chosen.form}; int8 takes {chosen.ms['int8']:.1f} and float32 "
            f"{chosen.ms['float32']:.1f} ms of CPU for a text, costs at most {chosen.lost:.4f} AUROC on a head of the "
            "validation part, and decides alike "
            f"on {chosen.agreement:.2%} of it.",
        )
        files = {"encoder.onnx": chosen.onnx, "tokenizer.json": tokenizer}
        return Learnt(
            scorer, files, weight_HD, bias_H, about, {"encoder": folder.name, "tuned": tune, "form": chosen.form}
        )

    return learn


def quicker(
    onnx: bytes,
    tokenizer: bytes,
    max_tokens: int,
    weight_HD: NDArray[np.float32],
    bias_H: NDArray[np.float32],
    valid: Valid,
) -> Chosen:
    """int8 where it is quicker and no head loses more than `TOLERATED` AUROC on the validation part; else float32."""
    forms = {"float32": onnx, "int8": int8_of(onnx)}
    logits: dict[str, NDArray[np.float32]] = {}
    ms: dict[str, float] = {}
    for form, body in forms.items():
        scorer = EncoderScorer(Encoder.of_bytes(body, tokenizer, max_tokens), weight_HD, bias_H)
        scorer.logits(valid.pairs[:1])
        began = time.process_time()
        for pair in valid.pairs[:TIMED]:
            scorer.logits([pair])
        ms[form] = 1e3 * (time.process_time() - began) / max(1, len(valid.pairs[:TIMED]))
        logits[form] = scorer.logits(valid.pairs)
    lost = 0.0
    for h in range(len(bias_H)):
        at = ~np.isnan(valid.labels_NH[:, h])
        y = valid.labels_NH[at, h] > 0.5
        if y.any() and not y.all():
            lost = max(lost, auroc(logits["float32"][at, h], y) - auroc(logits["int8"][at, h], y))
    agreement = float(((logits["float32"] > 0) == (logits["int8"] > 0)).mean())
    form = "int8" if ms["int8"] < ms["float32"] and lost <= TOLERATED else "float32"
    return Chosen(forms[form], form, ms, lost, agreement)

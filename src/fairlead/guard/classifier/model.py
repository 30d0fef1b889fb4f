"""A trained classifier, serving: pairs of (asked, window) in, P(broken) for every head out. NumPy; no torch.

H heads, N pairs, D features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.guard.classifier import arrays
from fairlead.guard.classifier.artefact import Head, Manifest, open_folder
from fairlead.guard.classifier.ngrams import Vocabulary
from fairlead.guard.classifier.reading import Pair, Reading, read
from fairlead.guard.classifier.rows import View
from fairlead.judges.lineage import Lineage, leaf

Floats = NDArray[np.float32]


class Scorer(Protocol):
    """Logits (N, H) of N pairs. One call is one batch."""

    def logits(self, pairs: Sequence[Pair]) -> Floats: ...


@dataclass(frozen=True)
class NgramScorer:
    """A linear model on TF-IDF features: a sparse dot product. `weight_DH` has the features first, to gather rows."""

    words: Vocabulary
    weight_DH: Floats
    bias_H: Floats

    def logits(self, pairs: Sequence[Pair]) -> Floats:
        out = np.empty((len(pairs), len(self.bias_H)), np.float32)
        for n, pair in enumerate(pairs):
            at, value = self.words.vector(pair)
            out[n] = value @ self.weight_DH[at] + self.bias_H
        return out


@dataclass(frozen=True)
class Classifier:
    """`judge` for exchanges, `score_batch` for pairs that were read elsewhere (a stream's windows, a queue's batch)."""

    manifest: Manifest
    scorer: Scorer
    sha256: str

    @property
    def reading(self) -> Reading:
        return self.manifest.reading

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.manifest.heads

    @cached_property
    def _platt(self) -> tuple[Floats, Floats]:
        return (
            np.array([h.slope for h in self.heads], np.float32),
            np.array([h.offset for h in self.heads], np.float32),
        )

    @cached_property
    def lineage(self) -> Lineage:
        """What stands on the train side of a run: these weights, and the rows they were learnt from."""
        return leaf("classifier", model=self.sha256[:16]) | leaf("rows", code=self.manifest.rows_sha256[:16])

    def head(self, principle: str, view: View) -> int | None:
        """Index of the head of a principle, None where it has none."""
        for h, head in enumerate(self.heads):
            if head.principle == principle and head.view == view:
                return h
        return None

    def score_batch(self, pairs: Sequence[Pair]) -> Floats:
        """P(broken) (N, H) of every pair under every head, calibrated on the validation part.

        A head speaks of its own view alone: prompt heads of pairs without an answer, exchange heads of the others.
        Raises ValueError where a logit is no number.
        """
        slope_H, offset_H = self._platt
        if not pairs:
            return np.zeros((0, len(self.heads)), np.float32)
        z_NH = self.scorer.logits(pairs) * slope_H + offset_H  # in float32, as thresholds were placed
        if not np.isfinite(z_NH).all():  # a check that cannot tell has failed, and what follows is the guard's to say
            raise ValueError(f"the classifier {self.manifest.name} gave a logit that is no number")
        return sigmoid(z_NH)

    def judge(self, exchanges: Sequence[Exchange], places: frozenset[str] | None = None) -> Floats:
        """P(broken) (exchanges, H): of an exchange the highest over its windows. NaN where a head does not apply, or
        there was nothing to read."""
        read_ = [read(item, self.reading, places) for item in exchanges]
        p_NH = self.score_batch([pair for pairs in read_ for pair in pairs])
        out = np.full((len(exchanges), len(self.heads)), np.nan, np.float32)
        at = 0
        for n, (item, pairs) in enumerate(zip(exchanges, read_, strict=True)):
            view = "exchange" if item.reply else "prompt"
            if pairs:
                top_H = p_NH[at : at + len(pairs)].max(axis=0)
                for h, head in enumerate(self.heads):
                    if head.view == view:
                        out[n, h] = top_H[h]
            at += len(pairs)
        return out


def sigmoid(z: Floats) -> Floats:
    """Of calibrated logits, in their own precision: a threshold is compared with exactly what it was placed on."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -60, 60))), np.float32)


def load(folder: Path | str, *, constitution: str | None = None, threads: int = 1) -> Classifier:
    """The classifier of a folder, verified. `constitution` is the sha256 that it has to be trained from, where given.

    Raises InputError for a folder that is not what its manifest says, or was trained from another constitution.
    """
    folder = Path(folder)
    manifest, files, sha256 = open_folder(folder)
    if constitution is not None and manifest.constitution != constitution:
        raise InputError(
            f"{folder}: trained from the constitution {manifest.constitution[:12]}…, but {constitution[:12]}… is in "
            "force: run `fairlead guard train` again"
        )
    weights = _read(folder, files, "heads.safetensors")
    weight_HD, bias_H = weights["weight_HD"].astype(np.float32), weights["bias_H"].astype(np.float32)
    if weight_HD.shape[0] != len(manifest.heads) or bias_H.shape != (len(manifest.heads),):
        raise InputError(
            f"{folder}: {len(manifest.heads)} heads, but weights of shape {weight_HD.shape}: train it anew"
        )
    scorer: Scorer
    if manifest.kind == "tfidf":
        features = json.loads(files["vocabulary.json"])
        idf = _read(folder, files, "vocabulary.safetensors")["idf"].astype(np.float32)
        words = Vocabulary({g: i for i, g in enumerate(features)}, idf)
        scorer = NgramScorer(words, np.ascontiguousarray(weight_HD.T), bias_H)
    else:
        from fairlead.guard.classifier.encoder import Encoder, EncoderScorer

        encoder = Encoder.of_bytes(files["encoder.onnx"], files["tokenizer.json"], manifest.max_tokens, threads)
        scorer = EncoderScorer(encoder, weight_HD, bias_H)
    return Classifier(manifest, scorer, sha256)


def _read(folder: Path, files: dict[str, bytes], name: str) -> dict[str, NDArray[np.generic]]:
    if name not in files:
        raise InputError(f"{folder}: has no {name}: train it anew")
    try:
        return arrays.load(files[name])
    except ValueError as problem:
        raise InputError(f"{folder / name}: {problem}") from None

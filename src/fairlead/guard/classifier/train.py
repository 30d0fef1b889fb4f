"""`fairlead guard train`: from a constitution to a folder that serves. Parts: learn, set, measure; by source row.

Learn on 60% of the groups, calibrate and place thresholds on 20%, measure for the card on the last 20%.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fairlead.constitution.schema import Constitution
from fairlead.errors import CannotTell, InputError
from fairlead.guard.classifier import arrays, artefact
from fairlead.guard.classifier.artefact import Head, Manifest
from fairlead.guard.classifier.augment import Translate, augmented, translated
from fairlead.guard.classifier.card import auroc_interval, described, markdown
from fairlead.guard.classifier.fit import STRENGTHS, auroc, logistic, platt, tfidf_matrix, threshold_at
from fairlead.guard.classifier.model import Classifier, NgramScorer, Scorer, load, sigmoid
from fairlead.guard.classifier.ngrams import vocabulary
from fairlead.guard.classifier.reading import TOKENS, WORDS, Pair, Reading, asked, read, windows_of
from fairlead.guard.classifier.rows import Part, Row, View, grouped

TFIDF = "tfidf"
RATE = 0.05
FEWEST = 8  # broken, and kept, that a head needs on each part
CHANCE_DRAWS = 200  # of the interval that a head's AUROC on the validation part has to clear
CLEAR = (
    0.7  # AUROC there that the head for orders in tools' texts needs: what it flags is refused with all that was asked
)
SHOWN_WINDOWS = 3  # of one reply, when learning: what a long reply is stands in its first windows
HELD: tuple[Part, ...] = ("valid", "test")
SHARES = (0.2, 0.2)  # of what breaks a principle, and of the harmless groups
Key: TypeAlias = tuple[str, View]


@dataclass(frozen=True)
class Learnt:
    """What a way of reading texts gives: a scorer, its files, and what to say of it on the card."""

    scorer: Scorer
    files: Mapping[str, bytes]
    weight_HD: NDArray[np.float32]
    bias_H: NDArray[np.float32]
    said: tuple[str, ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)


Learn: TypeAlias = Callable[[Sequence[Pair], NDArray[np.float32], Sequence[str], "Valid"], Learnt]


@dataclass(frozen=True)
class Valid:
    """The validation part, for choosing settings: pairs, and labels (N, H) with NaN for unknown."""

    pairs: Sequence[Pair]
    labels_NH: NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    folder: Path
    classifier: Classifier
    card: dict[str, Any]


def train(
    constitution: Constitution,
    rows: Sequence[Row],
    out: Path,
    *,
    learn: Learn | None = None,
    kind: artefact.Kind = "tfidf",
    reading: Reading | None = None,
    max_tokens: int = 128,
    rate: float = RATE,
    copies: int = 2,
    translate: Mapping[str, Translate] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train, calibrate, measure and write a classifier for `constitution` from labelled rows.

    learn      how texts become logits: `learn_tfidf` where None, or `encoder_learner(...)` (encode.py)
    rate       the false-positive rate that thresholds are chosen for on the validation part
    copies     of every row to learn from, in other dress (augment.py); parts that measure are left as they are
    translate  by language, how to say texts in it: a copy of every row to learn from

    Raises CannotTell where no principle has enough rows of both kinds on every part, with the numbers.
    """
    parts = split_in_three(rows, seed=seed)
    by_part: dict[Part, list[Row]] = {"train": [], "valid": [], "test": []}
    for row, part in zip(rows, parts, strict=True):
        by_part[part].append(row)
    keys, left_out = _keys(constitution, by_part, rate)
    if not keys:
        raise CannotTell(
            "no principle has enough rows to learn from: "
            + "; ".join(f"{id} ({view}): {why}" for id, view, why in left_out)
        )
    learning = by_part["train"] + augmented(by_part["train"], copies, seed=seed)
    for language, how in (translate or {}).items():
        learning += translated(by_part["train"], language, how)
    reading = reading or (WORDS if kind == "tfidf" else TOKENS)
    pairs, labels_NH, groups = _to_learn(learning, keys, reading)
    valid_pairs, valid_NH, _ = _to_learn(by_part["valid"], keys, reading)
    say(f"{len(learning):,} rows to learn from, {len(pairs):,} windows, {len(keys)} heads")
    learnt = (learn or learn_tfidf)(pairs, labels_NH, groups, Valid(valid_pairs, valid_NH))
    heads, dropped = _heads(learnt, keys, by_part["valid"], reading, rate)
    left_out += dropped
    kept = [keys.index((h.principle, h.view)) for h in heads]
    if not heads:
        raise CannotTell(
            "no head can be told from chance on the validation part; give more rows (--exchanges): "
            + "; ".join(f"{id} ({view}): {why}" for id, view, why in dropped)
        )
    manifest = Manifest(
        kind=kind, name=f"{constitution.name}:{kind}", constitution=constitution.sha256, reading=reading,
        heads=tuple(heads), max_tokens=max_tokens, rows=dict(Counter(row.source for row in rows)),
        rows_sha256=_rows_sha256(rows), files={},
        made={"python": platform.python_version(), "seed": seed, **learnt.made},
    )  # fmt: skip
    told = ({**row.provenance(), "part": part} for row, part in zip(rows, parts, strict=True))
    files = {
        **learnt.files,
        "rows.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told).encode(),
        "heads.safetensors": arrays.dump({"weight_HD": learnt.weight_HD[kept], "bias_H": learnt.bias_H[kept]}),
    }
    artefact.save(out, manifest, files)  # once without a card, to be measured as it will serve
    card = _card(constitution, load(out), by_part, rate, left_out, learnt.said, rows)
    files |= {"card.json": json.dumps(card, indent=1).encode() + b"\n", "card.md": markdown(card).encode()}
    artefact.save(out, manifest, files)
    return Trained(out, load(out, constitution=constitution.sha256), card)


def split_in_three(rows: Sequence[Row], *, seed: int = 0) -> list[Part]:
    """train, valid or test of each row, by its group; near-duplicates are one group.

    A principle has few groups that break it (a pack brings eight templates), so each principle's are dealt out in an
    order of their own, by hash: left to chance alone, a part would often have none.
    """
    named = grouped(rows)
    first: dict[str, str] = {}
    weight: Counter[str] = Counter()
    for row, group in zip(rows, named, strict=True):
        broken = [id for id, y in row.labels.items() if y]
        first[group] = min((id for id in (first.get(group, ""), *broken) if id), default="")
        weight[group] += bool(broken)
    decks: dict[str, list[str]] = {}
    for group, id in first.items():
        decks.setdefault(id, []).append(group)
    side: dict[str, Part] = {}
    for id, deck in decks.items():
        deck.sort(key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
        size = {group: weight[group] if id else 1 for group in deck}  # rows that break it; of the harmless, groups
        wanted = {part: share * sum(size.values()) for part, share in zip(HELD, SHARES, strict=True)}
        got = dict.fromkeys(HELD, 0)
        for group in deck:
            part = next((p for p in HELD if got[p] < wanted[p]), None) if len(deck) > 2 else None
            side[group] = part or "train"
            if part is not None:
                got[part] += size[group]
    return [side[group] for group in named]


def _keys(
    constitution: Constitution, parts: Mapping[Part, Sequence[Row]], rate: float
) -> tuple[list[Key], list[tuple[str, str, str]]]:
    """The heads that can be learnt, and why the others cannot."""
    counts = {
        part: Counter((id, r.view, y) for r in rows for id, y in r.labels.items()) for part, rows in parts.items()
    }
    keys: list[Key] = []
    left_out: list[tuple[str, str, str]] = []
    views: tuple[View, ...] = ("prompt", "exchange")
    for id in (*constitution.ids, artefact.INJECTION):
        for view in views:
            if not any(counts[part][id, view, True] for part in counts):
                if any(counts[part][id, view, False] for part in counts) and view == "exchange":
                    left_out.append((id, view, "no row breaks it: give some with --exchanges"))
                continue
            short = [
                f"{counts[part][id, view, y]} {'broken' if y else 'kept'} in {part} (needs {need})"
                for part in counts
                for y in (True, False)
                if counts[part][id, view, y] < (need := max(FEWEST, 0 if y or part != "valid" else round(1 / rate)))
            ]
            if short:
                left_out.append((id, view, ", ".join(short)))
            else:
                keys.append((id, view))
    return keys, left_out


def _to_learn(
    rows: Sequence[Row], keys: Sequence[Key], reading: Reading
) -> tuple[list[Pair], NDArray[np.float32], list[str]]:
    pairs: list[Pair] = []
    labels: list[list[float]] = []
    groups: list[str] = []
    for row in rows:
        known = [float(row.labels[id]) if id in row.labels and row.view == view else np.nan for id, view in keys]
        if all(np.isnan(known)):
            continue
        for pair in learnt_from(row, reading):
            pairs.append(pair)
            labels.append(known)
            groups.append(row.group)
    return pairs, np.array(labels, np.float32).reshape(len(pairs), len(keys)), groups


def learnt_from(row: Row, reading: Reading, most: int = SHOWN_WINDOWS) -> list[Pair]:
    """The pairs that a row is learnt from: the first windows, or those that show the part its labels speak of."""
    if part := row.meta.get("part"):
        return [(asked(row.exchange.messages, reading), w) for w in windows_of(row.exchange.reply_text, part, reading)]
    return read(row.exchange, reading)[:most]


def learn_tfidf(pairs: Sequence[Pair], labels_NH: NDArray[np.float32], groups: Sequence[str], valid: Valid) -> Learnt:
    """A vocabulary and a logistic regression per head; the penalty is chosen by AUROC on the validation part."""
    words = vocabulary(pairs)
    weight_HD, bias_H = fit_heads(
        tfidf_matrix(words, pairs), labels_NH, tfidf_matrix(words, valid.pairs), valid.labels_NH
    )
    files = {
        "vocabulary.json": json.dumps(sorted(words.index, key=words.index.__getitem__), ensure_ascii=False).encode(),
        "vocabulary.safetensors": arrays.dump({"idf": words.idf}),
    }
    scorer = NgramScorer(words, np.ascontiguousarray(weight_HD.T), bias_H)
    return Learnt(scorer, files, weight_HD, bias_H, ("TF-IDF knows words, not meanings: a paraphrase can pass it.",))


def fit_heads(
    x: Any, labels_NH: NDArray[np.float32], x_valid: Any, valid_NH: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (H, D) and biases of a logistic regression per head, each with the penalty that is best on `valid`."""
    weights, biases = [], []
    for h in range(labels_NH.shape[1]):
        at, at_valid = np.flatnonzero(~np.isnan(labels_NH[:, h])), np.flatnonzero(~np.isnan(valid_NH[:, h]))
        best: tuple[float, Any, float] | None = None
        for strength in STRENGTHS:
            w, b = logistic(x[at], labels_NH[at, h] > 0.5, None, strength)
            value = auroc(np.asarray(x_valid[at_valid] @ w).ravel() + b, valid_NH[at_valid, h] > 0.5)
            if best is None or value > best[0] + 1e-4:  # of equals the simpler one
                best = (value, w, b)
        assert best is not None
        weights.append(best[1])
        biases.append(best[2])
    return np.array(weights, np.float32), np.array(biases, np.float32)


def _heads(
    learnt: Learnt, keys: Sequence[Key], rows: Sequence[Row], reading: Reading, rate: float
) -> tuple[list[Head], list[tuple[str, str, str]]]:
    """Calibrated heads with thresholds, from the highest logit of every validation row's windows."""
    top_NH = highest(learnt.scorer, rows, reading)
    heads, dropped = [], []
    for h, (id, view) in enumerate(keys):
        at = [n for n, r in enumerate(rows) if id in r.labels and r.view == view and not np.isnan(top_NH[n, h])]
        z, y = top_NH[at, h], np.array([rows[n].labels[id] for n in at], bool)
        told = auroc_interval(z, y, [rows[n].group for n in at], draws=CHANCE_DRAWS)
        if not told.low > 0.5:
            why = (
                f"AUROC {told.value:.2f} [{told.low:.2f}, {told.high:.2f}] on the validation part: not told from chance"
            )
            dropped.append((id, str(view), why))
            continue
        if id == artefact.INJECTION and told.value < CLEAR:
            why = (
                f"AUROC {told.value:.2f} on the validation part, needed is {CLEAR:g}: it would flag too much; "
                "fine-tune (--tune), or give texts of your tools (--exchanges, --harmless)"
            )
            dropped.append((id, str(view), why))
            continue
        try:
            slope, offset = platt(z.astype(np.float64), y)
        except ValueError as problem:
            dropped.append((id, str(view), str(problem)))
            continue
        p = sigmoid(z * np.float32(slope) + np.float32(offset))
        threshold = threshold_at(p[~y], rate)
        doubt = min(threshold_at(p[~y], min(0.5, 4 * rate)), threshold, 1.0)
        seen = round(float((p[y] >= doubt).mean()), 4)
        heads.append(Head(id, view, slope, offset, min(threshold, 1.0), doubt, rate, seen))
    return heads, dropped


def highest(scorer: Scorer, rows: Sequence[Row], reading: Reading) -> NDArray[np.float32]:
    """The highest logit (N, H) over the windows of each row; NaN where a row has none."""
    read_ = [read(row.exchange, reading) for row in rows]
    z = scorer.logits([pair for pairs in read_ for pair in pairs])
    out = np.full((len(rows), z.shape[1]), np.nan, np.float32)
    at = 0
    for n, pairs in enumerate(read_):
        if pairs:
            out[n] = z[at : at + len(pairs)].max(axis=0)
        at += len(pairs)
    return out


def _card(
    constitution: Constitution, classifier: Classifier, parts: Mapping[Part, Sequence[Row]], rate: float,
    left_out: Sequence[tuple[str, str, str]], said: Sequence[str], rows: Sequence[Row],
) -> dict[str, Any]:  # fmt: skip
    test = parts["test"]
    p_NH = classifier.judge([row.exchange for row in test])
    heads = []
    for h, head in enumerate(classifier.heads):
        at = [n for n, r in enumerate(test) if head.principle in r.labels and not np.isnan(p_NH[n, h])]
        y = np.array([test[n].labels[head.principle] for n in at], bool)
        numbers = described(p_NH[at, h], y, [test[n].group for n in at], head.threshold)
        heads.append({"principle": head.principle, "view": head.view, "threshold": head.threshold, "test": numbers})
    made = Counter(row.source for row in rows)
    synthetic = sum(n for source, n in made.items() if source in ("bank", "contrast", "example", "twins", "injection"))
    return {
        "name": classifier.manifest.name,
        "kind": classifier.manifest.kind,
        "constitution": {"name": constitution.name, "sha256": constitution.sha256},
        "rate": rate,
        "parts": {part: len(held) for part, held in parts.items()},
        "rows": dict(made),
        "heads": heads,
        "left_out": [list(item) for item in left_out],
        "said": [
            f"{synthetic:,} of {len(rows):,} rows come from templates of the package: numbers on them say how "
            "well such templates are told apart, not how well traffic is.",
            *said,
        ],
    }


def _rows_sha256(rows: Sequence[Row]) -> str:
    whole = hashlib.sha256()
    for row in sorted(rows, key=lambda r: r.id):
        text = hashlib.sha256(f"{row.prompt}\0{row.exchange.reply_text}".encode()).hexdigest()
        whole.update(json.dumps([row.provenance(), text], sort_keys=True).encode())
    return whole.hexdigest()


def check_rows(rows: Sequence[Row]) -> None:
    """Raises InputError where two rows have one id: then provenance would not say which is which."""
    twice = [id for id, n in Counter(row.id for row in rows).items() if n > 1]
    if twice:
        raise InputError(
            f"{len(twice)} ids stand for several rows, the first is {twice[0]!r}: give files of different names"
        )

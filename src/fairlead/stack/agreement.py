"""How well a critic labels: measured on pairs that people have judged, beside a baseline that reads nothing.

Every row has its n and its interval, clustered by prompt; who says nothing comes out at chance (`feedback.agreement`).
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.constitution.schema import Constitution
from fairlead.constitution.yaml import read_yaml
from fairlead.errors import InputError
from fairlead.feedback import agreement as rows_of
from fairlead.feedback.agreement import Row
from fairlead.feedback.files import BadRow, Paths
from fairlead.feedback.stream import stream, survey
from fairlead.feedback.twos import TwoReplies, read_two, shape_of
from fairlead.judges.protocol import Judge
from fairlead.methods.ai_labels import PairLabel, label_pairs
from fairlead.models.protocol import Model
from fairlead.models.remote import Estimate
from fairlead.stack.estimate import NOTHING, go_on
from fairlead.stack.labelling import Voice, spent_of
from fairlead.stack.labels import LabelSettings, Reader, comparers_of

PIECE = 64  # pairs in a call
Wordings = Mapping[str, Sequence[str]]  # principle id -> other wordings of it


@dataclass(frozen=True, slots=True)
class Judged:
    """The pairs that are read: those that people judged, and how many of the file are left out, by reason."""

    pairs: tuple[TwoReplies, ...]
    files: int
    of: int
    ties: int
    bad: int


def judged_pairs(paths: Paths, *, limit: int | None, seed: int, skip_bad_rows: bool = False) -> Judged:
    """Pairs of which people chose a reply; with `limit`, so many drawn evenly.

    Raises InputError without any, and at the first row that cannot be read unless these are to be counted.
    """
    found = survey(paths)
    shape_of([raw.value() for raw in found.head], found.files[0])
    kept: list[tuple[int, TwoReplies]] = []
    draw = random.Random(seed)
    seen = ties = bad = 0
    for raw in stream(found.files):
        try:
            two = read_two(raw.value())
        except BadRow as why:
            if not skip_bad_rows:
                raise InputError(f"{raw.place}: {why}; --skip-bad-rows leaves such rows out and counts them") from None
            bad += 1
            continue
        if two.first == two.second or two.p_first is None or rows_of.side(two.p_first) == 0.5:
            ties += 1
            continue
        seen += 1
        if limit is None or len(kept) < limit:
            kept.append((raw.index, two))
        elif (slot := draw.randrange(seen)) < limit:
            kept[slot] = (raw.index, two)
    if not kept:
        raise InputError(
            f"{found.files[0]}: people chose a reply in none of its {found.rows:,} pairs ({ties:,} ties or without a "
            f"verdict, {bad:,} not read)"
        )
    pairs = tuple(two for _, two in sorted(kept, key=lambda item: item[0]))
    return Judged(pairs, len(found.files), found.rows, ties, bad)


def agree_with_people(
    paths: Paths,
    constitution: Constitution,
    reader: Reader,
    settings: LabelSettings,
    voice: Voice,
    *,
    limit: int | None = None,
    repeats: int = 2,
    wordings: Wordings | None = None,
    skip_bad_rows: bool = False,
    confirm: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """The table of `fairlead label agreement` for a critic, as `--json` prints it.

    repeats    times every question is asked; 1 leaves consistency on repeats out
    wordings   other wordings of principles: consistency over them, each asked once
    """
    judged = judged_pairs(paths, limit=limit, seed=settings.label.seed, skip_bad_rows=skip_bad_rows)
    variants = [constitution, *reworded(constitution, wordings or {})]
    cost = _estimate(judged, variants, reader, settings, repeats)
    if reader.remote:
        voice.say(f"remote: {cost}" + (f"; budget {reader.budget}" if reader.budget else ""))
        go_on(reader.budget, confirm)
    asked = [(constitution, take) for take in range(repeats)] + [(variant, 0) for variant in variants[1:]]
    total, done, started = len(asked) * len(judged.pairs), 0, time.monotonic()
    reads: list[list[PairLabel]] = []
    with voice.progress("labels") as advance:
        for variant, take in asked:
            labels = []
            for piece in _pieces(judged.pairs):
                labels += _read(piece, variant, reader.model(take), settings)
                advance(done := done + len(piece), total)
            reads.append(labels)
    seconds = time.monotonic() - started
    clusters = [two.group for two in judged.pairs]
    ps = [[label.p for label in labels] for labels in reads]
    first = reads[0]
    rows: list[Row | None] = [
        rows_of.agreement(reader.spec, ps[0], _people(judged), clusters),
        *baselines(judged),
        rows_of.position_bias(reader.spec, [label.position_bias for label in first], clusters),
        rows_of.order_flips(
            reader.spec, [None if label.shown_first is None else label.flipped for label in first], clusters
        ),
    ]
    if repeats > 1:
        rows.append(rows_of.consistency("repeats", reader.spec, ps[:repeats], clusters))
    if len(variants) > 1:
        rows.append(rows_of.consistency("wordings", reader.spec, [ps[0], *ps[repeats:]], clusters))
    return _table(judged, rows) | {
        "critic": reader.spec,
        "constitution": {"name": constitution.name, "sha256": constitution.sha256},
        "settings": settings.model_dump(mode="json"),
        "repeats": repeats,
        "wordings": len(variants),
        "cost": _per_thousand(reader, total, seconds),
        "seconds": round(seconds, 3),
    }


def judge_with_people(
    paths: Paths, judge: Judge, *, limit: int | None = None, seed: int = 0, skip_bad_rows: bool = False
) -> dict[str, Any]:
    """The same of a judge that scores one reply at a time: the reply with the higher score is its choice."""
    judged = judged_pairs(paths, limit=limit, seed=seed, skip_bad_rows=skip_bad_rows)
    started = time.monotonic()
    verdicts = judge.judge([item for two in judged.pairs for item in two.pair])
    each = (time.monotonic() - started) * 1000 / max(len(judged.pairs), 1)
    values = [v.score if v.raw is None else v.raw for v in verdicts]
    ps = [_higher(a, b) for a, b in zip(values[0::2], values[1::2], strict=True)]
    clusters = [two.group for two in judged.pairs]
    rows = [rows_of.agreement(judge.name, ps, _people(judged), clusters), *baselines(judged)]
    cost = {"labels": len(judged.pairs), "seconds": round(each, 3)}
    return _table(judged, rows) | {"judge": judge.name, "cost": cost}


def baselines(judged: Judged) -> list[Row]:
    """The longer reply wins: what a reader must beat to be worth its cost."""
    ps = [rows_of.longer(a.reply_text, b.reply_text) for a, b in (two.pair for two in judged.pairs)]
    return [rows_of.agreement("longer wins", ps, _people(judged), [two.group for two in judged.pairs])]


def read_wordings(path: Path, constitution: Constitution) -> dict[str, tuple[str, ...]]:
    """Other wordings of principles from a YAML file, `id: [text, …]`. Raises InputError with file and line."""
    document = read_yaml(path, what="wordings")
    if not isinstance(document.data, dict):
        raise InputError(f"{path}:1: wordings are `principle-id: [text, …]`")
    ids = {p.id for p in constitution.principles}
    for key, texts in document.data.items():
        where = f"{path}:{document.line((key,))}"
        if key not in ids:
            raise InputError(f"{where}: {constitution.name} has no principle {key!r}; it has {', '.join(sorted(ids))}")
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise InputError(f"{where}: the wordings of {key} are a list of texts")
    return {key: tuple(texts) for key, texts in document.data.items()}


def reworded(constitution: Constitution, wordings: Wordings) -> list[Constitution]:
    """The constitution in other words: the k-th has the k-th wording of every principle that has one.

    The principles keep their ids and severities, so that a pair is read by the same ones in each.
    """
    count = max(map(len, wordings.values()), default=0)
    return [
        constitution.model_copy(
            update={
                "principles": tuple(
                    p.model_copy(update={"text": texts[k]}) if k < len(texts := wordings.get(p.id, ())) else p
                    for p in constitution.principles
                )
            }
        )
        for k in range(count)
    ]


# ------------------------------------------------------------------------------------------------- within


def _read(
    pairs: Sequence[TwoReplies], constitution: Constitution, model: Model, settings: LabelSettings
) -> list[PairLabel]:
    comparers = comparers_of(constitution, model, settings)
    return label_pairs(
        [two.pair for two in pairs], constitution.principles, comparers, settings.label, keys=[t.key for t in pairs]
    )


def _pieces(pairs: Sequence[TwoReplies]) -> list[Sequence[TwoReplies]]:
    return [pairs[i : i + PIECE] for i in range(0, len(pairs), PIECE)]


def _people(judged: Judged) -> list[float]:
    return [two.p_first or 0.0 for two in judged.pairs]


def _higher(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    return 0.5 if a == b else float(a > b)


def _estimate(
    judged: Judged, variants: Sequence[Constitution], reader: Reader, settings: LabelSettings, repeats: int
) -> Estimate:
    if not reader.remote:
        return NOTHING
    total = NOTHING
    for k, variant in enumerate(variants):
        dry, model = reader.dry()
        for piece in _pieces(judged.pairs):
            _read(piece, variant, model, settings)
        for sampling in dict.fromkeys(sampling for _, sampling in dry.asked):
            one = reader.fleet.estimate([prompt for prompt, asked in dry.asked if asked == sampling], sampling)
            for _ in range(repeats if k == 0 else 1):
                total += one
    return total


def _table(judged: Judged, rows: Sequence[Row | None]) -> dict[str, Any]:
    return {
        "pairs": len(judged.pairs),
        "prompts": len({two.group for two in judged.pairs}),
        "of": judged.of,
        "ties_left_out": judged.ties,
        "not_read": judged.bad,
        "rows": [dataclasses.asdict(row) for row in rows if row is not None],
    }


def _per_thousand(reader: Reader, labels: int, seconds: float) -> dict[str, Any]:
    """Per 1,000 labels; what came from the cache cost nothing this time, and is said by `calls`."""
    spent = spent_of(reader)
    each = 1000 / max(labels, 1)
    scaled = {key: None if value is None else round(value * each, 6) for key, value in (spent or {}).items()}
    return {"labels": labels, "seconds": round(seconds * each, 3), **scaled}

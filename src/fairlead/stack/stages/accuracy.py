"""Held-out preference accuracy of every trained layer, where a stage learnt from a file of preferences.

It stands in the report as rows of its own: `preference_accuracy` on all held-out pairs, `preference_accuracy_matched`
on those whose two replies differ by at most a tenth in length. The whole table, baselines included, is in
`results.json` under `preference_accuracy`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.judges.lineage import leaf, lineage_hash
from fairlead.measures.measure import Outcome
from fairlead.measures.result import MeasureResult
from fairlead.stack.context import Built, Context
from fairlead.stack.folder import write_json
from fairlead.stack.identity import code_hash, digest
from fairlead.stack.lazy import opened

TITLES = {
    "preference_accuracy": "held-out preferences ranked right",
    "preference_accuracy_matched": "… of pairs matched in length",
}


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Rows by layer for the table of measures, and the whole table with its baselines."""

    rows: dict[str, list[MeasureResult]] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)


def preference_rows(ctx: Context, layers: Sequence[Built]) -> Accuracies:
    """Score the held-out pairs under every layer with weights of its own. Empty where no file was learnt from."""
    found = Accuracies()
    learnt = next((layer for layer in layers if layer.preferences is not None), None)
    if learnt is None or learnt.preferences is None:
        return found
    train, held_out = learnt.preferences
    base = layers[0]
    for layer in layers:
        if not layer.plain:
            continue
        what = {
            "model": layer.identity,
            "base": base.identity,
            "pairs": digest([train.groups, held_out.groups, [r.strength for r in held_out.rows]]),
            "data": str(learnt.data.name) if learnt.data else "",
            "seed": ctx.seed,
            "code": code_hash("methods/evaluate", "methods/rows", "engine", "models/render", "stats"),
            **ctx.numerics,
        }

        def build(folder: Path, layer: Built = layer) -> None:
            with ctx.voice.progress(f"{layer.name}: held-out preferences"):
                write_json(folder / "accuracy.json", _table(layer, base, learnt_from=(train, held_out)))

        entry = ctx.cache.make("accuracy", what, build)
        table = json.loads((entry.path / "accuracy.json").read_bytes())
        found.table.extend({"layer": layer.name, **{k: v for k, v in row.items() if k != "hits"}} for row in table)
        # The base has no reference to be a log-ratio to: it is ranked by its own log-prob per token, as all are.
        found.rows[layer.name] = [_row(layer, row, held_out.groups) for row in table if row["scorer"] == "log-prob"]
    return found


def _table(layer: Built, base: Built, *, learnt_from: tuple[Any, Any]) -> list[dict[str, Any]]:
    from fairlead.methods.evaluate import (
        accuracy_table,
        decided,
        length_matched,
        longer_wins,
        model_margins,
        writer_only,
    )

    train, held_out = learnt_from
    model = opened(layer.model)
    scorers = {"log-prob": model_margins(model, held_out.rows, by="mean", too_long="skip")}
    if layer.identity != base.identity:
        scorers["implicit"] = model_margins(model, held_out.rows, reference=opened(base.model), too_long="skip")
    else:
        scorers["longer wins"] = longer_wins(held_out.rows)
        if any(writers is not None for writers in held_out.generators):
            scorers["writer only"] = writer_only(train, held_out)
    known = decided(held_out.rows)
    matched = set(length_matched(held_out.rows))
    hits = {i: _hit(scorers["log-prob"][i]) for i in known}
    chosen = {"all": known, "length-matched": [i for i in known if i in matched]}
    return [
        {
            "scorer": item.scorer,
            "pairs": item.pairs,
            "value": item.accuracy.value,
            "low": item.accuracy.low,
            "high": item.accuracy.high,
            "n": item.accuracy.n,
            "undecided": item.undecided,
            "missing": item.missing,
            "hits": {str(i): hits[i] for i in chosen[item.pairs]} if item.scorer == "log-prob" else {},
        }
        for item in accuracy_table(scorers, held_out)
    ]


def _hit(margin: float | None) -> float | None:
    """1 where chosen is put first, 0 where rejected is, one half undecided, None where the pair did not fit."""
    return None if margin is None else 0.5 if margin == 0 else float(margin > 0)


def _row(layer: Built, row: dict[str, Any], groups: Sequence[str]) -> MeasureResult:
    """A row with one outcome per pair, so that layers are compared pair by pair like any other measure."""
    outcomes = tuple(
        Outcome(
            f"pair {i}", groups[int(i)], "missing" if hit is None else "scored", hit,
            reason="too long for the model" if hit is None else "",
        )
        for i, hit in row["hits"].items()
    )  # fmt: skip
    id = "preference_accuracy" if row["pairs"] == "all" else "preference_accuracy_matched"
    return MeasureResult(
        measure=id,
        principle="",
        layer=layer.name,
        value=row["value"],
        low=row["low"],
        high=row["high"],
        n=row["n"],
        missing=row["missing"],
        better="higher",
        judge="held-out labels",
        lineage=lineage_hash(leaf("human", text="held-out preferences")),
        evidence=True,
        title=TITLES[id],
        outcomes=outcomes,
    )

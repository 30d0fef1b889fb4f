"""`fairlead guard train --probe MODEL`: a probe for each principle that has rows enough: those of a classifier.

The parts are those of the classifier: learn on 60% of the groups, set on 20%, measure for the card on the last 20%.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.constitution.schema import Constitution
from fairlead.errors import CannotTell
from fairlead.exchange import Exchange
from fairlead.guard.classifier.card import described
from fairlead.guard.classifier.probe import LAST, Probe, fit_probe, hidden_states, save_probe
from fairlead.guard.classifier.rows import Part, Row
from fairlead.guard.classifier.train import FEWEST, RATE, split_in_three
from fairlead.models.render import render_exchange

PARTS: tuple[Part, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Fitted:
    """`card` has the numbers of each probe on rows that it has not seen, and why principles have none."""

    folder: Path
    probes: tuple[Probe, ...]
    card: dict[str, Any]


def fit_probes(
    constitution: Constitution, model: Any, rows: Sequence[Row], out: Path,
    *, layer: int = LAST, rate: float = RATE, seed: int = 0, say: Callable[[str], None] = lambda _: None,
) -> Fitted:  # fmt: skip
    """Fit, measure and write a probe (`out/PRINCIPLE`) for each principle that `rows` tell enough of, and `card.json`.

    Rows without a reply tell a probe nothing, and those that the model has no room for cannot be read: both are said.

    Raises CannotTell where there is no principle with a probe better than chance, with the reasons.
    """
    replied = [row for row in rows if row.view == "exchange"]
    fits = [row for row in replied if _fits(model, row.exchange)]
    say(
        f"{len(fits):,} rows to read; left out: {len(rows) - len(replied):,} without a reply, "
        f"{len(replied) - len(fits):,} too long for {model.name}"
    )
    by_part: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for row, part in zip(fits, split_in_three(fits, seed=seed), strict=True):
        by_part[part].append(row)
    probes, told, left_out = [], [], []
    for id in constitution.ids:
        guard = constitution[id].guard
        labelled = {p: [(r.exchange, r.labels[id]) for r in by_part[p] if id in r.labels] for p in PARTS}
        if guard is None or "reply" not in guard.at or not any(y for one in labelled.values() for _, y in one):
            continue
        why = _short(labelled, rate)
        if not why:
            try:
                probe = fit_probe(model, id, labelled["train"], labelled["valid"], layer=layer, rate=rate)
            except ValueError as problem:
                why = str(problem)
        if why:
            left_out.append([id, why])
            continue
        probe = dataclasses.replace(probe, constitution=constitution.sha256)
        sha256 = save_probe(probe, out / id)
        probes.append(dataclasses.replace(probe, sha256=sha256))
        states = hidden_states(model, [item for item, _ in labelled["test"]], layer)
        p_N = np.array([probe.probability(one) for one in states])
        groups = [row.group for row in by_part["test"] if id in row.labels]
        numbers = described(p_N, np.array([y for _, y in labelled["test"]], bool), groups, probe.threshold)
        told.append({"principle": id, "layer": layer, "threshold": probe.threshold, "sha256": sha256, "test": numbers})
        say(f"{id}: fitted on {len(labelled['train']):,} rows")
    if not probes:
        reasons = "; ".join(f"{id}: {why}" for id, why in left_out) or "no row breaks a guarded principle"
        raise CannotTell(f"no principle has a probe: {reasons}. Give rows with --exchanges")
    for id in set(constitution.ids) - {probe.principle for probe in probes}:
        for file in (out / id / "probe.json", out / id / "probe.safetensors"):
            file.unlink(missing_ok=True)  # of an earlier call: what is left out this time is not served
    card = {
        "constitution": {"name": constitution.name, "sha256": constitution.sha256},
        "model": {"name": model.name, "lineage": model.lineage},
        "rate": rate, "parts": {part: len(held) for part, held in by_part.items()},
        "rows": dict(Counter(row.source for row in fits)), "probes": told, "left_out": left_out,
    }  # fmt: skip
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return Fitted(out, tuple(probes), card)


def _fits(model: Any, item: Exchange) -> bool:
    rendered = render_exchange(model.tokenizer, item)
    return not model.context or len(rendered.prompt) + len(rendered.reply) <= model.context


def _short(labelled: dict[Part, list[tuple[Exchange, bool]]], rate: float) -> str:
    """What is missing before a probe can be fitted, set and measured; "" for nothing."""
    short = []
    for part, held in labelled.items():
        for y in (True, False):
            n = sum(label is y for _, label in held)
            need = max(FEWEST, 0 if y or part != "valid" else round(1 / rate))
            if n < need:
                short.append(f"{n} {'broken' if y else 'kept'} in {part} (needs {need})")
    return ", ".join(short)

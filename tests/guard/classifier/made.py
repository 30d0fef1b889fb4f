"""Rows and constitutions small enough to train on in a test."""

from __future__ import annotations

import random
from pathlib import Path

from fairlead.constitution.schema import Constitution
from fairlead.exchange import Exchange, assistant, user
from fairlead.guard.classifier.rows import Row
from fairlead.guard.classifier.train import Trained, train

_STARTS, _ENDS = (
    ("ba", "ko", "lu", "mi", "nar", "pel", "ros", "tiv", "wen", "zog"),
    ("dar", "fin", "gol", "hup", "jen", "kas"),
)
NAMES = [a + b for a in _STARTS for b in _ENDS]


def constitution() -> Constitution:
    return Constitution.model_validate(
        {
            "name": "small",
            "principles": [
                {
                    "id": "no-sinking", "dimension": "harmless", "severity": 5, "text": "Do not help to sink anything.",
                    "guard": {"on_violation": "refuse", "say": "I sink nothing."},
                },
                {"id": "be-kind", "dimension": "helpful", "severity": 2, "text": "Be kind."},
            ],
        }
    )  # fmt: skip


def rows() -> list[Row]:
    """Sinking is broken, painting is kept; replies that give in are broken, ones that decline are kept."""
    rng, out = random.Random(0), []
    for g in range(120):
        one, two, three, four = rng.sample(NAMES, 4)  # groups share verbs and little else
        for verb, bad in (("sink", True), ("paint", False)):
            id = f"made/{g}.{verb}"
            said = (user(f"{verb} {one} {two} {three} {four}?"),)
            group = f"made/{g}"
            out.append(Row(id, Exchange(said, ()), {"no-sinking": bad}, "made", group))
            does = (assistant(f"First {verb} {two}, then {three} {one}."),)
            out.append(Row(f"{id}/does", Exchange(said, does), {"no-sinking": bad}, "made", group))
            no = (assistant(f"I leave {one} {three} alone."),)
            out.append(Row(f"{id}/declines", Exchange(said, no), {"no-sinking": False}, "made", group))
    return out


def trained(out: Path, **options: object) -> Trained:
    return train(constitution(), rows(), out, copies=0, **options)  # type: ignore[arg-type]

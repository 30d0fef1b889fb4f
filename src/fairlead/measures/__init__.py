"""What is measured: one file per measure, the runner, and the comparison of two layers.

`MEASURES` holds those of the default run by id, in the order of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fairlead.errors import InputError
from fairlead.measures import (
    are_you_sure,
    facts,
    harmful_compliance,
    over_refusal,
    secrets_leaked,
    style_emoji,
    style_flattery,
    style_length,
    sums,
    sycophancy,
    unknown_admitted,
    voice,
)
from fairlead.measures.measure import Measure

_ALL = (
    harmful_compliance, over_refusal, secrets_leaked, sycophancy, are_you_sure, unknown_admitted, voice,
    style_length, style_emoji, style_flattery, facts, sums,
)  # fmt: skip

MEASURES: Mapping[str, Measure] = {module.MEASURE.id: module.MEASURE for module in _ALL}


def chosen(ids: Iterable[str] | None = None) -> list[Measure]:
    """The measures of these ids, in the order given; all of the default run for None. Unknown ids are errors."""
    if ids is None:
        return list(MEASURES.values())
    wanted = list(dict.fromkeys(ids))
    unknown = [item for item in wanted if item not in MEASURES]
    if unknown:
        raise InputError(f"unknown measure {unknown[0]!r}; known: {', '.join(MEASURES)}")
    return [MEASURES[item] for item in wanted]


__all__ = ["MEASURES", "Measure", "chosen"]

"""Harmful compliance: the share of harmful requests that are helped with."""

from fairlead.measures.measure import Measure, once

MEASURE = Measure(
    id="harmful_compliance",
    title="harmful compliance",
    better="lower",
    dimension="harmless",
    ask=once,
    prefers=("no-harm",),
    of_principle=True,
)

"""Sums: the share of sums that are worked out right."""

from fairlead.measures.measure import Measure, once

MEASURE = Measure(
    id="sums",
    title="sums",
    better="higher",
    dimension="",
    ask=once,
    needs_text=True,
)

"""Sycophancy: the share of asserted wrong facts that are agreed with."""

from fairlead.measures.measure import Measure, once

MEASURE = Measure(
    id="sycophancy",
    title="sycophancy",
    better="lower",
    dimension="honest",
    ask=once,
    prefers=("truth-over-agreement",),
    of_principle=True,
)

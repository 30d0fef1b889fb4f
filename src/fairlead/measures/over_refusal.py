"""Over-refusal: the share of harmless twins of harmful requests that are not answered."""

from fairlead.measures.measure import Measure, once

MEASURE = Measure(
    id="over_refusal",
    title="over-refusal",
    better="lower",
    dimension="harmless",
    ask=once,
    prefers=("no-harm",),
    needs_text=True,
)

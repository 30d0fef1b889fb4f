"""Facts: the share of questions of fact that are answered right."""

from fairlead.measures.measure import Measure, once

MEASURE = Measure(
    id="facts",
    title="facts",
    better="higher",
    dimension="",
    ask=once,
    needs_text=True,
)

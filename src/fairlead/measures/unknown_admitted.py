"""Unknown admitted: the share of questions nobody can answer to which the model says so."""

from fairlead.measures.measure import Measure, once

MEASURE = Measure(
    id="unknown_admitted",
    title="unknown admitted",
    better="higher",
    dimension="honest",
    ask=once,
    prefers=("admit-unknown",),
    of_principle=True,
    needs_text=True,
)

"""Voice: the share of replies, to ordinary requests and answered twins, that speak as the constitution says."""

from fairlead.measures.measure import Measure, once_where_answered

MEASURE = Measure(
    id="voice",
    title="voice",
    better="higher",
    dimension="voice",
    ask=once_where_answered,
    prefers=("voice",),
    of_principle=True,
    needs_text=True,
)

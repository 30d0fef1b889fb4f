"""Style, flattery: the share of replies that praise the asker or the question."""

from fairlead.measures.measure import Measure, once_where_answered

MEASURE = Measure(
    id="style_flattery",
    title="style: flattery",
    better="lower",
    dimension="voice",
    ask=once_where_answered,
    prefers=("voice",),
)

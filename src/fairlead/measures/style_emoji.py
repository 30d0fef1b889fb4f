"""Style, emoji: the share of replies that wear an emoji."""

from fairlead.measures.measure import Measure, once_where_answered

MEASURE = Measure(
    id="style_emoji",
    title="style: emoji",
    better="lower",
    dimension="voice",
    ask=once_where_answered,
    prefers=("voice",),
)

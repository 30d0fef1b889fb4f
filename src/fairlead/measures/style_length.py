"""Style, length: the share of replies padded beyond the bound their judge states."""

from fairlead.measures.measure import Measure, once_where_answered

MEASURE = Measure(
    id="style_length",
    title="style: padding",
    better="lower",
    dimension="voice",
    ask=once_where_answered,
    prefers=("voice",),
)

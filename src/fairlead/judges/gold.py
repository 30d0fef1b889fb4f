"""The harbour's own truth as a judge: `gold(measure)` is exact, so it may stand on several sides on disjoint cases."""

from __future__ import annotations

from fairlead.apprentice.gold import MEASURES, Gold, lineage_text
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged


def gold(measure: str) -> Judged:
    """The gold judge of one measure. It reads `meta` of the harbour's cases and means nothing on other exchanges."""
    if measure not in MEASURES:
        raise ValueError(f"the harbour's truth says nothing about {measure!r}; it knows: {', '.join(MEASURES)}")
    truth = Gold(measure)
    return Judged(truth.name, truth.judge, leaf("gold", text=lineage_text(measure), exact=True))

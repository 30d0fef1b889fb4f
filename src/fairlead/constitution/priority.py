"""Which principle goes first where two pull apart: what `over:` and `conflicts:` may say, and where they contradict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairlead.constitution.explain import meant
from fairlead.constitution.schema import Constitution


def faults(constitution: Constitution, origins: Mapping[str, str]) -> list[str]:
    """A sentence with `file:line` for each priority that cannot be: of or over nothing, over itself, or in a circle.

    origins   the `file:line` of each principle, by id
    """
    told = []
    for p in constitution.principles:
        for key, others in (("over", p.over), ("conflicts", p.conflicts)):
            for other in others:
                here = f"{origins[p.id]}: principle {p.id!r}: {key}: "
                if other == p.id:
                    told.append(f"{here}names itself; name the other principle")
                elif other not in constitution:
                    told.append(f"{here}no principle {other!r}. {meant(other, constitution.ids)}")
    return told or [_told(circle, origins) for circle in circles(constitution)]


def circles(constitution: Constitution) -> list[tuple[str, ...]]:
    """Circles among the priorities, one for each `over` that closes one on the way from first to last; [] for none."""
    over = {p.id: p.over for p in constitution.principles}
    done: set[str] = set()
    found: list[tuple[str, ...]] = []

    def walk(id: str, path: tuple[str, ...]) -> None:
        if id in path:
            found.append(path[path.index(id) :])
        elif id not in done:
            for other in over.get(id, ()):
                walk(other, (*path, id))
            done.add(id)

    for id in over:
        walk(id, ())
    return found


def _told(circle: Sequence[str], origins: Mapping[str, str]) -> str:
    first, *rest = circle
    more = ", ".join(f"{id!r} at {origins[id]}" for id in rest)
    return (
        f"{origins[first]}: principle {first!r}: over: the priorities run in a circle: "
        f"{' over '.join((*circle, first))} ({more}); take one `over` out"
    )

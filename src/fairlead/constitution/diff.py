"""What a change of text changes in a constitution: principle by principle, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fairlead.constitution.schema import Assistant, Constitution, Principle, Voice

Kind: TypeAlias = Literal["added", "removed", "changed"]

KEYS = ("text", "dimension", "severity", "over", "conflicts", "guard", "judges", "good", "bad")
"""A principle's keys in the order they are told; `text` first, for which one says reworded."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not the same in both.

    what    `principle ID`, `secret ID`, `assistant`, `vendors`, or `order` (of the principles both have)
    keys    what of it changed, with the value before and after as JSON; all of it where it was added or removed
    """

    what: str
    kind: Kind
    keys: Mapping[str, tuple[Any, Any]]


def changes(before: Constitution, after: Constitution) -> list[Change]:
    """All changes of meaning, in the order of `before`, what was added last; [] where both mean the same."""
    found: list[Change] = []
    found += _of("assistant", _plain(before.assistant), _plain(after.assistant))
    for kind, key in (("principle", "principles"), ("secret", "secrets")):
        first = {item.id: item for item in getattr(before, key)}
        second = {item.id: item for item in getattr(after, key)}
        for id, item in first.items():
            if id in second:
                found += _of(f"{kind} {id}", _plain(item), _plain(second[id]))
            else:
                found.append(Change(f"{kind} {id}", "removed", {k: (v, None) for k, v in _plain(item).items()}))
        for id, item in second.items():
            if id not in first:
                found.append(Change(f"{kind} {id}", "added", {k: (None, v) for k, v in _plain(item).items()}))
    if set(before.vendors) != set(after.vendors):
        found.append(Change("vendors", "changed", {"vendors": (list(before.vendors), list(after.vendors))}))
    both = [id for id in before.ids if id in after]
    now = [id for id in after.ids if id in before]
    if both != now:
        found.append(Change("order", "changed", {"principles": (both, now)}))
    return found


def reworded(before: Constitution, after: Constitution) -> list[str]:
    """Ids of the principles that both have, in other words."""
    return [p.id for p in before.principles if p.id in after and after[p.id].text != p.text]


def _of(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Change]:
    keys = {key: (first.get(key), second.get(key)) for key in {**first, **second} if first.get(key) != second.get(key)}
    return [Change(what, "changed", keys)] if keys else []


def _plain(part: Any) -> dict[str, Any]:
    body: dict[str, Any] = part.model_dump(mode="json", by_alias=True, exclude_none=True)
    body.pop("id", None)
    if isinstance(part, Assistant) and isinstance(part.voice, Voice):
        body["voice"] = part.voice.meaning
    if isinstance(part, Principle):
        return {key: body[key] for key in KEYS if body.get(key)}
    return body

"""`/v1/models`: the names of the models behind the guard, in one list that both official SDKs read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_PLAIN = re.compile(r"[\w.:/@+-]{1,128}", re.ASCII)
_EPOCH = "1970-01-01T00:00:00Z"  # when a model was made is not known here


def listed(names: Iterable[str]) -> dict[str, Any]:
    """The list of these models."""
    data = [
        {
            "id": name,
            "object": "model",
            "type": "model",
            "display_name": name,
            "created": 0,
            "created_at": _EPOCH,
            "owned_by": "upstream",
        }
        for name in names
    ]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": False, **ends}


def read(body: Any) -> list[str]:
    """The names in a provider's list: plain ones alone, in its order."""
    data = body.get("data") if isinstance(body, dict) else None
    names = [one.get("id") for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    return [name for name in names if isinstance(name, str) and _PLAIN.fullmatch(name)]

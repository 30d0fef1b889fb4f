"""What a remote model can do: what its API has, less what its model refuses, as far as that is known.

Three sources, the surest first: a record that `fairlead doctor --live MODEL` wrote after asking the model itself; a
small dated list of models that refuse parameters their API has; the API. What a server refuses while it is asked is an
error that names the parameter, and gone from the model's capabilities from then on.

A record is JSON, one file per URL, API and model:
`{"schema": 1, "date": "2026-11-26", "model": NAME, "url": URL, "api": "chat", "can": [...], "cannot": {"temperature":
"what the server said"}, "found": {...}}`. `can` and `cannot` decide over the capabilities they name and over no other.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fairlead.errors import InputError

log = logging.getLogger("fairlead.capabilities")

RECORDS = Path("runs") / ".cache" / "capabilities"
"""Where records lie unless another place is named, beside the other things that runs remember."""

SCHEMA = 1
AS_OF = "2026-11"

TOP, ALTERNATIVES = "top_logprobs", "alternatives"
_REASONING = re.compile(r"o\d|gpt-[5-9](?!.*chat)")
REFUSED: Mapping[str, frozenset[str]] = {
    "chat": frozenset({"temperature", "top_p", "stop", "top_logprobs"}),
    "responses": frozenset({"temperature", "top_p", "top_logprobs"}),
}
"""By API: what OpenAI's reasoning models refuse at their default effort (list of 2026-11; a record goes before it)."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a model was found to do on a day. `found` holds the details of every probe, for print."""

    model: str
    url: str
    api: str
    date: str
    can: tuple[str, ...] = ()
    cannot: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "date": self.date, "model": self.model, "url": self.url, "api": self.api,
            "can": sorted(self.can), "cannot": dict(self.cannot), "found": dict(self.found),
        }  # fmt: skip


def capabilities_of(
    api: str, model: str, url: str, has: frozenset[str], *, official: bool, records: Path | None
) -> frozenset[str]:
    """What the model can be asked for. `has`: what the API has; `official`: the provider's own address.

    Many servers that speak the API leave `top_logprobs` out, some of them in silence. Where it is more than the API's
    promise (the provider's own address, or a record), "alternatives" says so: judges rely on that alone.
    """
    refused = REFUSED.get(api, frozenset()) if official and _REASONING.match(model.lower()) else frozenset()
    record = read_record(api, model, url, records)
    can = has - refused
    if record is not None:
        can = (can | (frozenset(record.can) & has)) - frozenset(record.cannot)
    known = official or (record is not None and TOP in record.can)
    return can | {ALTERNATIVES} if known and TOP in can else can


def record_path(api: str, model: str, url: str, folder: Path) -> Path:
    """The file of a model's record: its name in readable letters, and a hash of all three."""
    digest = hashlib.sha256(orjson.dumps([api, model, url])).hexdigest()[:16]
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)[:60]}-{api}-{digest}.json"


def read_record(api: str, model: str, url: str, folder: Path | None) -> Record | None:
    """The record of a model, None without one. Raises InputError for a file that is none of ours."""
    if folder is None:
        return None
    path = record_path(api, model, url, folder)
    try:
        row = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise InputError(f"{path}: not a JSON file; delete it, or write it anew with fairlead doctor --live") from None
    try:
        if row["schema"] != SCHEMA:
            raise InputError(f"{path}: schema {row['schema']!r} is not known here; write it anew with doctor --live")
        return Record(
            str(row["model"]), str(row["url"]), str(row["api"]), str(row["date"]),
            tuple(map(str, row["can"])), {str(k): str(v) for k, v in row["cannot"].items()}, dict(row["found"]),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not a capability record; delete it, or write it anew with doctor --live") from None


def write_record(record: Record, folder: Path) -> Path:
    """Keep a record, in place of an older one. Returns its file."""
    path = record_path(record.api, record.model, record.url, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(orjson.dumps(record.to_json(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    temporary.replace(path)
    return path

"""Citations are text: what a provider says about a source is read field by field into JSON, checked like any text,
and written back from the JSON that was released. Where a redaction left no JSON, the citation is gone.

Names are those of OpenAI's annotations and Anthropic's locations. Opaque indices (`encrypted_index`) and ids of files
are not among them: nobody here can read the one or see behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from fairlead.guard.wire import reply
from fairlead.guard.wire.events import Event, Unknown

_TEXTS = frozenset(("url", "title", "cited_text", "document_title", "source", "filename"))
_URL = ("url", "title", "start_index", "end_index")
_IN_DOCUMENT = ("cited_text", "document_index", "document_title")
_ANTHROPIC: dict[str, tuple[str, ...]] = {
    "char_location": (*_IN_DOCUMENT, "start_char_index", "end_char_index"),
    "page_location": (*_IN_DOCUMENT, "start_page_number", "end_page_number"),
    "content_block_location": (*_IN_DOCUMENT, "start_block_index", "end_block_index"),
    "search_result_location": (
        "cited_text", "search_result_index", "source", "title", "start_block_index", "end_block_index"),
    "web_search_result_location": ("cited_text", "url", "title"),
}  # fmt: skip
_OPTIONAL = frozenset(("document_title", "title"))


def _fields(given: Any, names: tuple[str, ...]) -> dict[str, Any] | None:
    """The fields of these names, texts and whole numbers; None where one is missing."""
    if not isinstance(given, dict):
        return None
    out: dict[str, Any] = {}
    for name in names:
        value = given.get(name)
        if isinstance(value, str) if name in _TEXTS else type(value) is int:
            out[name] = value
        elif value is not None or name not in _OPTIONAL:
            return None
    return out


def _read(found: dict[str, Any] | None, out: list[Event]) -> Iterator[str]:
    if found is None:
        out.append(Unknown("field of a text: a citation of an unknown kind"))
    else:
        yield orjson.dumps(found).decode()


def read_chat(given: Any, out: list[Event]) -> Iterator[str]:
    """The texts of the annotations of a chat message."""
    for one in given if isinstance(given, list) else (None,):
        cited = one.get("url_citation") if isinstance(one, dict) and one.get("type") == "url_citation" else None
        yield from _read(_fields(cited, _URL), out)


def write_chat(text: str) -> dict[str, Any] | None:
    cited = _fields(reply.parsed(text), _URL)
    return cited and {"type": "url_citation", "url_citation": {"title": "", **cited}}


def read_responses(one: Any, out: list[Event]) -> Iterator[str]:
    """The text of an annotation of the Responses API. Those of files need ids that are not passed on."""
    known = isinstance(one, dict) and one.get("type") == "url_citation"
    yield from _read(_fields(one, _URL) if known else None, out)


def write_responses(text: str) -> dict[str, Any] | None:
    cited = _fields(reply.parsed(text), _URL)
    return cited and {"type": "url_citation", "title": "", **cited}


def read_messages(one: Any, out: list[Event]) -> Iterator[str]:
    """The text of a citation of the Messages API."""
    kind = one.get("type") if isinstance(one, dict) else None
    names = _ANTHROPIC.get(kind) if isinstance(kind, str) else None
    found = _fields(one, names) if names else None
    yield from _read({"type": kind, **found} if found is not None else None, out)


def write_messages(text: str) -> dict[str, Any] | None:
    given = reply.parsed(text)
    kind = given.get("type") if isinstance(given, dict) else None
    names = _ANTHROPIC.get(kind) if isinstance(kind, str) else None
    found = _fields(given, names) if names else None
    if found is None:
        return None
    missing = {name: None for name in names or () if name in _OPTIONAL}
    hidden = {"encrypted_index": ""} if kind == "web_search_result_location" else {}
    return {"type": kind, **missing, **found, **hidden}

"""Data on its way out: addresses that carry something along, in what the user reads and in the arguments of calls.

Addresses are those with a host (http, https, ftp, ftps, sftp, ws, wss, file), and `data:` and `mailto:`, without one.
An image is fetched without a click, so any image from a host that is not allowed is a finding, and so is a link or an
argument whose path or query carries personal data, a key, or a long run of what is no word. Hosts are compared by their
name and the names below it; with no `hosts` given no host is known, and links without a load pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote_plus, urlsplit

from fairlead.exchange import Exchange, Message
from fairlead.guard.checks import personal
from fairlead.guard.checks.normalise import normalise
from fairlead.guard.checks.spans import SpanWatch, decided
from fairlead.guard.decision import Decision, Outcome
from fairlead.guard.pieces import PLACES
from fairlead.judges.lineage import Lineage, leaf

HELD, BACK = 512, 4096  # a longer address is cut where it stands when it is whole
_WITH_HOST, _WITHOUT = ("https", "http", "ftps", "ftp", "sftp", "wss", "ws", "file"), ("data", "mailto")
_HOSTED, _HOSTLESS = "(?:" + "|".join(_WITH_HOST) + ")://", r"\b(?:" + "|".join(_WITHOUT) + "):"
_ANYWHERE = "(?:(?:" + "|".join(_WITH_HOST) + "):)?//"
_IMAGE = re.compile(
    r"!\[[^\]\n]{0,300}\]\(\s{0,9}<?(" + _ANYWHERE + r"[^\s)>]{1,2000})|!\[[^\]\n]{0,300}\]\[[^\]\n]{0,99}\]"
    r"|<(?:img|iframe|script|link|video|audio|source|embed|object)\b[^>]{0,300}?(?:src|href|data|srcset)\s{0,9}=\s{0,9}"
    r"[\"']?(" + _ANYWHERE + r"[^\s\"'>]{1,2000})",
    re.I,
)
_NO_HOST = re.compile(_HOSTLESS, re.I)
_REST = r"[^\s\"'<>()\[\]{}|\\^`]"
_URL = re.compile(f"(?:{_HOSTED}|{_HOSTLESS}){_REST}{{1,2000}}", re.I)


def _partly(word: str) -> str:
    """A pattern of every beginning of a word, the whole word among them."""
    return "".join(f"(?:{re.escape(char)}" for char in word) + ")?" * (len(word) - 1) + ")"


# What may yet become one of the above at the end of a text: an image, a tag or an address that has not ended.
_OPEN = re.compile(
    r"(?:!(?:\[[^\]\n]{0,300}(?:\](?:\[[^\]\n]{0,99}|\(\s{0,9}<?[^\s)>]*)?)?)?"
    r"|<(?:[a-z]{0,7}|(?:img|iframe|script|link|video|audio|source|embed|object)\b[^>]*)"
    + "".join(f"|{_partly(f'{scheme}://')}" for scheme in _WITH_HOST)
    + "".join(f"|{_partly(f'{scheme}:')}" for scheme in _WITHOUT)
    + f"|(?:{_HOSTED}|{_HOSTLESS}){_REST}*)\\Z",
    re.I,
)
_LOAD = re.compile(r"[A-Za-z0-9+/_=-]{24,}")


@dataclass(frozen=True)
class ExfiltrationCheck:
    """hosts: names that may be reached with anything; `unknown_hosts`: whether a call may reach any other at all."""

    principle: str = ""
    on_violation: Outcome = "redact"
    at: frozenset[str] = PLACES
    hosts: tuple[str, ...] = ()
    unknown_hosts: bool = True
    cost: int = 0
    held: ClassVar[int] = HELD  # characters of a stream at most, from where an address may have begun
    ordinary: ClassVar[int] = 0  # of any other text

    @property
    def name(self) -> str:
        return f"exfiltration:{self.principle}" if self.principle else "exfiltration"

    @cached_property
    def lineage(self) -> Lineage:
        return leaf("rule", text=" ".join(["guard exfiltration", *self.hosts]), code=Path(__file__).read_text())

    def matches(self, text: str) -> list[tuple[str, int, int]]:
        """(what, start, end) of every address that may carry something out."""
        if text.isascii() and not _begun(text):
            return []
        read = normalise(text)
        return [(what, *read.locate(start, end)) for what, start, end in self._addresses(read.text)]

    def opens(self, text: str) -> int:
        """Where an address or an image begins that is not whole yet."""
        read = normalise(text)
        begun = "<" in read.text or "![" in read.text or _begun(read.text)
        match = _OPEN.search(read.text, 0 if begun else max(0, len(read.text) - 8))  # the first word of one, at most
        return len(text) if match is None else read.locate(match.start(), match.start() + 1)[0]

    def _addresses(self, text: str) -> list[tuple[str, int, int]]:
        if not _begun(text):
            return []
        found = []
        images = []
        for match in _IMAGE.finditer(text):
            address = match[1] or match[2] or ""
            if address and not self._known(address):
                images.append(match.span())
                found.append(("an image from a host that is not allowed", *match.span()))
        for match in _URL.finditer(text):
            if any(a <= match.start() < b for a, b in images) or self._known(match[0]):
                continue
            what = _carries(match[0]) or ("" if self.unknown_hosts else "an address of a host that is not allowed")
            if what:
                found.append((what, *match.span()))
        return found

    def _known(self, address: str) -> bool:
        try:
            if address[:7].lower() == "mailto:":
                host = unquote_plus(urlsplit(address).path).rpartition("@")[2].lower().rstrip(".")
            else:
                host = (urlsplit(address if "://" in address else f"https:{address}").hostname or "").rstrip(".")
        except ValueError:
            return False  # what cannot be read is no host that is known
        return any(host == known or host.endswith(f".{known}") for known in self.hosts)

    def says(self, what: str, place: str) -> str:
        return f"{what}, in the {place.replace('_', ' ')}"

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [decided(self, item.reply) for item in exchanges]

    def watch(self, messages: Sequence[Message]) -> SpanWatch:
        return SpanWatch(self, HELD, BACK, self.opens)


def _begun(text: str) -> bool:
    return "//" in text or (":" in text and _NO_HOST.search(text) is not None)


def _carries(address: str) -> str:
    """What an address takes along in its query, its fragment and its path, or ""."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "an address that cannot be read"
    # a letter's address is its host, and bytes in base64 read like anything
    path = "" if parts.scheme == "mailto" or (parts.scheme == "data" and ";base64," in parts.path) else parts.path
    load = unquote_plus(" ".join((path, parts.query, parts.fragment, parts.username or "")))
    found = personal.PersonalData().matches(load)
    if found:
        return f"an address that carries {found[0][0]}"
    for run in _LOAD.findall(unquote_plus(f"{parts.query} {parts.fragment}")):
        if any(c.isdigit() for c in run) and any(c.isalpha() for c in run) and not run.count("-") > len(run) // 8:
            return "an address that carries a long code"
    host = parts.hostname or ""
    if any(len(label) > 40 for label in host.split(".")):
        return "an address whose host carries a long code"
    return ""

"""What the audit log holds of one exchange: digests, stretches of text, verdicts and counts. Never a text.

`encode` makes the bytes that are chained and stored: one line of JSON with short keys, what is empty left out, so that
`sqlite3 audit.db` and any JSON reader can open it. The names of the keys are in docs/guard-audit.md.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from fairlead.guard.ledger import Range, Verdict

__all__ = ["EVIDENCE", "NOTHING", "Entry", "Range", "Verdict", "dumped", "encode", "keyed", "policy_digest"]

EVIDENCE = 500  # characters of one evidence that are kept; what is cut off is counted in its place
NOTHING: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """One exchange that went through the guard, or a part of it.

    time          seconds since 1970, when the request was read
    request       its id, 16 hex digits
    route         path of the endpoint
    decision      what was done: an `Outcome`
    constitution  sha256 of the constitution that was asked
    classifier    sha256 of the classifier ("" for none)
    policy        digest of what had to pass (`policy_digest`), as a policy record of the chain says it ("" in old logs:
                  what the last such record before it says)
    tenant        digest of the tenant's key ("" for none)
    stream        whether the reply was streamed
    principle     id of the principle that decided ("" for none)
    verdict       id that the client was told ("" for none)
    asked         sha256 of what was asked, as scanned ("" where it was not kept)
    verdicts      of every check that looked, "allow" included: they are what covers the bytes
    released      what left
    written       bytes of model text, names of called tools and guard's words in UTF-8, counted where they were written
                  and not by what released them; -1 where nobody counted. `verify` holds it against `released`
    withheld      what did not leave because nothing could read it, by kind: {"opaque reasoning": 1, "unknown event": 2}
    passed        what left unread because the policy says so, by kind
    shadow        verdicts of checks in shadow mode: what they would have done; "allow" included
    usage         counts, by name: tokens, calls of critics
    status        of the HTTP answer
    ended         how it ended, where not as it should: "client left", "upstream failed", "deadline", …
    more          further entries of this request follow (`--audit strict` writes before each release); their ranges go
                  on where these end, and `written` stands in the last
    """

    time: float
    request: str
    route: str
    decision: str
    constitution: str
    classifier: str = ""
    tenant: str = ""
    stream: bool = False
    principle: str = ""
    verdict: str = ""
    asked: str = ""
    verdicts: tuple[Verdict, ...] = ()
    released: tuple[Range, ...] = ()
    written: int = -1
    withheld: Mapping[str, int] = field(default_factory=lambda: NOTHING)
    passed: Mapping[str, int] = field(default_factory=lambda: NOTHING)
    shadow: tuple[Verdict, ...] = ()
    usage: Mapping[str, int] = field(default_factory=lambda: NOTHING)
    status: int = 200
    ended: str = ""
    more: bool = False
    policy: str = ""


def policy_digest(required: Mapping[str, Iterable[str]]) -> str:
    """Names what has to pass, the names of checks by place: 16 hex digits, the same for the same checks."""
    said = {place: sorted(checks) for place, checks in sorted(required.items())}
    return hashlib.sha256(orjson.dumps(said)).hexdigest()[:16]


def encode(entry: Entry, digest_key: bytes, **beside: Any) -> bytes:
    """The stored form. Digests of texts are keyed here: who has the log but not the key cannot try guesses of a text.

    `beside` are further keys, of texts stored apart (texts.py).
    """
    number = {v.id: n for n, v in enumerate(entry.verdicts)}
    body: dict[str, Any] = {
        "kind": "exchange",
        "time": entry.time,
        "request": entry.request,
        "route": entry.route,
        "decision": entry.decision,
        "constitution": entry.constitution,
        "status": entry.status,
        "written": entry.written,
        "verdicts": [_verdict(v) for v in entry.verdicts],
        "released": [
            (r.choice, r.part, r.place, r.start, r.end, r.bytes, keyed(r.sha256, digest_key),
             [number.get(id, id) for id in r.verdicts])
            for r in entry.released
        ],
    }  # fmt: skip
    if entry.classifier:
        body["classifier"] = entry.classifier
    if entry.policy:
        body["policy"] = entry.policy
    if entry.tenant:
        body["tenant"] = entry.tenant
    if entry.stream:
        body["stream"] = True
    if entry.principle:
        body["principle"] = entry.principle
    if entry.verdict:
        body["verdict"] = entry.verdict
    if entry.asked:
        body["asked"] = keyed(entry.asked, digest_key)
    if entry.withheld:
        body["withheld"] = entry.withheld
    if entry.passed:
        body["passed"] = entry.passed
    if entry.shadow:
        body["shadow"] = [_verdict(v) for v in entry.shadow]
    if entry.usage:
        body["usage"] = entry.usage
    if entry.ended:
        body["ended"] = entry.ended
    if entry.more:
        body["more"] = True
    if beside:
        body.update(beside)
    return dumped(body)


def dumped(body: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON of a record, or of what is kept beside it. Halves of surrogate pairs, which no UTF-8 can hold, are
    written as their escapes."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return orjson.dumps(_clean(body))


def keyed(sha256: str, key: bytes) -> str:
    """A digest under the log's key, 32 hex digits. Raises ValueError where `sha256` is not 64 hex digits."""
    raw = bytes.fromhex(sha256)
    if len(raw) != 32:
        raise ValueError(f"a digest has 64 hex digits, this has {len(sha256)}: give sha256(…).hexdigest()")
    return hmac.digest(key, raw, "sha256")[:16].hex()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def _verdict(v: Verdict) -> tuple[Any, ...]:
    evidence = v.evidence
    if len(evidence) > EVIDENCE:
        evidence = f"{evidence[:EVIDENCE]}… ({len(evidence) - EVIDENCE} more characters)"
    return (v.id, v.check, v.principle, v.outcome, round(v.ms, 3), evidence)

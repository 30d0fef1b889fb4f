"""Replies that were paid for once: on disk, under the hash of the whole request, and read instead of asked again.

The key is the full request: where it goes (provider, URL, version, model), every message, every sampling parameter, the
number of replies, and which draw it is. Where the same request is drawn anew on purpose (two rows that are equal, the
second of n replies, the same model asked again later with a temperature), each draw has an entry of its own, in the
order of asking: a program that runs again gets the same draws, and no program gets one draw twice. Requests that fix
their luck (temperature 0, or a seed) have one entry.

One file per request, written beside its place and renamed into it, so that two processes may use one folder: a reader
sees a whole entry or none. Only replies are kept, never prompts or keys, and no errors. A file that is not whole is
counted, said and asked again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fairlead.exchange import from_json, to_json
from fairlead.models.protocol import Prompt, Reply, Sampling

log = logging.getLogger("fairlead.cache")

VERSION = 1


@dataclass(frozen=True, slots=True)
class Size:
    """What lies in a cache."""

    entries: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.entries:,} replies kept, {self.bytes / 1e6:,.1f} MB"


class ResponseCache:
    """A folder of replies. `fresh`: nothing is read, and what comes is written over what was there."""

    def __init__(self, folder: Path | str, *, fresh: bool = False) -> None:
        self.folder, self.fresh = Path(folder), fresh
        self.hits = self.broken = self.unwritten = 0

    def __repr__(self) -> str:
        return f"ResponseCache({str(self.folder)!r}, fresh={self.fresh})"

    def get(self, key: str) -> tuple[Reply, ...] | None:
        """The replies to a request, None where there are none."""
        if self.fresh:
            return None
        path = self._path(key)
        try:
            row = orjson.loads(path.read_bytes())
            body = row["replies"]
            if row["key"] != key or row["sha256"] != _sha(body):
                raise ValueError("another content than was written")
            replies = tuple(from_json(Reply, reply) for reply in body)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, OSError) as error:
            self.broken += 1
            log.warning("%s is not whole (%s): its request is sent again", path, type(error).__name__)
            return None
        self.hits += 1
        return replies

    def put(self, key: str, replies: Sequence[Reply]) -> None:
        """Keep the replies to a request; those with an error are not kept. A disk that takes no more is said once."""
        if not replies or any(reply.finish == "error" for reply in replies):
            return
        path, body = self._path(key), [to_json(reply) for reply in replies]
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    file.write(orjson.dumps({"key": key, "sha256": _sha(body), "replies": body}))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:  # the reply is here and paid for: a cache that cannot keep it must not lose it
            self.unwritten += 1
            if self.unwritten == 1:
                log.warning("%s: replies cannot be kept (%s)", self.folder, error.strerror)

    def size(self) -> Size:
        """Entries and bytes on disk."""
        files = [entry.stat().st_size for entry in self.folder.glob("*/*.json")]
        return Size(len(files), sum(files))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


class Draws:
    """Which draw of a request this is, counted for one model in one process."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def next(self, request: str, sampling: Sampling) -> int:
        """0 for a request that fixes its luck; else how often the same one was drawn before."""
        if sampling.temperature == 0 or sampling.seed is not None:
            return 0
        self._seen[request] += 1
        return self._seen[request] - 1


def request_key(endpoint: Mapping[str, Any], prompt: Prompt, sampling: Sampling, *more: int) -> str:
    """The hash of a whole request to an endpoint; `more` tells its draws apart."""
    body = [VERSION, dict(endpoint), [to_json(message) for message in prompt], to_json(sampling), *more]
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _sha(body: Any) -> str:
    return hashlib.sha256(orjson.dumps(body)).hexdigest()

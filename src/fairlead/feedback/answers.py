"""Answers are paid for once: what a model said is kept on disk by content, and not asked again.

One SQLite file per model, so that a million answers need no memory and several jobs share them. An answer is kept as
soon as it came: of a job that is killed, or runs out of budget in the middle of a call, none that arrived is lost.
Errors are not kept. `Dry` is the other side: it lets a job run without asking, to tell what it would ask.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from fairlead.errors import MissingResource
from fairlead.exchange import assistant, from_json, to_json
from fairlead.models.protocol import Model, Prompt, Reply, Sampling

_TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


class Answers:
    """What one model answered, by content, in a file. Safe between threads and between processes of one machine."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing by this; a power cut may lose the last answers, which are asked again.
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            raise _unwritable(file, error) from error

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """The values of those keys that are known."""
        found = {}
        with self._lock:
            for key in keys:
                row = self._base.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = orjson.loads(row[0])
        return found

    def put(self, key: bytes, value: Any) -> None:
        try:
            with self._lock:
                self._base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, orjson.dumps(value)))
        except sqlite3.Error as error:
            raise _unwritable(self.file, error) from error

    def __len__(self) -> int:
        with self._lock:
            return int(self._base.execute("SELECT count(*) FROM answers").fetchone()[0])


class Remembered:
    """A model whose answers are kept and given again for the same question.

    take  tells repeats of one question apart
    keep  whether new answers are kept
    """

    def __init__(self, model: Model, answers: Answers, *, take: int = 0, keep: bool = True) -> None:
        self._model, self._answers, self._take, self._keep = model, answers, take, keep

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        keys = [_key("generate", prompt, to_json(sampling), self._take) for prompt in prompts]
        known = {k: tuple(from_json(Reply, reply) for reply in got) for k, got in self._answers.get(keys).items()}
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        if new:
            names = list(new)

            def came(row: int, replies: tuple[Reply, ...]) -> None:
                known[names[row]] = replies
                if self._keep and replies and not any(reply.finish == "error" for reply in replies):
                    self._answers.put(names[row], [to_json(reply) for reply in replies])

            ask: Any = self._model.generate
            tells = {"on_replies": came} if getattr(self._model, "tells", False) else {}
            for row, replies in enumerate(ask(list(new.values()), sampling, **tells)):
                if names[row] not in known:  # not told of, or not told of as an answer
                    came(row, replies)
        return [known[key] for key in keys]

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        keys = [_key("logprobs", p, list(c), 0) for p, c in zip(prompts, continuations, strict=True)]
        known = self._answers.get(keys)
        new = {k: i for i, k in enumerate(keys) if k not in known}
        if new:
            rows = list(new.values())
            got = self._model.logprobs([prompts[i] for i in rows], [continuations[i] for i in rows])
            for key, values in zip(new, got, strict=True):
                known[key] = values
                if self._keep and all(value == value for value in values):
                    self._answers.put(key, values)
        return [[float(v) for v in known[key]] for key in keys]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)


class Dry:
    """Stands for a model that is asked nothing: notes what it would be asked, and answers with words of no meaning."""

    tells = False

    def __init__(self, model: Model) -> None:
        self._model = model
        self.asked: list[tuple[Prompt, Sampling]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        self.asked += [(prompt, sampling) for prompt in prompts]
        # as long as a reply may become: what is asked next may hold it
        words = assistant("word " * (4 * (sampling.max_tokens or 16) // 5))
        return [(Reply((words,), "stop"),) * sampling.n for _ in prompts]

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        self.asked += [
            (prompt, Sampling(max_tokens=1)) for prompt, c in zip(prompts, continuations, strict=True) for _ in c
        ]
        return [[0.0] * len(c) for c in continuations]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)


def _key(*what: Any) -> bytes:
    body = orjson.dumps([to_json(item) for item in what], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(body).digest()


def _unwritable(file: Path, error: Exception) -> MissingResource:
    return MissingResource(f"{file}: answers cannot be kept there: {error}; free some space, or give another --cache")

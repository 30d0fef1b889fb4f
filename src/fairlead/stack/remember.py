"""Remote replies are paid for once: every answer is kept as soon as it came, and not asked for again.

A run that ends in the middle (Ctrl-C, an empty purse, a dead server) loses nothing it has paid for. Kept in
`replies/<identity>.jsonl` of the cache, one line per prompt and sampling; errors are not kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from fairlead.exchange import from_json, to_json
from fairlead.models import OutOfBudget
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.stack.identity import digest


class Remembering:
    """A model whose replies are kept in a file and given again for the same prompt and sampling.

    `say` hears of replies that came with something that is no text.
    """

    def __init__(
        self, model: Model, file: Path, *, fresh: bool = False, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._model = model
        self._file = file
        self._say = say
        self._known: dict[str, tuple[Reply, ...]] = {}
        if fresh:
            file.unlink(missing_ok=True)
        elif file.is_file():
            self._read()

    def _read(self) -> None:
        for line in self._file.read_bytes().splitlines():
            try:
                row = orjson.loads(line)
                self._known[row["key"]] = tuple(from_json(Reply, reply) for reply in row["replies"])
            except (ValueError, KeyError, TypeError):
                continue  # a line cut off by a kill: its prompt is simply asked again

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        keys = [_key(prompt, sampling) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        failed: dict[str, tuple[Reply, ...]] = {}
        if new:
            try:
                replies: Sequence[tuple[Reply, ...]] = self._model.generate(list(new.values()), sampling)
            except OutOfBudget as error:
                self._keep(list(new), error.replies)
                raise
            failed = self._keep(list(new), replies)
            mended = sum(reply.mended > 0 for got in replies for reply in got)
            if mended:
                self._say(
                    f"{self._model.name}: {mended:,} replies held broken characters (lone surrogates), now \ufffd"
                )
        return [self._known[key] if key in self._known else failed[key] for key in keys]

    def _keep(self, keys: Sequence[str], replies: Sequence[tuple[Reply, ...]]) -> dict[str, tuple[Reply, ...]]:
        """Keep whole answers; returns the others."""
        whole: list[bytes] = []
        others: dict[str, tuple[Reply, ...]] = {}
        for key, got in zip(keys, replies, strict=False):  # after OutOfBudget there may be fewer
            if got and all(reply.finish != "error" for reply in got):
                self._known[key] = got
                row = {"key": key, "replies": [to_json(reply) for reply in got]}
                whole.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            else:
                others[key] = got
        if whole:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(b"".join(whole))
                file.flush()
                os.fsync(file.fileno())
        return others

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> Any:  # noqa: B008
        """Of what is not known yet."""
        model: Any = self._model
        return model.estimate([p for p in prompts if _key(p, sampling) not in self._known], sampling)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)


def _key(prompt: Prompt, sampling: Sampling) -> str:
    return digest([[to_json(message) for message in prompt], to_json(sampling)])

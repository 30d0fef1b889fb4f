"""Remote replies are paid for once: a prompt's replies are kept as soon as they came, and not asked for again.

A run that ends in the middle (Ctrl-C, an empty purse, a wrong key, a dead server) loses none that had arrived. Kept in
`replies/<identity>.jsonl` of the cache, one line per prompt and sampling; errors are not kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from fairlead.exchange import from_json, to_json
from fairlead.models.protocol import Prompt, Reply, Sampling
from fairlead.models.remote import RemoteModel
from fairlead.stack.identity import digest


class Remembering:
    """A remote model whose replies are kept in a file and given again for the same prompt and sampling.

    `say` hears of replies that came with something that is no text.
    """

    def __init__(
        self, model: RemoteModel, file: Path, *, fresh: bool = False, say: Callable[[str], None] = lambda text: None
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
            names = list(new)
            with self._kept() as keep:

                def came(row: int, replies: tuple[Reply, ...]) -> None:
                    if not replies or any(reply.finish == "error" for reply in replies):
                        failed[names[row]] = replies
                    else:
                        self._known[names[row]] = replies
                        keep(names[row], replies)

                replies = self._model.generate(list(new.values()), sampling, on_replies=came)
            mended = sum(reply.mended > 0 for got in replies for reply in got)
            if mended:
                self._say(
                    f"{self._model.name}: {mended:,} replies held broken characters (lone surrogates), now \ufffd"
                )
        return [self._known[key] if key in self._known else failed[key] for key in keys]

    @contextmanager
    def _kept(self) -> Iterator[Callable[[str, tuple[Reply, ...]], None]]:
        """A function that appends replies to the file: out of this process at once, on the disk at the end."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # cut off by a kill: the next line must not be joined to it
                    file.write(b"\n")

            def keep(key: str, replies: tuple[Reply, ...]) -> None:
                row = {"key": key, "replies": [to_json(reply) for reply in replies]}
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                file.flush()

            try:
                yield keep
            finally:
                file.flush()
                os.fsync(file.fileno())

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> Any:  # noqa: B008
        """Of what is not known yet."""
        return self._model.estimate([p for p in prompts if _key(p, sampling) not in self._known], sampling)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)


def _key(prompt: Prompt, sampling: Sampling) -> str:
    return digest([[to_json(message) for message in prompt], to_json(sampling)])

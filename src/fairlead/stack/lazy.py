"""Models that are opened when somebody asks them something, and that a cached run never opens.

What others need of a model without asking it (its lineage, what it can do, its context) is remembered beside the
cache under the model's identity, so that judges and ledgers work on a closed model as on an open one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairlead.errors import MissingResource
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.stack.cache import Cache
from fairlead.stack.folder import write_json
from fairlead.stack.identity import code_hash


class LazyModel:
    """Stands for a model until it is asked something. Everything the open model has is reached through it."""

    def __init__(
        self, name: str, identity: str, opener: Callable[[], Model], cache: Cache, *, remote: bool = False
    ) -> None:
        self.name = name
        self.remote = remote  # whether a server has it: else it has no `url`, and is not opened to find that out
        self.identity = identity
        self._opener = opener
        self._cache = cache
        self._model: Model | None = None
        self._known: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"LazyModel({self.name!r}, {'open' if self._model else 'closed'})"

    def opened(self) -> Model:
        """The model itself. A method and no property: an AttributeError inside must not look like a missing name."""
        if self._model is None:
            self._model = self._opener()
        return self._model

    @property
    def lineage(self) -> str:
        return str(self.known["lineage"])

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(self.known["capabilities"])

    @property
    def context(self) -> int | None:
        context = self.known["context"]
        return None if context is None else int(context)

    @property
    def url(self) -> str | None:
        """Of its server, None where it is in this process. Not remembered: the environment has a say in it."""
        if not self.remote:
            return None
        try:
            return getattr(self.opened(), "url", None)
        except MissingResource:
            return None  # without its key it is asked nothing, so nothing goes anywhere

    @property
    def known(self) -> dict[str, Any]:
        """What is remembered of the model; it is opened where nothing is."""
        if self._known is None:
            what = {"identity": self.identity, "code": code_hash("models")}
            entry = self._cache.make("models", what, self._remember)
            self._known = json.loads((entry.path / "model.json").read_bytes())
        return self._known

    def _remember(self, folder: Path) -> None:
        model = self.opened()
        write_json(
            folder / "model.json",
            {"lineage": model.lineage, "capabilities": sorted(model.capabilities), "context": model.context},
        )

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        return self.opened().generate(prompts, sampling)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        return self.opened().logprobs(prompts, continuations)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.opened(), name)


def opened(model: Any) -> Any:
    """The model behind a `LazyModel`, or the model itself where it is open: what trainers need."""
    return model.opened() if isinstance(model, LazyModel) else model


class Watched:
    """A model whose long `generate` calls tell how far they are, asked in pieces of `piece` prompts.

    `called` hears the prompts of each piece before they are asked.
    """

    def __init__(
        self,
        model: Model,
        heard: Callable[[int], None],
        piece: int = 256,
        called: Callable[[Sequence[Prompt]], None] = lambda prompts: None,
    ) -> None:
        self._model, self._heard, self._piece, self._called = model, heard, piece, called

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        replies: list[tuple[Reply, ...]] = []
        for start in range(0, len(prompts), self._piece):
            self._called(prompts[start : start + self._piece])
            replies += self._model.generate(prompts[start : start + self._piece], sampling)
            self._heard(len(replies) - start)
        return replies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

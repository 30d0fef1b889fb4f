"""A local model with an adapter that was kept apart, folded in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

from fairlead.engine import adapters
from fairlead.engine.adapters import Adapter
from fairlead.errors import InputError


class Weighted(Protocol):
    """What a model needs for it: its weights, their identity, and a way to the same model around others."""

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> str: ...
    @property
    def module(self) -> Any: ...

    def with_weights(self, module: Any) -> Any: ...


M = TypeVar("M", bound=Weighted)


def with_adapter(model: M, adapter: Adapter | Path | str) -> M:
    """The model with a kept adapter folded in: the same weights, bit for bit, as when it had just been trained.

    `adapter` may be its folder. Raises InputError for another base than it was trained on, and for what is no adapter.
    """
    where = "the adapter" if isinstance(adapter, Adapter) else str(adapter)
    try:
        kept = adapter if isinstance(adapter, Adapter) else adapters.load_adapter(adapter)
        if kept.base and kept.base != model.lineage:
            raise InputError(
                f"{where} was trained on {kept.base}, and {model.name} is {model.lineage}: open the model it belongs on"
            )
        folded: M = model.with_weights(adapters.merged(adapters.with_saved(model.module, kept)))
    except (ValueError, FileNotFoundError) as error:
        raise InputError(f"{where}: {error}") from error
    return folded

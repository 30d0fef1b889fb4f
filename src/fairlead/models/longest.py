"""How long the context of a served model is, where its server says it (`max_model_len` in vLLM's list of models)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

PATIENCE_S = 10.0
"""Seconds a server has to answer; a server that is busy with something else is not waited for."""


class Longest:
    """Asks a server of one's own once, free of charge. `path`: where its list of models lies, for the SDK's client."""

    def __init__(self, model: str, path: str, *, official: bool) -> None:
        self._model, self._path = model, path
        self._known = official  # the providers' own lists do not tell, and their contexts are long
        self._tokens: int | None = None

    async def __call__(self, client: Any, sdk: Any) -> int | None:
        """Longest prompt plus reply in tokens, or None. A server that is not there yet is asked again the next time.

        `client` is the async client of `sdk`, the module openai or anthropic.
        """
        if not self._known:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    listed = await client.get(self._path, cast_to=object)
            except (TimeoutError, sdk.APITimeoutError, sdk.APIStatusError, sdk.APIResponseValidationError, ValueError):
                listed = None
            except sdk.APIConnectionError:
                return None
            self._known, self._tokens = True, _longest(listed, self._model)
        return self._tokens


def _longest(listed: Any, model: str) -> int | None:
    rows = listed.get("data") if isinstance(listed, Mapping) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, Mapping) and row.get("id") == model and isinstance(row.get("max_model_len"), int):
            return int(row["max_model_len"]) or None
    return None

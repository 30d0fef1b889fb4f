"""A model in this process in the place of a server: the same routes through the same formats.

The model is asked for whole replies, by one thread that batches what arrives together (`models/serve.py`); the guard
streams what it releases of them. So a streamed reply begins when the model has ended.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fairlead.errors import FairleadError
from fairlead.guard.proxy.headers import Head
from fairlead.guard.proxy.settings import Limits
from fairlead.guard.proxy.upstream import Answer, Broken
from fairlead.guard.wire.errors import kind_of
from fairlead.models import formats
from fairlead.models.protocol import CapabilityError, Model, Prompt, Reply, Sampling
from fairlead.models.serve import Batcher
from fairlead.models.toolong import TooLong
from fairlead.models.wanted import Unwanted

_STREAM = ("stream", "stream_options")


class Local:
    """A model behind the routes that a server would have. Made before the loop runs."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.name = model.name.rsplit("/", 1)[-1]
        self.shown = f"{model.name} in this process"
        self.model = model
        self.url: str | None = getattr(model, "url", None)  # of a managed model: a provider reads what is said
        self._batcher = Batcher(model, self.name)
        self._pool = ThreadPoolExecutor(min(64, limits.in_flight), thread_name_prefix="fairlead-model")

    async def ask(self, route: str, body: dict[str, Any], head: Head, *, stream: bool) -> Answer:
        """The model's reply. `stream` changes nothing here: the guard streams it."""
        asked = {key: value for key, value in body.items() if key not in _STREAM}
        version = {"anthropic-version": head.version or "2023-06-01"}
        left = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, route, asked, version, left)
        try:
            return Whole(await work)
        finally:
            left.set()  # the client is gone, or a bound was passed: a model that draws its tokens here stops

    def _answer(
        self, route: str, body: dict[str, Any], headers: dict[str, str], left: threading.Event
    ) -> dict[str, Any]:
        if body.get("model", self.name) != self.name:
            told = f"there is no such model here; it is called {self.name!r}"
            raise Broken(404, told, again=False, kind="not_found")
        if route == "/v1/completions":
            told = "this model answers conversations; use /v1/chat/completions"
            raise Broken(400, told, again=False, kind="invalid_request")
        try:
            answer = formats.ROUTES[route](_Asked(self._batcher, left), body, headers)
        except formats.HttpError as error:
            raise Broken(error.status, str(error), again=False, kind=kind_of(error.status)) from None
        except TooLong as error:
            told = f"prompt is too long: {error}"
            raise Broken(400, told, again=False, kind="invalid_request") from None
        except CapabilityError as error:
            raise Broken(400, str(error), again=False, kind="invalid_request") from None
        except Unwanted:
            raise Broken(502, "nobody waits for this reply", again=False) from None
        except FairleadError as error:
            raise Broken(502, f"the model did not answer ({type(error).__name__})") from None
        assert isinstance(answer, dict)
        return answer

    async def models(self, head: Head) -> dict[str, Any]:
        return formats.models(self._batcher)

    async def close(self) -> None:
        self._batcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Asked:
    """The model as the formats ask it for one request."""

    def __init__(self, batcher: Batcher, left: threading.Event) -> None:
        self.model, self.name, self.lock = batcher.model, batcher.name, batcher.lock
        self._batcher, self._left = batcher, left

    def ask(self, prompt: Prompt, sampling: Sampling) -> tuple[Reply, ...]:
        return self._batcher.ask(prompt, sampling, lambda: not self._left.is_set())


class Whole:
    """A reply that is there."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = body

    async def whole(self) -> dict[str, Any]:
        return self.body

    async def pieces(self) -> AsyncIterator[bytes]:
        raise NotImplementedError("a reply in this process comes whole")
        yield b""

    def close(self) -> None:
        return None

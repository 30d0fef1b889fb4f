"""Several servers of one model as one model: calls go to the least busy, and past a server that fails.

`openai/NAME@URL,URL2` names them. A call that fails on one server is asked of another. Whether it failed for the server
or for the prompt is found out by asking that server something that was answered before: a server that does not answer
that either is set aside, said aloud, and tried again after a pause; a prompt that fails on servers that answer others
has no answer. With no server left the fleet raises, and who asked may start again later.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import InputError, MissingResource
from fairlead.models import Budget, Price, open_model
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.models.remote import Estimate, Limits

PAUSE_S = 60.0  # before a server that failed is tried again; twice as long each time, up to LONGEST_S
LONGEST_S = 900.0


def endpoints(spec: str) -> list[str]:
    """The models that a spec names: `openai/NAME@URL,URL2` is two, any other spec one."""
    found = re.fullmatch(r"([^@]+)@(\w+://.*,.*)", spec)
    if found is None:
        return [spec]
    urls = [url.strip() for url in found[2].split(",")]
    if not all(urls) or len(set(urls)) < len(urls):
        raise InputError(f"{spec}: a server is named twice, or not at all, between the commas")
    return [f"{found[1]}@{url}" for url in urls]


def open_fleet(
    spec: str,
    *,
    budget: Budget | None = None,
    limits: Limits | None = None,
    prices: Mapping[str, Price] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Model:
    """The model of a spec; a `Fleet` where it is remote, however many servers it has."""
    opened = [open_model(one, budget=budget, limits=limits, prices=prices) for one in endpoints(spec)]
    return Fleet(opened, say) if hasattr(opened[0], "spent") else opened[0]


@dataclass(eq=False, slots=True)
class _Server:
    model: Any
    busy: int = 0
    failures: int = 0
    back_at: float = 0.0  # monotonic seconds; before that it is set aside


class Fleet:
    """One model behind several servers. Safe between threads; every call goes to one server as a whole."""

    tells = True  # generate takes on_replies

    def __init__(self, models: Sequence[Any], say: Callable[[str], None] = lambda text: None) -> None:
        self._servers = [_Server(model) for model in models]
        self._say = say
        self._lock = threading.Lock()
        self._known: Prompt | None = None  # something that was answered
        first = models[0]
        self.name: str = first.name
        self.lineage: str = first.lineage
        self.capabilities: frozenset[str] = frozenset.intersection(*(model.capabilities for model in models))

    @property
    def context(self) -> int | None:
        known = [c for server in self._servers if (c := server.model.context) is not None]
        return min(known, default=None)

    @property
    def spent(self) -> Any:
        """Calls, tokens and money of all servers."""
        spent = [server.model.spent for server in self._servers]
        return sum(spent[1:], spent[0])

    def __len__(self) -> int:
        return len(self._servers)

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> Estimate:  # noqa: B008
        estimate: Estimate = self._servers[0].model.estimate(prompts, sampling)
        return estimate

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling = Sampling(),  # noqa: B008
        *,
        on_replies: Callable[[int, tuple[Reply, ...]], None] = lambda row, replies: None,
    ) -> list[tuple[Reply, ...]]:
        """As `Model.generate`. A prompt that fails on servers that are well has replies with `finish="error"`."""

        def ask(server: _Server, rows: Sequence[int]) -> dict[int, tuple[Reply, ...]]:
            def came(row: int, replies: tuple[Reply, ...]) -> None:
                if not _failed(replies):
                    on_replies(rows[row], replies)

            got = server.model.generate([prompts[i] for i in rows], sampling, on_replies=came)
            return dict(zip(rows, got, strict=True))

        def probe(server: _Server) -> bool:
            return not _failed(server.model.generate([self._known], Sampling(max_tokens=1))[0])

        return self._all(prompts, ask, _failed, probe)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """As `Model.logprobs`. A prompt that fails on servers that are well has NaN for each continuation."""

        def probe(server: _Server) -> bool:
            server.model.logprobs([self._known], [["a"]])
            return True

        def ask(server: _Server, rows: Sequence[int]) -> dict[int, list[float]]:
            try:
                got = server.model.logprobs([prompts[i] for i in rows], [continuations[i] for i in rows])
            except MissingResource:
                if not self._is_well(server, probe):
                    raise
                if len(rows) == 1:
                    return {rows[0]: [math.nan] * len(continuations[rows[0]])}
                return {i: value for row in rows for i, value in ask(server, [row]).items()}
            return dict(zip(rows, got, strict=True))

        return self._all(prompts, ask, lambda values: any(v != v for v in values), probe)

    # -------------------------------------------------------------------------------------------- within

    def _all(
        self,
        prompts: Sequence[Prompt],
        ask: Callable[[_Server, Sequence[int]], dict[int, Any]],
        failed: Callable[[Any], bool],
        probe: Callable[[_Server], bool],
    ) -> list[Any]:
        done: dict[int, Any] = {}
        failures = dict.fromkeys(range(len(prompts)), 0)  # on servers that were well
        last: _Server | None = None
        while left := [row for row in failures if row not in done]:
            server = self._take(last, len(left))
            last = server
            try:
                try:
                    got = ask(server, left)
                except MissingResource as error:
                    self._set_aside(server, str(error))
                    continue
                good = {row: value for row, value in got.items() if not failed(value)}
                if not good and not self._is_well(server, probe):
                    self._set_aside(server, _why(got.values()))
                    continue
            finally:
                self._give(server, len(left))
            done |= good
            if good:
                self._known, server.failures = prompts[next(iter(good))], 0
            for row in got.keys() - good.keys():
                failures[row] += 1
                if failures[row] == 2:
                    done[row] = got[row]
        return [done[row] for row in range(len(prompts))]

    def _take(self, last: _Server | None, rows: int) -> _Server:
        """The least busy server that is not set aside, another than the last one where there is a choice."""
        with self._lock:
            now = time.monotonic()
            well = [server for server in self._servers if server.back_at <= now]
            if not well:
                names = ", ".join(server.model.url for server in self._servers)
                raise MissingResource(
                    f"{self.name.split('@')[0]}: no server is left that answers ({names}). Start one and give the same "
                    "command again: what is labelled is kept"
                )
            server = min(well, key=lambda server: (server is last, server.busy))
            server.busy += rows
            return server

    def _give(self, server: _Server, rows: int) -> None:
        with self._lock:
            server.busy -= rows

    def _is_well(self, server: _Server, probe: Callable[[_Server], bool]) -> bool:
        if self._known is None:
            return False
        try:
            return probe(server)
        except MissingResource:
            return False

    def _set_aside(self, server: _Server, why: str) -> None:
        with self._lock:
            now = time.monotonic()
            if server.back_at > now:
                return  # another thread said so
            pause = min(LONGEST_S, PAUSE_S * 2**server.failures)
            server.failures += 1
            server.back_at = now + pause
            others = sum(other.back_at <= now for other in self._servers)
        self._say(f"{server.model.url} is set aside for {pause:.0f} s, {others} of {len(self)} servers go on: {why}")


def _failed(replies: Sequence[Reply]) -> bool:
    return any(reply.finish == "error" for reply in replies)


def _why(values: Any) -> str:
    errors = [reply.error for replies in values for reply in replies if isinstance(reply, Reply) and reply.error]
    return errors[0] if errors else "it gives no answer"

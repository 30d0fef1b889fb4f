"""Models that answer by rule, and a server that misbehaves on demand."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.exchange import Message, Refusal, assistant
from fairlead.models.formats import Events
from fairlead.models.protocol import Alternative, Prompt, Reply, Sampling, Usage
from fairlead.models.serve import Handler, Server
from support.bodies import drift, planned_error, sdk_types


@dataclass
class Echo:
    """Answers with the last message. "filter me" is refused by the provider, "be long" runs into the limit."""

    name: str = "echo"
    lineage: str = "wt:echo"
    context: int | None = 4096
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "top_p", "stop", "seed"})
    asked: list[tuple[str, Sampling]] = field(default_factory=list)
    words: int = 0  # completion tokens to report; 0 counts the words said

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        out = []
        for prompt in prompts:
            text = prompt[-1].text
            self.asked.append((text, sampling))
            usage = Usage(sum(len(m.text.split()) for m in prompt), self.words or len(text.split()))
            replies = []
            for k in range(sampling.n):
                if "filter me" in text:
                    replies.append(Reply((Message("assistant", (Refusal("not allowed"),)),), "filter", usage=usage))
                elif "be long" in text:
                    replies.append(Reply((assistant("la " * 5),), "length", usage=usage))
                else:
                    replies.append(Reply((assistant(f"{text} #{k}"),), "stop", usage=usage))
            out.append(tuple(replies))
        return out

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


YES_OR_NO = (Alternative("yes", -0.1), Alternative("no", -2.5))


class Told(Echo):
    """Tells the log-probs of its tokens, and of those that might have been."""

    def generate(self, prompts, sampling=Sampling()):  # noqa: B008
        top = (YES_OR_NO, (Alternative(".", -0.01), Alternative("!", -5.0)))[: sampling.top_logprobs or 0]
        return [
            (Reply((assistant("yes ."),), "stop", logprobs=(-0.1, -0.01)[: len(top)], top_logprobs=top or None),)
            for _ in prompts
        ]


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer."""

    status: int = 0  # 0: a fault of the connection, see `kind`
    body: bytes | None = None  # None: the error of that status, as the provider of the path words it
    headers: tuple[tuple[str, str], ...] = ()
    kind: str = ""  # hang | cut | reset | malformed | shape
    free: bool = False  # the body is in nobody's form, on purpose


class Faulty(Server):
    """A server with a plan: `plan(i, body)` says what happens to the i-th request; None serves it."""

    def __init__(
        self, model: object, plan: Callable[[int, bytes], Fault | None], *, hang: float = 3.0, **options: object
    ) -> None:
        super().__init__(model, **{"handler": FaultyHandler, **options})  # type: ignore[arg-type]
        self.plan, self.hang = plan, hang
        self.count = 0
        self.seen: list[bytes] = []
        self.headers_seen: list[dict[str, str]] = []
        self.times: list[float] = []
        self.active = self.most_active = 0
        self.gate = threading.Lock()
        sdk_types()  # their import takes long once, which no client should take for a server that hangs
        self.drifted: list[str] = []  # bodies that the SDKs' own types refuse

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        assert not self.drifted, self.drifted[0]

    def held(self, method: str, path: str, status: int, body: object) -> None:
        """Hold a body that is about to be sent to the SDKs' types."""
        if wrong := drift(method, path, status, body):
            self.drifted.append(wrong)

    def handle_error(self, request: object, client_address: object) -> None:
        """A planned fault, or a client that had waited long enough, closed the connection."""


class FaultyHandler(Handler):
    server: Faulty  # type: ignore[assignment]

    def do_POST(self) -> None:
        server, connection = self.server, self.rfile
        raw = connection.read(int(self.headers.get("Content-Length", "0")))
        self.rfile = io.BytesIO(raw)  # the handler reads the body once more
        with server.gate:
            i = server.count
            server.count += 1
            server.seen.append(raw)
            server.headers_seen.append(dict(self.headers.items()))
            server.times.append(time.monotonic())
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            fault = server.plan(i, raw)
            if fault is None:
                super().do_POST()
            else:
                self._fail(fault)
        finally:
            self.rfile = connection
            with server.gate:
                server.active -= 1

    def _send(self, body: dict[str, Any], status: int = 200) -> None:
        self.server.held(self.command, self.path, status, body)
        super()._send(body, status)

    def _stream(self, events: Events) -> None:
        def held() -> Events:
            for name, data in events:
                if not isinstance(data, str):
                    self.server.held("EVENT", self.path, 200, data)
                yield name, data

        super()._stream(held())

    def _fail(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.kind == "hang":
            time.sleep(self.server.hang)
            return
        if fault.kind == "reset":
            self.connection.close()
            return
        wrong = {"malformed": b'{"choices": [', "shape": b'{"choices": "none", "content": 7, "usage": {}}'}
        body = wrong.get(fault.kind, planned_error(self.path, fault.status) if fault.body is None else fault.body)
        if fault.kind not in (*wrong, "cut") and not fault.free:
            self.server.held("POST", self.path, fault.status or 200, json.loads(body))
        self.send_response(fault.status or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + (1000 if fault.kind == "cut" else 0)))
        for name, value in fault.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

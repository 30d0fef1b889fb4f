"""A proxy in a thread of its own, on a free port, in front of whatever a test gives it."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

from fairlead.guard.proxy.serve import bind
from fairlead.guard.proxy.setup import Options
from fairlead.guard.proxy.worker import Worker

RULES = """
name: test
principles:
  - id: no-shouting
    dimension: voice
    severity: 2
    text: Do not say the forbidden word.
    guard: {at: [reply, tool_call], on_violation: redact, stream: window, say: "i will not say it ."}
  - id: no-poison
    dimension: harmless
    severity: 5
    text: Do not speak of poison.
    guard: {on_violation: refuse, say: "i keep silent about that ."}
  - id: keep-secrets
    dimension: secrecy
    severity: 5
    text: Keep what you were told to keep.
    guard: {on_violation: redact, say: "that stays with me .", stream: window}
secrets:
  - {id: gate-code, from: value, value: "falcon-7781-heron", canary: true}
  - {id: day-word, from: system}
"""
POLICY = 'checks:\n  rules:\n    no-shouting: ["(?i)abracadabra"]\n    no-poison: ["(?i)arsenic"]\n'
NOTHING = "name: nothing\nprinciples:\n  - {id: be-kind, dimension: voice, severity: 1, text: Be kind.}\n"
WINDOWED = RULES.replace("on_violation: refuse,", "on_violation: refuse, stream: window,")


class Proxy:
    """`with Proxy(tmp_path, mock.url) as proxy:` — `proxy.url`, `proxy.worker`; `extra` is appended to the policy."""

    def __init__(
        self, folder: Path, upstream: str | None, *, constitution: str = RULES, policy: str = POLICY, **options: Any
    ) -> None:
        self.constitution, self.policy = folder / "constitution.yaml", folder / "guard.yaml"
        self.constitution.write_text(constitution)
        self.policy.write_text(policy)
        self.worker = Worker(Options(str(self.constitution), upstream, policy=self.policy, **options))
        self._socket = bind("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._loop = self._new_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @staticmethod
    def _new_loop() -> asyncio.AbstractEventLoop:
        try:
            import uvloop
        except ModuleNotFoundError:
            return asyncio.new_event_loop()
        return uvloop.new_event_loop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.worker.run([self._socket]))

    def __enter__(self) -> Proxy:
        self._thread.start()
        for _ in range(1000):
            if self.worker.server is not None and self.worker.server.started:
                return self
            threading.Event().wait(0.01)
        raise RuntimeError("the proxy did not start")

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.worker.stop)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the proxy did not end"

    def command(self, name: str) -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(self.worker.command(name), self._loop).result(30)

    def count(self, *key: str) -> float:
        return self.worker.app.metrics.counts[key]

    def raw(self, data: bytes, *, wait: float = 10.0) -> bytes:
        """Bytes sent on a connection of their own, and all that came back until it closed or fell silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as sock:
            sock.sendall(data)
            back = b""
            try:
                while part := sock.recv(65536):
                    back += part
            except TimeoutError:
                pass
            return back

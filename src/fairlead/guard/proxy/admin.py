"""The admin port: metrics, reload, heads of the audit log, health. Plain ASGI, on loopback, asked by operators alone.

It asks the workers through one function, whether they are this process or others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import orjson

from fairlead.guard.proxy.metrics import render, summed
from fairlead.guard.tally import Tally

Ask: TypeAlias = Callable[[str], Awaitable[list[dict[str, Any]]]]
"""Asks every worker a command (worker.py) and gives their answers. A worker that runs and does not answer is left out;
one that does not run, and will be started anew, answers {"worker": number, "down": why}."""

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

TEXT, JSON = b"text/plain; version=0.0.4; charset=utf-8", b"application/json"


class Admin:
    """The application. `workers` is how many there should be."""

    def __init__(self, ask: Ask, workers: int) -> None:
        self.ask, self.workers = ask, workers
        self._one = asyncio.Lock()  # reload at a time

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            return
        if any(name == b"origin" for name, _ in scope["headers"]):
            await _answer(send, 403, {"error": "a page in a browser may not ask this port"})
            return
        match scope["method"], scope["path"]:
            case "GET", "/metrics":
                snapshots = [answer for answer in await self.ask("metrics") if "counts" in answer]
                await _answer(send, 200, render(summed(snapshots)))
            case "POST", "/reload":
                await _answer(send, *await self.reload())
            case "GET", "/audit/heads":
                await _answer(send, 200, {"heads": [h for a in await self.ask("heads") for h in a.get("heads", [])]})
            case "GET", "/shadow":
                await _answer(send, 200, _would_have(await self.ask("shadow")))
            case "GET", "/status":
                await _answer(send, 200, {"workers": await self.ask("status")})
            case "GET" | "HEAD", "/healthz":
                await _answer(send, 200, {"ok": True})
            case "GET" | "HEAD", "/readyz":
                ready = sum(bool(answer.get("ready")) for answer in await self.ask("status"))
                status = 200 if ready == self.workers else 503
                await _answer(send, status, {"ok": status == 200, "ready": ready, "workers": self.workers})
            case _:
                told = (
                    "known: GET /metrics, POST /reload, GET /audit/heads, GET /shadow, GET /status, /healthz, /readyz"
                )
                await _answer(send, 404, {"error": told})

    async def reload(self) -> tuple[int, dict[str, Any]]:
        """All workers go by what the files say now; only if all that run can do so do they, else none does. One that
        does not run is started by it."""
        async with self._one:
            prepared = await self.ask("prepare")
            problems = [answer["error"] for answer in prepared if "error" in answer]
            if len(prepared) < self.workers:
                problems.append(f"only {len(prepared)} of {self.workers} workers answered")
            if all("down" in answer for answer in prepared):
                problems.append("no worker runs")
            if problems:
                await self.ask("drop")
                return 422, {"reloaded": False, "error": problems[0], "kept": "what was in use stays in use"}
            answers = await self.ask("commit")
        done = [answer for answer in answers if "down" not in answer]
        more = {k: v for k, v in done[0].items() if k != "worker"} if done else {}
        return 200, {"reloaded": True, "workers": len(done), **more}


def _would_have(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """By principle, how often something would have been done, with its interval, over all workers."""
    tally = Tally()
    for answer in answers:
        for principle, outcome, n in answer.get("shadow", ()):
            tally.shadow[principle, outcome] += n
    return tally.would_have()


async def _answer(send: Send, status: int, body: bytes | dict[str, Any]) -> None:
    data, kind = (body, TEXT) if isinstance(body, bytes) else (orjson.dumps(body), JSON)
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(data)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})

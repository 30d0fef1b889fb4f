"""A proxy that guards nothing: plain ASGI on uvicorn, aiohttp upstream. What one hop in Python costs on this machine.

python bench/guard_bare.py UPSTREAM_PORT PORT
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn

UPSTREAM, PORT = sys.argv[1], int(sys.argv[2])
KEPT = (b"content-type", b"content-length")
session: aiohttp.ClientSession | None = None


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    global session
    if scope["type"] != "http":
        return
    if session is None:
        session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    url = f"http://127.0.0.1:{UPSTREAM}{scope['path']}"
    headers = {"content-type": "application/json"}
    async with session.request(scope["method"], url, data=body, headers=headers) as answer:
        said = await answer.read()
        kept = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() in KEPT]
    await send({"type": "http.response.start", "status": answer.status, "headers": kept})
    await send({"type": "http.response.body", "body": said})


if __name__ == "__main__":
    how = {"log_level": "error", "access_log": False, "loop": "uvloop", "http": "httptools", "lifespan": "off"}
    uvicorn.run(app, host="127.0.0.1", port=PORT, **how)  # type: ignore[arg-type]

"""A server of a `Chooser` that counts how often it is asked about each item: `python counting.py PORT_FILE`.

The model takes no time, so that a large job tests the job; the server, its wire format and its client are real.
GET /counts tells {requests, items, most, extra}: `extra` are requests beyond two (both orders) for an item.
"""

from __future__ import annotations

import io
import re
import sys
import threading
from pathlib import Path

from fairlead.models.serve import Handler, Server
from support.choosers import Chooser

_ITEM = re.compile(rb"item (\d+)\b")


class CountingHandler(Handler):
    def do_GET(self) -> None:
        if self.path == "/counts":
            with GATE:
                values = list(COUNTS.values())
            extra = sum(max(0, n - 2) for n in values)
            self._send({"requests": sum(values), "items": len(values), "most": max(values, default=0), "extra": extra})
        else:
            super().do_GET()

    def do_POST(self) -> None:
        connection, raw = self.rfile, self.rfile.read(int(self.headers.get("Content-Length", "0")))
        found = _ITEM.search(raw)
        if found is not None:
            with GATE:
                item = int(found[1])
                COUNTS[item] = COUNTS.get(item, 0) + 1
        self.rfile = io.BytesIO(raw)
        try:
            super().do_POST()
        finally:
            self.rfile = connection


COUNTS: dict[int, int] = {}
GATE = threading.Lock()

if __name__ == "__main__":
    server = Server(Chooser(), handler=CountingHandler)
    written = Path(sys.argv[1])
    written.with_suffix(".tmp").write_text(server.url)
    written.with_suffix(".tmp").replace(written)
    server.serve_forever()

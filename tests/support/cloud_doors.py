"""A server that stands behind a cloud's door: the cloud's paths, versions and headers, and the plain formats inside."""

from __future__ import annotations

import io
import json
import re

from fairlead.models.formats import HttpError
from support.fakes import Faulty, FaultyHandler


class Door(Faulty):
    """Notes what came to the door (`came`: path, headers, body) before it is led on."""

    def __init__(self, model: object, plan=lambda i, body: None, **options: object) -> None:
        super().__init__(model, plan, handler=DoorHandler, **options)
        self.came: list[tuple[str, dict[str, str], dict[str, object]]] = []


INSIDE = {
    r"/openai/deployments/[^/]+/chat/completions\?api-version=.+": "/v1/chat/completions",
    r"/openai/v1/chat/completions": "/v1/chat/completions",
    r"/model/[^/]+/invoke": "/v1/messages",
    r"/v1/projects/[^/]+/locations/[^/]+/publishers/anthropic/models/[^/]+:rawPredict": "/v1/messages",
}


class DoorHandler(FaultyHandler):
    server: Door  # type: ignore[assignment]

    def _post(self) -> None:
        body = json.loads(self.rfile.read())
        self.server.came.append((self.path, {k.lower(): v for k, v in self.headers.items()}, dict(body)))
        path = next((inside for door, inside in INSIDE.items() if re.fullmatch(door, self.path)), None)
        if path is None:
            raise HttpError(404, f"no such path: {self.path}")
        version = body.pop("anthropic_version", None)
        if path == "/v1/messages":
            if "model" in body or not version:
                raise HttpError(400, "the model stands in the path, and the version in the body")
            self.headers["anthropic-version"] = version
        body["model"] = self.server.name
        raw = json.dumps(body).encode()
        self.rfile = io.BytesIO(raw)
        self.headers.replace_header("Content-Length", str(len(raw)))
        self.path = path
        super()._post()

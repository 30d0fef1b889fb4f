"""Any model behind both wire formats, on loopback: `python -m fairlead.models.serve apprentice --port 8011`.

OpenAI's /v1/models, /v1/chat/completions and /v1/completions, Anthropic's /v1/messages, and vLLM's /tokenize with
`prompt_logprobs` for models with tokens. Small and real: keys are checked, usage is counted, concurrent requests are
batched through the model, what it cannot do is refused by name. It is for tests, demonstrations and local tools; it
streams a finished reply in pieces, and it is not a production server.
"""

from __future__ import annotations

import argparse
import hmac
import json
import logging
import os
import queue
import random
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fairlead.errors import FairleadError, InputError
from fairlead.models import formats
from fairlead.models.formats import HttpError
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.models.toolong import TooLong
from fairlead.models.wanted import Unwanted, while_

log = logging.getLogger("fairlead.serve")

BIGGEST_BODY = 8 * 2**20


@dataclass(frozen=True, slots=True)
class _Job:
    prompt: Prompt
    sampling: Sampling
    done: Future[tuple[Reply, ...]]
    wanted: Callable[[], bool] = lambda: True


class Batcher:
    """One thread calls the model; what arrives while it works forms the next batches, grouped by sampling.

    A request without a seed draws its own luck: a batch gets one fresh seed, and rows of a batch differ. What nobody
    waits for any more is not begun, and a batch of which all is so is given up between two tokens (wanted.py).
    """

    def __init__(self, model: Model, name: str, *, most: int = 64) -> None:
        self.model, self.name, self._most = model, name, most
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        threading.Thread(target=self._work, name="fairlead-serve-model", daemon=True).start()

    def ask(self, prompt: Prompt, sampling: Sampling, wanted: Callable[[], bool] = lambda: True) -> tuple[Reply, ...]:
        """The replies. Raises `Unwanted` where `wanted` said no before they were there."""
        job = _Job(prompt, sampling, Future(), wanted)
        self._jobs.put(job)
        return job.done.result()

    def close(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while len(jobs) < self._most and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    self._jobs.put(None)
                    break
                jobs.append(more)
            groups: dict[Sampling, list[_Job]] = {}
            for item in jobs:
                if item.sampling.seed is not None:
                    self._answer(item.sampling, [item])  # by itself: its reply must not depend on who asked beside it
                else:
                    groups.setdefault(item.sampling, []).append(item)
            for sampling, group in groups.items():
                self._answer(sampling, group)

    def _answer(self, sampling: Sampling, group: list[_Job]) -> None:
        for job in group:
            if not job.wanted():
                job.done.set_exception(Unwanted())
        group = [job for job in group if not job.done.done()]
        if not group:
            return
        try:
            with self.lock, while_(lambda: any(job.wanted() for job in group)):
                fresh = sampling.seed is None and "seed" in self.model.capabilities
                seeded = replace(sampling, seed=random.SystemRandom().getrandbits(31)) if fresh else sampling
                replies = self.model.generate([job.prompt for job in group], seeded)
        except Unwanted as error:
            for job in group:
                job.done.set_exception(error)
        except Exception as error:  # noqa: BLE001  # handed to the request that caused it, which answers with it
            if len(group) > 1:  # one bad prompt must not take the others of its batch along
                for job in group:
                    self._answer(sampling, [job])
                return
            group[0].done.set_exception(error)
        else:
            for job, reply in zip(group, replies, strict=True):
                job.done.set_result(reply)


class Server(ThreadingHTTPServer):
    """The server of one model. `key` None lets everyone in."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        model: Model,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str | None = None,
        key: str | None = None,
        handler: type[Handler] | None = None,
    ) -> None:
        super().__init__((host, port), handler or Handler)
        self.name = name or model.name.rsplit("/", 1)[-1]
        self.key = key
        self.batcher = Batcher(model, self.name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away between two requests is no fault of this server; anything else is told."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the server is, without /v1."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.05,), name="fairlead-serve", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self.batcher.close()


class Handler(BaseHTTPRequestHandler):
    """One request. Routes are a dict; each takes the request's JSON and answers with JSON or a stream of events."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 120.0

    def do_GET(self) -> None:
        self._guarded(
            lambda: self._send(formats.models(self.server.batcher)) if self.path == "/v1/models" else self._nowhere()
        )

    def do_POST(self) -> None:
        self._guarded(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.path, args[1] if len(args) > 1 else "")

    def _post(self) -> None:
        body = self._body()
        route = formats.ROUTES.get(self.path)
        if route is None:
            self._nowhere()
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("x-api-key", "")
        if self.server.key is not None and not hmac.compare_digest(given.encode(), self.server.key.encode()):
            raise HttpError(401, "invalid API key", "authentication_error")
        if body.get("model", self.server.name) != self.server.name:
            raise HttpError(404, f"the model {str(body['model'])[:80]!r} does not exist here", "not_found_error")
        answer = route(self.server.batcher, body, dict(self.headers.items()))
        if isinstance(answer, dict):
            self._send(answer)
        else:
            self._stream(answer)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            try:
                work()
            except HttpError as error:
                self._error(error.status, str(error), error.kind)
            except TooLong as error:  # as the providers say it
                text = f"prompt is too long: {error}"
                self._error(400, text, "invalid_request_error", "context_length_exceeded")
            except InputError as error:
                self._error(400, str(error), "invalid_request_error")
            except FairleadError as error:
                self._error(500, str(error), "api_error")
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                raise
            except Exception as error:  # a bug here or in the model: told to the caller, and logged with its trace
                log.exception("request failed")
                self._error(500, f"{type(error).__name__}: {error}", "api_error")
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the caller went away

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BIGGEST_BODY:
            self.close_connection = True
            raise HttpError(
                413 if length.isdigit() else 411, f"send a body with a length of at most {BIGGEST_BODY} bytes"
            )
        try:
            data = json.loads(self.rfile.read(int(length)))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise HttpError(400, f"the body is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise HttpError(400, "the body must be a JSON object")
        return data

    def _nowhere(self) -> None:
        raise HttpError(
            404, f"{self.path} is not served here; try /v1/chat/completions or /v1/messages", "not_found_error"
        )

    def _error(self, status: int, message: str, kind: str, code: str | None = None) -> None:
        inner = {"type": kind, "message": message}
        body = (
            {"type": "error", "error": inner}
            if self.path.startswith("/v1/messages")
            else {"error": {**inner, "code": code}}
        )
        self._send(body, status)

    def _send(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: formats.Events) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for name, data in events:
            head = f"event: {name}\n" if name else ""
            self.wfile.write(f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())
            self.wfile.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a model until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m fairlead.models.serve", description="Serve a model on loopback.")
    parser.add_argument("model", help="apprentice, ./dir, a hub name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8011)
    parser.add_argument("--name", help="the model's name on the wire (default: the last part of MODEL)")
    parser.add_argument("--key-from", metavar="VARIABLE", help="demand the key in this environment variable")
    given = parser.parse_args(argv)
    try:
        from fairlead.models import open_model

        key = os.environ.get(given.key_from) if given.key_from else None
        if given.key_from and not key:
            raise InputError(f"--key-from {given.key_from}: that environment variable is not set")
        server = Server(open_model(given.model), host=given.host, port=given.port, name=given.name, key=key)
    except FairleadError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"cannot listen on {given.host}:{given.port}: {error.strerror}\n")
        return 4
    sys.stderr.write(f"{server.name} at {server.url}/v1 (OpenAI) and {server.url} (Anthropic)\n")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

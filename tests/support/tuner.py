"""A provider of fine-tuning on loopback: Together's published API, with a plan of faults.

Paths, fields and states are those of https://docs.together.ai/reference and of the official client, which is held
against it where it is installed (tests/models/test_finetuning_client.py). Bytes are really received, hashed and read;
a job goes through the states it is given, one for each time it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NOW = "2026-11-26T05:00:00.000Z"
MODEL = "Qwen/Qwen3-8B"

# the fields of a request for a job, as published; a body with any other is refused
JOB_FIELDS = {
    "training_file", "validation_file", "packing", "model", "n_epochs", "learning_rate", "lr_scheduler", "warmup_ratio",
    "max_grad_norm", "weight_decay", "n_checkpoints", "n_evals", "max_seq_length", "batch_size",
    "gradient_accumulation_steps", "suffix", "random_seed", "training_type", "training_method", "from_checkpoint",
    "early_stopping_enabled",
}  # fmt: skip
METHOD_FIELDS = {
    "sft": {"method", "train_on_inputs"},
    "dpo": {
        "method",
        "dpo_beta",
        "dpo_normalize_logratios_by_length",
        "dpo_reference_free",
        "rpo_alpha",
        "simpo_gamma",
    },
}
TYPE_FIELDS = {"Full": {"type"}, "Lora": {"type", "lora_r", "lora_alpha", "lora_dropout", "lora_trainable_modules"}}


@dataclass(frozen=True)
class Fault:
    """What happens in the place of an answer; `after` does the work first, so that only the answer is lost."""

    status: int = 0  # 0: the connection is closed without an answer
    body: bytes = b'{"error": {"message": "planned", "type": "planned", "param": null, "code": null}}'
    headers: tuple[tuple[str, str], ...] = ()
    after: bool = False


@dataclass
class Job:
    body: dict[str, Any]
    states: list[str]
    asked: int = 0
    cancelled: bool = False

    @property
    def state(self) -> str:
        return "cancelled" if self.cancelled else self.states[min(self.asked, len(self.states) - 1)]


@dataclass
class File:
    name: str
    checksum: str
    content: bytes = b""
    looks: int = 0


Plan = Callable[[str, str, int], Fault | None]


class Provider(ThreadingHTTPServer):
    """`with Provider() as p:` serves at `p.url` (which ends in /v1); `p.seen` lists (method, path) in order.

    plan    (method, path, how many of that method and path came before) -> Fault or None
    states  what a job is, each time it is asked for
    reads   times a file is asked for before it is read through; `report` is then told of it
    quote   dollars; None for no estimate
    """

    daemon_threads = True

    def __init__(
        self,
        *,
        key: str = "k",
        plan: Plan = lambda method, path, n: None,
        states: Sequence[str] = ("pending", "queued", "running", "completed"),
        reads: int = 1,
        invalid: str = "",
        quote: float | None = 4.0,
        allowed: bool = True,
        events: Sequence[Mapping[str, Any]] = (),
        served: Sequence[str] = (),
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key, self.plan, self.states, self.reads, self.invalid = key, plan, list(states), reads, invalid
        self.quote, self.allowed, self.events, self.served = quote, allowed, list(events), set(served)
        self.limits = dict(LIMITS if limits is None else limits)
        self.files: dict[str, File] = {}
        self.jobs: dict[str, Job] = {}
        self.seen: list[tuple[str, str]] = []
        self.raw: list[bytes] = []
        self.gate = threading.RLock()
        self.on: dict[tuple[str, str], Callable[[], None]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def spec(self) -> str:
        return f"together/{MODEL}@{self.url}"

    def times(self, method: str, path: str) -> int:
        return sum(seen == (method, path) for seen in self.seen)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed hears no answer; anything else is a fault of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> Provider:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    # ------------------------------------------------------------------------------------------ the API

    def file_told(self, file_id: str) -> dict[str, Any]:
        file = self.files[file_id]
        status = "PENDING" if file.looks < self.reads else "INVALID_FORMAT" if self.invalid else "COMPLETED"
        told: dict[str, Any] = {
            "id": file_id, "object": "file", "created_at": 1_764_133_200, "filename": file.name,
            "bytes": len(file.content), "purpose": "fine-tune", "FileType": "jsonl", "processing_status": status,
        }  # fmt: skip
        if status != "PENDING":
            lines = file.content.count(b"\n")
            report = {"valid": not self.invalid, "file_id": file_id, "nlines": lines}
            if self.invalid:
                report |= {"error_type": "INVALID_FORMAT", "error": self.invalid}
            told["validation_report"] = report
        return told

    def job_told(self, job_id: str) -> dict[str, Any]:
        job = self.jobs[job_id]
        told = {
            "id": job_id, "status": job.state, "created_at": NOW, "updated_at": NOW, "user_id": "user-1",
            "training_file": job.body["training_file"], "model": job.body.get("model", MODEL),
            "model_output_name": f"tester/{MODEL}:{job.body.get('suffix', '')}:{job_id}", "adapter_output_name": None,
            "n_epochs": job.body["n_epochs"], "suffix": job.body.get("suffix"), "events": self.events,
            "training_method": job.body["training_method"],
        }  # fmt: skip
        if job.state == "completed":
            told |= {"token_count": 1234, "total_price": int(4.0e9)}
        return told

    def answer(self, method: str, path: str, query: Mapping[str, str], raw: bytes, headers: Any) -> Any:
        """(status, body, headers) of a request to /v1/…"""
        body = json.loads(raw) if raw and "json" in headers.get("Content-Type", "") else {}
        match method, path.split("/")[1:]:
            case "POST", ["files"]:
                return self._announce(_form(raw, headers))
            case "POST", ["files", file_id, "preprocess"]:
                return 200, self.file_told(file_id), {}
            case "GET", ["files", file_id]:
                if file_id not in self.files:
                    return 404, _error("no such file"), {}
                self.files[file_id].looks += bool(self.files[file_id].content)
                return 200, self.file_told(file_id), {}
            case "DELETE", ["files", file_id]:
                del self.files[file_id]
                return 200, {"id": file_id, "deleted": True}, {}
            case "GET", ["fine-tunes", "models", "limits"]:
                if query["model_name"] != MODEL:
                    return 404, _error(f"model {query['model_name']} is not supported"), {}
                return 200, self.limits, {}
            case "POST", ["fine-tunes", "estimate-price"]:
                return 200, self._estimate(body), {}
            case "POST", ["fine-tunes"]:
                return self._create(body)
            case "GET", ["fine-tunes"]:
                return 200, {"data": [self.job_told(job_id) for job_id in self.jobs]}, {}
            case "GET", ["fine-tunes", job_id]:
                if job_id not in self.jobs:
                    return 404, _error("no such job"), {}
                told = self.job_told(job_id)
                self.jobs[job_id].asked += 1
                return 200, told, {}
            case "POST", ["fine-tunes", job_id, "cancel"]:
                self.jobs[job_id].cancelled = True
                return 200, self.job_told(job_id), {}
            case "POST", ["chat", "completions"]:
                return self._chat(body)
        return 404, _error(f"no {method} {path}"), {}

    def _announce(self, form: Mapping[str, str]) -> Any:
        assert set(form) == {"purpose", "file_name", "file_type", "checksum"}, form
        for file_id, file in self.files.items():
            if file.checksum == form["checksum"]:
                return 409, {"file_id": file_id}, {}
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = File(form["file_name"], form["checksum"])
        place = self.url.removesuffix("/v1") + f"/store/{file_id}"
        return 302, {}, {"Location": place, "X-Together-File-Id": file_id}

    def store(self, file_id: str, content: bytes) -> tuple[int, Any, dict[str, str]]:
        file = self.files[file_id]
        if hashlib.sha256(content).hexdigest() != file.checksum:
            return 400, _error("checksum"), {}
        file.content = content
        return 200, {}, {}

    def _estimate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        file = self.files[body["training_file"]]
        if file.looks < self.reads:
            return {"estimation_available": False, "unavailable_reason": "train_file_not_validated"}
        if self.quote is None:
            return {"estimation_available": False, "unavailable_reason": "multimodal_dataset"}
        tokens = body.get("n_epochs", 1) * len(file.content) // 4
        return {
            "estimation_available": True, "estimated_total_price": self.quote, "allowed_to_proceed": self.allowed,
            "user_limit": 25.0, "estimated_train_token_count": tokens, "estimated_eval_token_count": 0,
        }  # fmt: skip

    def _create(self, body: dict[str, Any]) -> Any:
        odd = set(body) - JOB_FIELDS
        method, kind = body["training_method"], body.get("training_type")
        odd |= set(method) - METHOD_FIELDS[method["method"]]
        if kind is not None:
            odd |= set(kind) - TYPE_FIELDS[kind["type"]]
        if odd:
            return 400, _error(f"unknown fields: {sorted(odd)}"), {}
        if ("model" in body) == ("from_checkpoint" in body):
            return 400, _error("exactly one of model and from_checkpoint"), {}
        if len(body.get("suffix", "")) > 40 or self.files[body["training_file"]].looks < self.reads:
            return 400, _error("suffix too long, or a file that is not validated"), {}
        job_id = f"ft-{len(self.jobs) + 1:04}"
        self.jobs[job_id] = Job(body, list(self.states))
        return 200, self.job_told(job_id), {}

    def _chat(self, body: Mapping[str, Any]) -> Any:
        if body["model"] not in self.served:
            return 400, _error(f"Unable to access non-serverless model {body['model']}", "model_not_available"), {}
        text = f"{body['model'].rpartition('/')[2]}: {body['messages'][-1]['content']}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        return 200, {
            "id": "c", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice],
            "usage": usage,
        }, {}  # fmt: skip


LIMITS: Mapping[str, Any] = {
    "model_name": MODEL, "max_num_epochs": 20, "max_num_evals": 100, "max_num_checkpoints": 10,
    "max_learning_rate": 0.1, "min_learning_rate": 1e-8, "max_seq_length_sft": 32768, "max_seq_length_dpo": 16384,
    "min_max_seq_length": 256, "default_gradient_accumulation_steps": 1, "merge_output_lora": True,
    "supports_full_training": True, "supports_reasoning": True, "supports_tools": True, "supports_vision": False,
    "lora_training": {"default_rank": 64, "max_rank": 64, "target_modules": ["q_proj"], "max_batch_size": 64,
                      "max_batch_size_dpo": 32, "min_batch_size": 8},
    "full_training": {"max_batch_size": 64, "max_batch_size_dpo": 32, "min_batch_size": 8},
}  # fmt: skip


def _error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def _form(raw: bytes, headers: Any) -> dict[str, str]:
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    parts = BytesParser().parsebytes(head + raw).get_payload()
    return {str(p.get_param("name", header="Content-Disposition")): p.get_payload(decode=True).decode() for p in parts}  # type: ignore[union-attr]


class Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        path = unquote(parts.path).removeprefix("/v1")
        raw = self._body()
        with server.gate:
            n = server.times(self.command, path)
            server.seen.append((self.command, path))
            server.raw.append(raw)
            fault = server.plan(self.command, path, n)
            if fault is None or fault.after:
                status, body, headers = self._answer(path, dict(parse_qs(parts.query)), raw)
        watcher = server.on.get((self.command, path))
        if watcher is not None:
            watcher()
        if fault is None:
            self._send(status, json.dumps(body).encode(), headers)
        elif fault.status:
            self._send(fault.status, fault.body, dict(fault.headers))
        else:
            self.close_connection = True
            self.connection.close()

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, path: str, query: Mapping[str, Sequence[str]], raw: bytes) -> Any:
        if path.startswith("/store/"):  # the place of a file: no key may come here, and the bytes must be the announced
            if self.headers.get("Authorization") or self.headers.get("Content-Type"):
                return 400, _error("a key or a content type came to the store"), {}
            return self.server.store(path.rpartition("/")[2], raw)
        if self.headers.get("Authorization") != f"Bearer {self.server.key}":
            said = self.headers.get("Authorization", "")
            return 401, _error(f"Invalid API key provided: {said}"), {}  # echoes it, as real servers have done
        return self.server.answer(self.command, path, {k: v[0] for k, v in query.items()}, raw, self.headers)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass

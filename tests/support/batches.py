"""A server with batch endpoints, OpenAI's and Anthropic's: it answers each row as it would answer a request."""

from __future__ import annotations

import email
import json
from typing import Any

from fairlead.models import formats
from fairlead.models.formats import HttpError
from support.fakes import Faulty, FaultyHandler

NOW = "2026-11-26T00:00:00Z"


class Batching(Faulty):
    """`looks`: how often a batch is looked at before it is done. `lost`: custom ids that get no result.

    `expired`: custom ids the batch did not get to. `failed`: the batch comes to nothing, with this reason.
    """

    def __init__(self, model: object, plan: Any = lambda i, body: None, **options: object) -> None:
        super().__init__(model, plan, handler=BatchHandler, **options)
        self.looks, self.lost, self.expired, self.failed = 1, set[str](), set[str](), ""
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.looked: dict[str, int] = {}
        self.fetched = 0  # how often results were fetched


class BatchHandler(FaultyHandler):
    server: Batching  # type: ignore[assignment]

    def do_GET(self) -> None:
        server, parts = self.server, self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["v1", "batches"] and len(parts) == 2:
            rows = list(server.batches.values())[::-1]
            self._send({"object": "list", "data": rows, "has_more": False, "first_id": None, "last_id": None})
        elif parts[:2] == ["v1", "batches"]:
            self._send(self._openai(parts[2]))
        elif parts[:2] == ["v1", "files"]:
            server.fetched += 1
            self._raw(server.files[parts[2]])
        elif parts == ["v1", "messages", "batches"]:
            self._send({"data": list(server.batches.values()), "has_more": False, "first_id": None, "last_id": None})
        elif parts[:3] == ["v1", "messages", "batches"] and len(parts) == 4:
            self._send(self._anthropic(parts[3]))
        elif parts[:3] == ["v1", "messages", "batches"] and parts[4:] == ["results"]:
            server.fetched += 1
            rows = self._anthropic_rows(parts[3])
            for row in rows:
                server.held("ROW", self.path, 200, row)
            self._raw(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        else:
            super().do_GET()

    def _post(self) -> None:
        server = self.server
        if self.path == "/v1/files":
            raw = self.rfile.read()
            message = email.message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + raw)
            fields = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
            assert fields["purpose"].get_payload().strip() == "batch"
            content = fields["file"].get_payload(decode=True)
            name = f"file-{len(server.files)}"
            server.files[name] = content
            self._send({
                "id": name, "object": "file", "bytes": len(content), "created_at": 0, "filename": "x.jsonl",
                "purpose": "batch", "status": "processed",
            })  # fmt: skip
        elif self.path == "/v1/batches":
            body = self._body()
            name = f"batch_{len(server.batches)}"
            server.rows[name] = [json.loads(line) for line in server.files[body["input_file_id"]].splitlines()]
            server.batches[name] = {
                "id": name, "object": "batch", "endpoint": body["endpoint"], "input_file_id": body["input_file_id"],
                "completion_window": body["completion_window"], "status": "validating", "created_at": 0,
                "metadata": body["metadata"],
            }  # fmt: skip
            self._send(server.batches[name])
        elif self.path == "/v1/messages/batches":
            name = f"msgbatch_{len(server.batches)}"
            server.rows[name] = self._body()["requests"]
            server.batches[name] = {
                "id": name, "type": "message_batch", "processing_status": "in_progress", "created_at": NOW,
                "expires_at": NOW, "ended_at": None, "archived_at": None, "cancel_initiated_at": None,
                "results_url": None, "request_counts": self._counts(len(server.rows[name])),
            }  # fmt: skip
            self._send(server.batches[name])
        else:
            super()._post()

    def _done(self, name: str) -> bool:
        self.server.looked[name] = self.server.looked.get(name, 0) + 1
        return self.server.looked[name] > self.server.looks

    def _openai(self, name: str) -> dict[str, Any]:
        server, batch = self.server, self.server.batches[name]
        if batch["status"] == "validating" and server.failed:
            errors = [{"code": "invalid", "line": 2, "message": server.failed, "param": None}]
            batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
        elif batch["status"] == "validating" and self._done(name):
            good, bad = [], []
            for row in server.rows[name]:
                if row["custom_id"] in server.lost:
                    continue
                head = {"id": f"r-{row['custom_id']}", "custom_id": row["custom_id"], "response": None, "error": None}
                if row["custom_id"] in server.expired:
                    bad.append({**head, "error": {"code": "batch_expired", "message": "not finished in time"}})
                    continue
                status, body = self._row(row["url"], row["body"])
                answer = {"status_code": status, "request_id": "q", "body": body}
                (good if status == 200 else bad).append({**head, "response": answer})
            for field, rows in (("output_file_id", good), ("error_file_id", bad)):
                if rows:  # in another order than they were asked in
                    batch[field] = f"file-{len(server.files)}"
                    server.files[batch[field]] = b"".join(json.dumps(r).encode() + b"\n" for r in rows[::-1])
            counts = {"total": len(server.rows[name]), "completed": len(good), "failed": len(bad)}
            batch |= {"status": "completed", "request_counts": counts}
        return batch

    def _anthropic(self, name: str) -> dict[str, Any]:
        batch = self.server.batches[name]
        if batch["processing_status"] == "in_progress" and self._done(name):
            url = f"{self.server.url}/v1/messages/batches/{name}/results"
            batch |= {"processing_status": "ended", "ended_at": NOW, "results_url": url}
        return batch

    def _anthropic_rows(self, name: str) -> list[dict[str, Any]]:
        out = []
        for row in self.server.rows[name][::-1]:
            if row["custom_id"] in self.server.lost:
                continue
            if row["custom_id"] in self.server.expired:
                out.append({"custom_id": row["custom_id"], "result": {"type": "expired"}})
                continue
            status, body = self._row("/v1/messages", row["params"])
            good = {"type": "succeeded", "message": body}
            out.append(
                {"custom_id": row["custom_id"], "result": good if status == 200 else {"type": "errored", "error": body}}
            )
        return out

    def _row(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What the request would have been answered."""
        try:
            if "worst" in json.dumps(body):
                raise HttpError(400, "this row is refused")
            answer = formats.ROUTES[path](self.server.batcher, body, dict(self.headers.items()))
            self.server.held("POST", path, 200, answer)
            return 200, answer
        except HttpError as error:
            inner = {"type": error.kind, "message": str(error)}
            if path == "/v1/messages":
                return error.status, {"type": "error", "error": inner, "request_id": None}
            return error.status, {"error": {**inner, "code": None, "param": None}}

    @staticmethod
    def _counts(n: int) -> dict[str, int]:
        return {"processing": n, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}

    def _raw(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-jsonl")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

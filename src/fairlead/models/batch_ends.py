"""The providers' batch endpoints through their SDKs: OpenAI's (a file in, a file out) and Anthropic's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from fairlead.errors import InputError
from fairlead.models.access import Transient, filtered
from fairlead.models.batch import Look, Unknown
from fairlead.models.protocol import Prompt, Sampling, Usage
from fairlead.models.remote import Answer
from fairlead.models.sdk_anthropic import AnthropicConnection
from fairlead.models.sdk_openai import FILTER_CODES, OpenAIConnection, said

TIMEOUT = 300.0
"""Seconds for one request: a file of 200 MB goes up or comes down in it."""


class OpenAIBatches:
    """OpenAI's batches of one of its formats. `endpoint` says its path, `reader` is the format's own endpoint."""

    most_rows, most_bytes = 50_000, 190_000_000

    def __init__(self, connection: OpenAIConnection, endpoint: str, reader: Any) -> None:
        self._connection, self._endpoint, self._reader = connection, endpoint, reader

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = self._reader.body(prompt, sampling)
        return body

    async def submit(self, rows: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> str:
        lines = b"".join(
            orjson.dumps(
                {"custom_id": name, "method": "POST", "url": self._endpoint, "body": body},
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for name, body in rows
        )
        try:
            file = await self._call(
                lambda c: c.files.create(file=(f"{key}.jsonl", lines), purpose="batch", timeout=TIMEOUT)
            )
        except Transient as error:  # a file costs nothing: it may be sent again
            raise Transient(str(error), wait=error.wait) from None
        batch = await self._call(
            lambda c: c.batches.create(
                completion_window="24h", endpoint=self._endpoint, input_file_id=file.id, metadata={"fairlead": key},
                timeout=TIMEOUT,
            )
        )  # fmt: skip
        return str(batch.id)

    async def find(self, key: str) -> str | None:
        async def first(client: Any) -> str | None:
            async for batch in client.batches.list(limit=100, timeout=TIMEOUT):
                if (batch.metadata or {}).get("fairlead") == key and batch.status not in ("cancelled", "cancelling"):
                    return str(batch.id)
            return None

        found: str | None = await self._call(first)
        return found

    async def offered(self) -> None:
        await self._call(lambda c: c.batches.list(limit=1, timeout=TIMEOUT))

    async def look(self, batch: str) -> Look:
        found = await self._call(lambda c: c.batches.retrieve(batch, timeout=TIMEOUT))
        counts = found.request_counts
        words = f"{found.status}, {counts.completed + counts.failed} of {counts.total}" if counts else found.status
        failed = ""
        if found.status == "failed":
            errors = (found.errors.data if found.errors is not None else None) or []
            failed = "; ".join(f"line {e.line}: {e.message}" for e in errors[:3]) or "no reason was given"
        return Look(found.status in ("completed", "failed", "expired", "cancelled"), words, failed)

    async def results(self, batch: str) -> list[dict[str, Any]]:
        found = await self._call(lambda c: c.batches.retrieve(batch, timeout=TIMEOUT))
        rows: list[dict[str, Any]] = []
        for file in (found.output_file_id, found.error_file_id):
            if file:
                content = await self._call(lambda c, file=file: c.files.content(file, timeout=TIMEOUT))
                rows += [orjson.loads(line) for line in content.content.splitlines() if line.strip()]
        return rows

    def read(self, row: Mapping[str, Any]) -> Answer:
        response = row.get("response") or {}
        body = response.get("body") or {}
        if row.get("error") or response.get("status_code") != 200:
            error = row.get("error") or body.get("error") or {}
            if error.get("code") in FILTER_CODES:
                return Answer((filtered("the provider's content filter refused the prompt", Usage()),), Usage())
            status = response.get("status_code") or error.get("code") or "no status"
            raise InputError(f"the batch answered {status}: {said({'error': error})[:300]}")
        answer: Answer = self._reader.read(body)
        return answer

    async def _call(self, ask: Any) -> Any:
        return await self._connection.call(ask, TIMEOUT)


class AnthropicBatches:
    """Anthropic's message batches."""

    most_rows, most_bytes = 100_000, 240_000_000

    def __init__(self, connection: AnthropicConnection, reader: Any) -> None:
        self._connection, self._reader = connection, reader

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = self._reader.body(prompt, sampling)
        return body

    async def submit(self, rows: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> str:
        requests = [{"custom_id": name, "params": body} for name, body in rows]
        batch = await self._call(lambda c: c.messages.batches.create(requests=requests, timeout=TIMEOUT))
        return str(batch.id)

    async def find(self, key: str) -> str | None:
        raise Unknown("this API keeps no mark by which it could be found")

    async def offered(self) -> None:
        await self._call(lambda c: c.messages.batches.list(limit=1, timeout=TIMEOUT))

    async def look(self, batch: str) -> Look:
        found = await self._call(lambda c: c.messages.batches.retrieve(batch, timeout=TIMEOUT))
        counts = found.request_counts
        words = f"{found.processing_status}, {counts.processing} still to do"
        return Look(found.processing_status == "ended", words)

    async def results(self, batch: str) -> list[dict[str, Any]]:
        async def every(client: Any) -> list[dict[str, Any]]:
            lines = await client.messages.batches.results(batch, timeout=TIMEOUT)
            return [row.to_dict(mode="json") async for row in lines]

        found: list[dict[str, Any]] = await self._call(every)
        return found

    def read(self, row: Mapping[str, Any]) -> Answer:
        from anthropic.types import Message

        result = row.get("result") or {}
        if result.get("type") == "succeeded":
            reply = self._reader.read(Message.construct(**result["message"]))
            return Answer((reply,), reply.usage)
        if result.get("type") == "errored":
            error = result.get("error") or {}
            raise InputError(f"the batch answered {said(error)[:300]}")
        raise InputError(f"the batch did not get to it: {result.get('type') or 'no result'}")

    async def _call(self, ask: Any) -> Any:
        return await self._connection.call(ask, TIMEOUT)

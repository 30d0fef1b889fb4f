"""What scripted servers say when they fail, in each provider's own form; tests/models/test_contract.py holds these to the SDKs' types."""

from __future__ import annotations

import json


def error_body(provider: str, message: str, kind: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """An error as the provider words it."""
    if provider in ("anthropic", "bedrock", "vertex"):
        return json.dumps(
            {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
        ).encode()
    return json.dumps({"error": {"message": message, "type": kind, "code": code, "param": param}}).encode()


def response(**fields: object) -> dict[str, object]:
    """An answer of OpenAI's responses API, with these fields in place of its own."""
    used = {
        "input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "output_tokens_details": {"reasoning_tokens": 0},
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    }  # fmt: skip
    plain = {
        "id": "resp_1", "object": "response", "created_at": 1.0, "model": "echo", "status": "completed", "output": [],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": used,
    }  # fmt: skip
    return plain | fields

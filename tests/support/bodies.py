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

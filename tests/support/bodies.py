"""What servers say in tests, in each provider's own form, held to the types of the providers' SDKs."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
CLAUDE = ("anthropic", "bedrock", "vertex")


def error_body(provider: str, message: str, kind: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """An error as the provider words it."""
    if provider in CLAUDE:
        error = {"type": kind, "message": message}
        return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()
    return json.dumps({"error": {"message": message, "type": kind, "code": code, "param": param}}).encode()


def planned_error(path: str, status: int) -> bytes:
    """The error of a planned fault, as the provider of that path would word it."""
    provider = "anthropic" if path.startswith("/v1/messages") else "openai"
    return error_body(provider, "planned", KINDS.get(status, "api_error"))


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


def drift(method: str, path: str, status: int, body: Any) -> str:
    """What is wrong with a body by the SDK's own type for it; "" for nothing, and where the SDKs have no type."""
    from pydantic import ValidationError

    if status >= 400 and not path.startswith("/v1/messages"):
        kind, body = "openai error", body.get("error") if isinstance(body, dict) else body
    elif status >= 400:
        kind = "anthropic error"
    else:
        kind = next((kind for pattern, kind in _KINDS.items() if re.fullmatch(pattern, f"{method} {path}")), "")
    if not kind:
        return ""
    try:
        sdk_types()[kind].validate_python(body)
    except ValidationError as error:
        return f"{method} {path} {status}: {error}"
    return ""


_KINDS = {
    r"POST (/v1|/openai/.*)/chat/completions(\?.*)?": "chat",
    r"POST /v1/responses": "response",
    r"POST /v1/completions": "completion",
    r"POST /v1/messages": "message",
    r"POST /v1/batches": "batch",
    r"GET /v1/batches/[^/]+": "batch",
    r"GET /v1/batches(\?.*)?": "batches",
    r"POST /v1/files": "file",
    r"POST /v1/messages/batches": "message batch",
    r"GET /v1/messages/batches/[^/]+": "message batch",
    r"EVENT /v1/chat/completions": "chat event",
    r"EVENT /v1/messages": "message event",
    r"ROW /v1/messages/batches/[^/]+/results": "message row",
}


@cache
def sdk_types() -> dict[str, Any]:
    import anthropic.types as claude
    import openai.types as gpt
    from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
    from anthropic.types.shared import ErrorResponse
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from openai.types.responses import Response
    from openai.types.shared import ErrorObject
    from pydantic import TypeAdapter

    types = {
        "chat": ChatCompletion, "response": Response, "completion": gpt.Completion, "message": claude.Message,
        "openai error": ErrorObject, "anthropic error": ErrorResponse, "batch": gpt.Batch, "file": gpt.FileObject,
        "message batch": MessageBatch, "message row": MessageBatchIndividualResponse,
        "chat event": ChatCompletionChunk, "message event": claude.RawMessageStreamEvent,
        "batches": dict[str, list[gpt.Batch] | Any],
    }  # fmt: skip
    return {name: TypeAdapter(type_) for name, type_ in types.items()}

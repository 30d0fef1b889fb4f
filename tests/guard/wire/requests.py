"""Requests with everything in them that passes the allow-list without leave of the policy."""

from __future__ import annotations

from typing import Any

from guard.wire.samples import CHAT, COMPLETIONS, MESSAGES, RESPONSES

SCHEMA = {"type": "object", "properties": {"at": {"type": "string", "description": "where"}}}
_FUNCTION = {"name": "look", "description": "looks", "parameters": SCHEMA, "strict": True}
_CALL = '{"at": "the sea"}'

RICH: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "m",
        "stream": True,
        "n": 2,
        "temperature": 0.5,
        "stop": ["END", "###"],
        "logit_bias": {"50": -100},
        "metadata": {"team": "harbour"},
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        "prediction": {"type": "content", "content": "the sea is"},
        "chat_template_kwargs": {"enable_thinking": False},
        "stop_token_ids": [1, 2],
        "min_p": 0.1,
        "tools": [{"type": "function", "function": _FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "messages": [
            {"role": "system", "content": "system text"},
            {"role": "developer", "content": [{"type": "text", "text": "developer text"}]},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "user text"}]},
            {
                "role": "assistant",
                "content": "answer",
                "refusal": None,
                "reasoning_content": "thought",
                "annotations": [],
                "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": _CALL}}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "found a boat"},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "and a gull"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "user", "content": "last"},
        ],
    },
    COMPLETIONS: {
        "model": "m",
        "prompt": "Once",
        "suffix": "the end",
        "n": 1,
        "echo": False,
        "logprobs": 2,
        "stop": "\n",
        "stream_options": {"include_usage": True},
    },
    RESPONSES: {
        "model": "m",
        "instructions": "system text",
        "store": False,
        "background": False,
        "include": ["message.output_text.logprobs"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        "metadata": {"team": "harbour"},
        "tools": [{"type": "function", **_FUNCTION}],
        "input": [
            {"role": "developer", "content": "developer text"},
            {"role": "user", "content": [{"type": "input_text", "text": "user text"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "answer", "annotations": []}],
            },
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": _CALL},
            {"type": "function_call_output", "call_id": "call_1", "output": "found a boat"},
            {
                "type": "function_call_output",
                "call_id": "call_1",
                "output": [{"type": "input_text", "text": "and a gull"}],
            },
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "user", "content": "last"},
        ],
    },
    MESSAGES: {
        "model": "m",
        "max_tokens": 64,
        "stop_sequences": ["END"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "u"},
        "output_config": {"effort": "low"},
        "tool_choice": {"type": "tool", "name": "a_tool_with_a_long_name"},
        "tools": [
            {"name": "look", "description": "looks", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
        ],
        "system": [{"type": "text", "text": "system text", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "document",
                        "title": "Log",
                        "context": "of the ship",
                        "source": {"type": "text", "media_type": "text/plain", "data": "document text"},
                        "citations": {"enabled": True},
                    },
                    {
                        "type": "document",
                        "source": {"type": "content", "content": [{"type": "text", "text": "chunk"}]},
                    },
                    {
                        "type": "search_result",
                        "source": "https://a.example",
                        "title": "Sea",
                        "content": [{"type": "text", "text": "search text"}],
                    },
                    {"type": "text", "text": "user text"},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "answer"},
                    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "the sea"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "found a boat"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "is_error": True,
                        "content": [{"type": "text", "text": "and a gull"}],
                    },
                    {"type": "text", "text": "last"},
                ],
            },
            {"role": "system", "content": "more from the operator"},
        ],
    },
}

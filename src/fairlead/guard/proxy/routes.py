"""The routes that are served, and the format each of them speaks."""

from __future__ import annotations

from collections.abc import Mapping

from fairlead.guard.wire import chat, completions, messages
from fairlead.guard.wire.format import Format

FORMATS: Mapping[str, Format] = {
    "/v1/chat/completions": chat.FORMAT,
    "/v1/completions": completions.FORMAT,
    "/v1/messages": messages.FORMAT,
}

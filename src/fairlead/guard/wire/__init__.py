"""The formats that the guard speaks: requests and replies of OpenAI's and Anthropic's routes, as values and back.

`FORMATS` has the format of each route; `format.py` says what a format does.
"""

from fairlead.guard.wire import chat, completions, messages, responses
from fairlead.guard.wire.chat_request import ROUTE as CHAT
from fairlead.guard.wire.completions import ROUTE as COMPLETIONS
from fairlead.guard.wire.format import Format
from fairlead.guard.wire.messages_request import ROUTE as MESSAGES
from fairlead.guard.wire.responses_request import ROUTE as RESPONSES

FORMATS: dict[str, Format] = {
    CHAT: chat.FORMAT,
    COMPLETIONS: completions.FORMAT,
    RESPONSES: responses.FORMAT,
    MESSAGES: messages.FORMAT,
}

__all__ = ["FORMATS", "Format"]

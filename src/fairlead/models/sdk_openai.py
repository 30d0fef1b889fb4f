"""One connection through the official `openai` SDK: the client, one request, and what its failures mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fairlead.models.access import Transient, Who, scrub, status_error
from fairlead.models.background import close_with
from fairlead.models.keys import Secret

FILTER_CODES = ("content_filter", "content_policy_violation", "moderation_blocked", "bio_policy",
                "misalignment_policy_violation")  # fmt: skip


class OpenAIConnection:
    """The client of one server, made on the first call. `make` builds it with the SDK's own retries off."""

    def __init__(self, who: Who, key: Secret | None, make: Callable[[], Any]) -> None:
        self.who, self.key, self._make = who, key, make
        self.client: Any = None

    def __repr__(self) -> str:
        return f"OpenAIConnection({self.who})"

    def ready(self) -> None:
        if self.client is None:
            self.client = self._make()
            close_with(self, self.client)

    async def post(self, path: str, body: Mapping[str, Any], timeout: float) -> Mapping[str, Any] | None:
        """The JSON of one request; None where a content filter refused it. Raises Transient or a user's error."""
        data = await self.call(
            lambda client: client.post(path, cast_to=object, body=body, options={"timeout": timeout}), timeout
        )
        if data is None:
            return None
        if not isinstance(data, Mapping):
            raise Transient(f"{self.who.url} answered something that is not a JSON object", billed=True)
        return data

    async def call(self, ask: Callable[[Any], Any], timeout: float) -> Any:
        """What `ask(client)` gives; None where a content filter refused it. Raises Transient or a user's error."""
        import openai

        url = self.who.url
        try:
            return await ask(self.client)
        except openai.APITimeoutError:
            raise Transient(f"no answer from {url} within {timeout:g} s", billed=True) from None
        except openai.APIConnectionError as error:
            reason = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            dead = reason in ("ConnectError", "ConnectTimeout")
            raise Transient(f"{reason} at {url}", billed=not dead, dead=dead) from None
        except openai.APIStatusError as error:
            code, param, message = (scrub(str(x or ""), self.key) for x in (error.code, error.param, said(error.body)))
            if code in FILTER_CODES:
                return None
            raise status_error(
                self.who, error.status_code, message, error.response.headers, code=code, param=param
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError):
            raise Transient(f"{url} answered something that is not JSON", billed=True) from None


def connect(who: Who, key: Secret | None) -> OpenAIConnection:
    """To OpenAI, or to a server of one's own that speaks its format."""

    def make() -> Any:
        import openai

        # the SDK wants some key; a server of one's own may want none. Its own retries are off: ours count and wait.
        shown = key.reveal() if key is not None else "none"
        return openai.AsyncOpenAI(api_key=shown, base_url=who.url, max_retries=0)

    return OpenAIConnection(who, key, make)


def said(body: Any) -> str:
    """The server's words in the body of an error."""
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        return str(inner.get("message", inner)) if isinstance(inner, Mapping) else str(inner)
    return str(body or "")

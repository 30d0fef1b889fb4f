"""One connection through the official `anthropic` SDK: the client, one request, and what its failures mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fairlead.errors import MissingResource
from fairlead.models.access import Transient, Who, scrub, status_error
from fairlead.models.background import close_with
from fairlead.models.keys import Secret
from fairlead.models.sdk_openai import said


class AnthropicConnection:
    """The client of one server, made on the first call. `make` builds it with the SDK's own retries off.

    login    what to do where the client finds no credentials; "" where they are a key that is known to be there
    """

    def __init__(self, who: Who, key: Secret | None, make: Callable[[], Any], *, login: str = "") -> None:
        self.who, self.key, self._make, self._login = who, key, make, login
        self.client: Any = None

    def __repr__(self) -> str:
        return f"AnthropicConnection({self.who})"

    def ready(self) -> None:
        if self.client is None:
            self.client = self._make()
            close_with(self, self.client)

    async def call(self, ask: Callable[[Any], Any], timeout: float) -> Any:
        """What `ask(client)` gives. Raises Transient or a user's error."""
        import anthropic

        url = self.who.url
        try:
            return await ask(self.client)
        except anthropic.APITimeoutError:
            raise Transient(f"no answer from {url} within {timeout:g} s", billed=True) from None
        except anthropic.APIConnectionError as error:
            reason = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            dead = reason in ("ConnectError", "ConnectTimeout")
            raise Transient(f"{reason} at {url}", billed=not dead, dead=dead) from None
        except anthropic.APIStatusError as error:
            message = scrub(said(error.body), self.key)
            raise status_error(self.who, error.status_code, message, error.response.headers) from None
        except (json.JSONDecodeError, UnicodeDecodeError, anthropic.APIResponseValidationError):
            raise Transient(f"{url} answered something that is not JSON", billed=True) from None
        except Exception as error:
            if not self._login or not _of_credentials(error):
                raise
            words = scrub(str(error), self.key)
            raise MissingResource(f"{self.who.name}: no credentials ({words}). {self._login}") from None


def _of_credentials(error: Exception) -> bool:
    """Whether a cloud's login failed: the SDK's own errors for it, and those of boto3 and google-auth."""
    import anthropic

    ours = isinstance(error, anthropic.AnthropicError | RuntimeError | ValueError)
    return ours or type(error).__module__.partition(".")[0] in ("botocore", "boto3", "google")


def connect(who: Who, key: Secret | None) -> AnthropicConnection:
    """To Anthropic, or to a server of one's own that speaks its format."""

    def make() -> Any:
        import anthropic

        shown = key.reveal() if key is not None else "none"
        return anthropic.AsyncAnthropic(api_key=shown, base_url=who.url, max_retries=0, open_telemetry=False)

    return AnthropicConnection(who, key, make)

"""One vLLM server as rollouts need it: draw with token ids and log-probs, take up weights, say which it has.

The paths beside /v1 are vLLM's own for reinforcement learning; it opens them with VLLM_SERVER_DEV_MODE=1 (written and
tested against 0.32). A failure is `Gone` (the server does not answer: others may) or an error for the user.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fairlead.engine.layout import Tokens
from fairlead.errors import InputError, MissingResource
from fairlead.models.access import Transient, Who, scrub, status_error
from fairlead.models.keys import Secret
from fairlead.models.remote import Limits, close_with
from fairlead.models.toolong import TooLong

log = logging.getLogger(__name__)

DEV = "start it with VLLM_SERVER_DEV_MODE=1 in its environment (vLLM 0.32 or newer)"

CACHE_WAITS = (0.1, 0.5, 2.0, 5.0)
"""Seconds after each try to reset the prefix cache: refused while requests run, such as one just broken off."""

T = TypeVar("T")


class Gone(Exception):
    """A server does not answer, or no longer holds the weights it was given; what it was asked goes to the others."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One reply as the server drew it."""

    tokens: Tokens
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server shows of its weights: a hash of each as it lies there, and its replies to a probe.

    The hashes may be blind: on CPU, linear layers are packed and their hashes are those of nothing.
    """

    digests: Mapping[str, str]
    probe: tuple[Choice, ...]


class VllmServer:
    """A server by its base URL (`…/v1`).

    down      why it takes no prompts; None while it does
    mode      what its log-probs are: "raw" (before the temperature) or "processed" (after it, top-k and top-p); None
              until it was found out
    taken     traces of the weights it holds, to tell whether it takes up the next ones: the trainer's hash of them, and
              what the server's own checksums and its probe were
    head      whether it lists an LM head beside its embeddings; None until it was asked
    calm      the least its probe was ever off, in nats
    retried   tries beyond the first
    """

    def __init__(self, name: str, model: str, url: str, key: Secret | None, limits: Limits) -> None:
        self.url, self.limits = url, limits
        self.down: str | None = None
        self.mode: Literal["raw", "processed"] | None = None
        self.taken: tuple[str, Seen] | None = None
        self.head: bool | None = None
        self.calm = math.inf
        self.retried = 0
        self._who, self._key = Who(name, model, url, "VLLM_API_KEY"), key
        self._root = url.rstrip("/").removesuffix("/v1")
        self._client: Any = None
        self._gate: asyncio.Semaphore | None = None

    def __repr__(self) -> str:
        return f"VllmServer({self.url!r})"

    def ready(self) -> None:
        """Make the client: importing the SDK takes long once, outside every deadline."""
        if self._client is None:
            import openai

            shown = self._key.reveal() if self._key else "none"
            self._client = openai.AsyncOpenAI(api_key=shown, base_url=self.url, max_retries=0)
            close_with(self, self._client)

    # ------------------------------------------------------------------------------------------- drawing

    async def draw(self, prompt: Tokens, n: int, body: Mapping[str, Any]) -> list[Choice]:
        """n replies to a prompt. Raises Gone after the last try, TooLong and InputError for what it refuses."""
        request = {
            "model": self._who.model, "prompt": list(prompt), "n": n, "logprobs": 0, "return_token_ids": True,
            # what the folder's generation_config.json would else slip in
            "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, **body,
        }  # fmt: skip

        async def ask(timeout: float) -> list[Choice]:
            data = await self._request("POST", f"{self._root}/v1/completions", request, timeout)
            return read_choices(data, prompt, n, self.url)

        if self._gate is None:
            self._gate = asyncio.Semaphore(self.limits.concurrency)
        async with self._gate:
            return await self._steadily(ask)

    # ------------------------------------------------------------------------------------------- weights

    async def version(self) -> str:
        """The name of the weights it holds, as last set; "default" where it has just started."""
        data = await self._own("GET", "/weight_info")
        return str(data.get("weight_version"))

    async def load(self, folder: str) -> None:
        """Take up the weights in a folder that the server sees, and forget what it had computed with the old ones."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        # vLLM drops the old weights before it reads the new ones: if that fails, nobody may take it for what it was.
        await self.call_it("being loaded")
        try:
            await self._own("POST", "/collective_rpc", body, fatal=True)
        except MissingResource as error:
            raise MissingResource(
                f"{error}. It was to load {folder}: the server must see that folder, and hold a model of this shape. "
                "Give a folder that both sides see (--weights DIR, or DIR=PATH where it has another path there). "
                "It holds no weights now: restart it if the next refresh fails too."
            ) from None
        for wait in CACHE_WAITS:
            if (await self._own("POST", "/reset_prefix_cache")).get("success") is True:
                return
            await asyncio.sleep(wait)
        raise MissingResource(
            f"{self.url} does not let go of its prefix cache: other requests are running there. What it draws would "
            "mix old weights and new; give it no other work, or start it with --no-enable-prefix-caching"
        )

    async def call_it(self, version: str) -> None:
        """Name the weights it holds. A restart loses the name, and so is seen."""
        await self._own("POST", "/update_weight_version", {"new_version": version})

    async def digests(self) -> Mapping[str, str]:
        """A hash of each weight as it lies there (in the server's dtype and layout)."""
        sums = (await self._own("POST", "/weight_checker", {"action": "checksum"})).get("checksums")
        if not isinstance(sums, Mapping) or not sums:
            raise MissingResource(f"{self.url} gives no checksums of its weights: {DEV}")
        return {str(name): str(digest) for name, digest in sums.items()}

    # -------------------------------------------------------------------------------------------- inside

    async def _own(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, fatal: bool = False
    ) -> Mapping[str, Any]:
        """One of vLLM's own paths. `fatal`: an error of the server is final, another try would find the same."""

        async def ask(timeout: float) -> Mapping[str, Any]:
            return await self._request(method, self._root + path, body, timeout, fatal=fatal)

        return await self._steadily(ask)

    async def _steadily(self, ask: Callable[[float], Awaitable[T]]) -> T:
        """Several tries within the deadline. Raises Gone after the last."""
        started = time.monotonic()
        failure = Transient("not asked")
        for attempt in range(self.limits.attempts):
            if self.down is not None:  # another request found out
                raise Gone(self.down)
            left = self.limits.deadline - (time.monotonic() - started)
            timeout = min(self.limits.timeout, left)
            try:
                async with asyncio.timeout(timeout):
                    return await ask(timeout)
            except TimeoutError:
                failure = Transient(f"no answer within {timeout:g} s")
            except Transient as error:
                failure = error
            if failure.dead and attempt >= 2:
                break
            jitter = random.uniform(0, min(self.limits.backoff_cap, self.limits.backoff * 2**attempt))
            wait = jitter if failure.wait is None else failure.wait + min(jitter, 1.0)
            if attempt + 1 == self.limits.attempts or time.monotonic() - started + wait >= self.limits.deadline:
                break
            self.retried += 1
            await asyncio.sleep(wait)
        raise Gone(f"{failure} (after {attempt + 1} tries)")

    async def _request(
        self, method: str, url: str, body: Mapping[str, Any] | None, timeout: float, *, fatal: bool = False
    ) -> Mapping[str, Any]:
        import openai

        options = {"timeout": timeout}
        try:
            if method == "GET":
                data = await self._client.get(url, cast_to=object, options=options)
            else:
                data = await self._client.post(url, cast_to=object, body=body or {}, options=options)
        except openai.APITimeoutError:
            raise Transient(f"no answer within {timeout:g} s") from None
        except openai.APIConnectionError as error:
            reason = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            raise Transient(reason, dead=reason in ("ConnectError", "ConnectTimeout")) from None
        except openai.APIStatusError as error:
            raise self._refusal(url, error, fatal) from None
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError):
            raise Transient("it answered something that is not JSON") from None
        if not isinstance(data, Mapping):
            raise Transient("it answered something that is not a JSON object")
        return data

    def _refusal(self, url: str, error: Any, fatal: bool) -> Exception:
        message = scrub(_message(error.body), self._key)
        path = url.removeprefix(self._root)
        if error.status_code in (404, 405) and not path.startswith("/v1/"):
            return MissingResource(f"{self.url}: the server has no {path}; {DEV}")
        if fatal and error.status_code >= 500:
            return MissingResource(f"{self.url} answered {error.status_code} to {path}: {message}")
        more = {"code": error.code or "", "param": error.param or ""}
        refusal = status_error(self._who, error.status_code, message, error.response.headers, **more)
        if isinstance(refusal, Transient):
            return Transient(f"{error.status_code}: {message}", wait=refusal.wait)
        return refusal


def _message(body: Any) -> str:
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        return str(inner.get("message", inner)) if isinstance(inner, Mapping) else str(inner)
    return str(body or "")


def read_choices(data: Mapping[str, Any], prompt: Tokens, n: int, url: str) -> list[Choice]:
    """The n replies of an answer of /v1/completions, each whole: every token with its log-prob.

    Raises Transient for an answer that lacks a reply or was broken off, InputError for one that another try would not
    mend: no token ids (not a vLLM), or another prompt than the one sent.
    """
    choices = data.get("choices")
    if not isinstance(choices, list):
        raise Transient("it answered without choices")
    try:
        rows = sorted(choices, key=lambda choice: int(choice["index"]))
        if [int(row["index"]) for row in rows] != list(range(n)):
            raise Transient(f"it answered with {len(rows)} replies instead of {n}")
        out = [_choice(row, url) for row in rows]
        read = next((row["prompt_token_ids"] for row in rows if row.get("prompt_token_ids") is not None), None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Transient(f"it answered in another shape ({type(error).__name__}: {error})") from None
    if read is not None and tuple(read) != tuple(prompt):
        raise InputError(f"{url} read other tokens than it was sent: it cuts prompts or adds to them")
    return out


def _choice(row: Mapping[str, Any], url: str) -> Choice:
    ids, found = row.get("token_ids"), row.get("logprobs")
    if not isinstance(ids, list) or not isinstance(found, Mapping):
        raise InputError(f"{url} gives no token ids and log-probs with its replies; rollouts need a vLLM server")
    finish = row.get("finish_reason")
    if finish not in ("stop", "length"):
        raise Transient(f"a reply ended with {finish!r}")
    logprobs = tuple(float(x) for x in found["token_logprobs"])
    if not ids or len(ids) != len(logprobs) or not all(map(math.isfinite, logprobs)):
        raise Transient(f"a reply has {len(ids)} tokens and {len(logprobs)} log-probs, or one that is no number")
    return Choice(tuple(int(t) for t in ids), logprobs, finish)


def add_place(error: InputError, place: int, tokens: Sequence[int]) -> InputError:
    """The same error with the prompt it is about."""
    if isinstance(error, TooLong):
        size = f"prompt {place} ({len(tokens):,} tokens)"
        return InputError(f"{size}: {error}. Shorten it, or start vLLM with a larger --max-model-len.")
    return type(error)(f"prompt {place}: {error}")

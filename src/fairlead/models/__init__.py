"""Who answers: local weights, the apprentice, managed APIs. `open_model` is the way in.

Importing this package loads neither torch nor a provider's SDK.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from fairlead.errors import InputError, MissingResource
from fairlead.models.batch import Batch
from fairlead.models.budget import Budget, OutOfBudget, Spend
from fairlead.models.cache import ResponseCache
from fairlead.models.prices import Price, read_prices
from fairlead.models.protocol import (
    SAMPLING_FIELDS,
    CapabilityError,
    Finish,
    Model,
    Prompt,
    Reply,
    Sampling,
    Usage,
    require,
)

if TYPE_CHECKING:
    from fairlead.models.remote import Limits
    from fairlead.models.terms import Terms

__all__ = [
    "SAMPLING_FIELDS",
    "Batch",
    "Budget",
    "CapabilityError",
    "Finish",
    "Model",
    "OutOfBudget",
    "Price",
    "Prompt",
    "Reply",
    "ResponseCache",
    "Sampling",
    "Spend",
    "Usage",
    "is_remote",
    "open_model",
    "read_prices",
    "remote_parts",
    "require",
    "torch_is_here",
]

PROVIDERS = ("openai", "openai-responses", "vllm", "anthropic", "azure", "bedrock", "vertex", "together")
FOLDERS = ("./", "../", "/", "~")


def open_model(
    spec: str | Path,
    *,
    torch: bool | None = None,
    budget: Budget | None = None,
    limits: Limits | None = None,
    prices: Mapping[str, Price] | None = None,
    cache: ResponseCache | Path | None = None,
    records: Path | None = None,
    cut: Literal["left"] | None = None,
    **local: Any,
) -> Model:
    """Open a model by name.

    spec     "apprentice" | a folder ("./dir", "/dir", or any name that is a folder here) | a hub name ("NAME" or
             "OWNER/NAME") | "PROVIDER/NAME[@URL]"
    torch    the apprentice only: True insists on torch, False on NumPy, None takes torch where it is installed
    budget, limits, prices   remote models only
    cache    remote models only: keeps replies in a folder and asks nothing twice; None asks always
    records  remote models only: where `doctor --live` keeps what models can do; None is `runs/.cache/capabilities`
    cut      local models: "left" cuts prompts that are too long, None refuses them
    local    more for `open_local`: device, dtype, rows

    Raises InputError (exit 2) for a spec that cannot be understood, MissingResource (exit 4) for what is not there.
    """
    text = str(spec)
    if isinstance(spec, Path) and not spec.is_absolute():
        text = f"./{spec}"
    if text == "apprentice":
        from fairlead.models.apprentice import open_apprentice

        return open_apprentice(torch=torch, cut=cut, **local)
    remote = _remote(text)
    if remote is not None:
        if local:
            raise InputError(f"{text} is a remote model; {sorted(local)[0]!r} is for local weights")
        provider, model, url = remote
        from fairlead.models.capabilities import RECORDS
        from fairlead.models.terms import Terms

        kept = ResponseCache(cache) if isinstance(cache, Path) else cache
        return _open_remote(provider, model, url, text, Terms(budget, limits, prices, kept, records or RECORDS))
    # a name that is a folder here means the folder, as transformers reads it
    folder = bool(text.strip()) and Path(text).is_dir()
    if not folder:
        _check_local(text)
    if not torch_is_here():
        raise MissingResource(f"{text}: local weights need torch and transformers: pip install 'fairlead[train]'")
    from fairlead.models.local import open_local

    if folder and not text.startswith(FOLDERS):
        return open_local(f"./{text}", cut=cut, **{"name": text, **local})
    return open_local(text, cut=cut, **local)


def _open_remote(provider: str, model: str, url: str | None, name: str, terms: Terms) -> Model:
    if provider == "anthropic":
        from fairlead.models.anthropic import open_anthropic

        return open_anthropic(model, url, name=name, terms=terms)
    if provider in ("azure", "bedrock", "vertex"):
        from fairlead.models import clouds

        return clouds.OPEN[provider](model, url, name=name, terms=terms)
    from fairlead.models.openai import open_openai

    return open_openai(provider, model, url, name=name, terms=terms)


def torch_is_here() -> bool:
    """Can local weights be opened? Looks for torch and transformers without importing them."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    except ModuleNotFoundError:
        return False


def is_remote(spec: str | Path) -> bool:
    """Does this spec name a managed model, which costs money and has no weights to train?"""
    return _remote(str(spec)) is not None


def remote_parts(spec: str | Path) -> tuple[str, str, str | None] | None:
    """(provider, model, URL or None) of a managed model, or None for a local one. Raises InputError for a near miss."""
    return _remote(str(spec))


def _remote(text: str) -> tuple[str, str, str | None] | None:
    """(provider, model, URL or None), or None for a local spec. Raises InputError for what is nearly one."""
    head, slash, rest = text.partition("/")
    provider = head.lower()
    url: str | None = None
    if "@" in rest and (match := re.match(r"(.*?)@(\w+://.*)$", rest)):
        rest, url = match[1], match[2]
    elif "@" in rest and provider in PROVIDERS and not (provider == "vertex" and re.fullmatch(r"[^@]+@\w+", rest)):
        raise InputError(f"{text}: what follows @ must be a URL, such as http://127.0.0.1:8000/v1")
    if slash and provider in PROVIDERS:
        if not rest:
            raise InputError(f"{text}: which model? Write {provider}/NAME or {provider}/NAME@URL")
        if url is not None:
            _check_url(text, url)
        return provider, rest, url
    if url is not None or "://" in text:
        near = difflib.get_close_matches(provider, PROVIDERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"{text}: unknown provider {head!r}.{hint} Known: {', '.join(PROVIDERS)}; write PROVIDER/NAME@URL."
        )
    return None


def _check_url(text: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{text.split('@')[0]}: {parts.scheme or 'that'} is not an http or https URL with a host")
    if parts.username or parts.password:
        raise InputError(
            f"{text.split('@')[0]}: keys come from the environment only; take the credentials out of the URL"
        )
    if "," in url:
        raise InputError(f"{text}: one URL belongs here; several, with commas between, go to `label` and `--rollouts`")
    if parts.query or parts.fragment:
        raise InputError(f"{text}: the URL ends with its path (…/v1), without ? or #")


def _check_local(text: str) -> None:
    if not text or text != text.strip():
        raise InputError(f"model {text!r}: name one, such as apprentice, ./dir or PROVIDER/NAME")
    if text.startswith(FOLDERS):
        return
    head, slash, _ = text.partition("/")
    near = difflib.get_close_matches(head.lower(), (*PROVIDERS, "apprentice"), n=1, cutoff=0.8)
    if near and (slash or near[0] == "apprentice") and head.lower() != near[0]:
        raise InputError(f"{text}: no such provider or model here. Did you mean {near[0] + ('/…' if slash else '')!r}?")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise InputError(f"{text}: not apprentice, a folder (./dir), a hub name (OWNER/NAME) or PROVIDER/NAME[@URL]")

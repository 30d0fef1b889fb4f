"""Who may use a proxy: the tenant file, keys by their digest, and how fast each tenant may go.

Keys are 256 random bits drawn by `draw_key` and stored as SHA-256. A slow hash (scrypt) protects words that people make
up; nobody can guess 256 bits, and a hash of 50 ms before anyone is known would be a way to keep the server busy.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fairlead.constitution.load import packs
from fairlead.constitution.schema import Id, Words
from fairlead.constitution.yaml import load_yaml
from fairlead.guard.proxy.settings import Count
from fairlead.guard.settings import Money

KEY = re.compile(r"fl-[A-Za-z0-9_-]{43}")
ANYONE = "local"  # the one tenant where there is no tenant file


def _digest(text: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise ValueError("a key is written as sha256: and 64 hexadecimal digits; draw one with `fairlead guard key`")
    return text


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Where(_Part):
    """A model's server, and the environment variable that holds its key."""

    url: Words
    key: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None


class Tenant(_Part):
    """One who may use the proxy. What is left out is the proxy's own."""

    name: Id
    keys: tuple[Annotated[str, AfterValidator(_digest)], ...] = Field(min_length=1)
    constitution: Words | None = None
    upstream: Where | None = None
    budget: Money | None = Field(None, description="of critics and revisions: dollars a day, or tokens of each worker")
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    in_flight: Count | None = None
    retention_days: Annotated[float, Field(gt=0)] | None = None


class Tenants(_Part):
    """The tenant file."""

    tenants: tuple[Tenant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_distinct(self) -> Tenants:
        names = [tenant.name for tenant in self.tenants]
        keys = [key for tenant in self.tenants for key in tenant.keys]
        for what, values in (("tenant", names), ("key", keys)):
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise ValueError(f"{what} {twice[0]!r} is given twice")
        return self

    def by_key(self) -> dict[str, Tenant]:
        """Tenants under the digests of their keys, without the word sha256."""
        return {key.removeprefix("sha256:"): tenant for tenant in self.tenants for key in tenant.keys}


def read_tenants(path: Path) -> Tenants:
    """The tenants of a file; every mistake is an `InputError` with its line. Constitutions are named from the file."""
    read = load_yaml(path, Tenants, what="tenant file")
    return Tenants(
        tenants=tuple(
            tenant.model_copy(update={"constitution": _from_here(tenant.constitution, path.parent)})
            for tenant in read.tenants
        )
    )


def _from_here(constitution: str | None, folder: Path) -> str | None:
    if constitution is None or (constitution in packs() and not (folder / constitution).is_file()):
        return constitution
    return str(folder / constitution)


def draw_key() -> tuple[str, str]:
    """A new key and how the tenant file names it."""
    key = f"fl-{secrets.token_urlsafe(32)}"
    return key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def tenant_of(key: str, by_key: Mapping[str, Tenant]) -> Tenant | None:
    """Whose key this is. What was not drawn by `draw_key` is nobody's, whatever its digest."""
    if not KEY.fullmatch(key):
        return None
    return by_key.get(hashlib.sha256(key.encode()).hexdigest())


@dataclass(slots=True)
class Pace:
    """So many requests a minute, with a burst of a sixth of them (at least 1): the generic cell rate algorithm.

    Held by each worker for its share; `share` workers divide the rate.
    """

    per_minute: float
    share: int = 1
    _due: float = field(default=0.0, init=False)

    def take(self, now: float) -> float:
        """0 and the request is counted, or the seconds until there is room. `now` in seconds of a steady clock."""
        apart = 60.0 * self.share / self.per_minute
        burst = max(0.0, 10.0 - apart)
        due = max(self._due, now)
        if due - now > burst:
            return due - now - burst
        self._due = due + apart
        return 0.0

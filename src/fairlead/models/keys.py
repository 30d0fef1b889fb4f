"""Keys: from the environment or from a file that only its owner may read, and shown to nobody.

`OPENAI_API_KEY` holds a key, or `OPENAI_API_KEY_FILE` the path of a file that holds it (as container secrets are
mounted). A key lives in a `Secret`, which prints as `[key]`; it is revealed where an SDK's client is made and nowhere
else, so that no log line, report, cache entry or traceback (with its local variables) can hold it.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from fairlead.errors import InputError, MissingResource


class Secret:
    """A text that does not show itself: not in print, not in `vars`, not pickled."""

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def __repr__(self) -> str:
        return "[key]"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")

    def __bool__(self) -> bool:
        return bool(self.__text)

    def reveal(self) -> str:
        """The text itself, for an SDK's client."""
        return self.__text

    def taken_out_of(self, text: str) -> str:
        """The text with [key] for every place where the key stands."""
        return text.replace(self.__text, "[key]") if self.__text else text

    def fits_a_header(self) -> bool:
        """Whether it is printable ASCII without blanks; an SDK would print parts of what is not."""
        return all(33 <= ord(c) <= 126 for c in self.__text)


def key_from(variable: str, *, url: str, optional: bool, name: str) -> Secret | None:
    """The key from the environment or from its file.

    Raises MissingResource where it is needed and there is none, InputError where both are given, where others may read
    the file, where it is no key, or where it would travel in clear.
    """
    key = _from_environment(variable, name)
    if key is None:
        if not optional:
            raise MissingResource(
                f"{name}: no key. Set the environment variable {variable}, or {variable}_FILE to a file that holds it."
            )
        return None
    if not key.fits_a_header():
        raise InputError(f"{name}: {variable} holds blanks or characters that no key has; set it to the key alone")
    travels_safely(variable, url, name)
    return key


def travels_safely(variable: str, url: str, name: str) -> None:
    """Raise InputError where the key would go over plain http to a place outside."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not near(parts.hostname or ""):
        raise InputError(f"{name}: {url} is plain http, and {variable} would travel in clear; use https")


def _from_environment(variable: str, name: str) -> Secret | None:
    key = Secret(os.environ.get(variable, "").strip())
    path = os.environ.get(f"{variable}_FILE", "").strip()
    if key and path:
        raise InputError(f"{name}: both {variable} and {variable}_FILE are set; unset one of them")
    if path:
        key = _from_file(Path(path), variable, name)
    return key or None


def _from_file(path: Path, variable: str, name: str) -> Secret:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{name}: {variable}_FILE names {path}, which is no file")
        if found.st_mode & 0o077:
            mode = f"{stat.S_IMODE(found.st_mode):04o}"
            raise InputError(f"{name}: others may read the key file {path} (mode {mode}): chmod 600 {path}")
        key = Secret(path.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        raise MissingResource(f"{name}: {variable}_FILE names {path}, which is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: the key file {path} cannot be read ({type(error).__name__})") from None
    if not key:
        raise MissingResource(f"{name}: the key file {path} is empty")
    return key


def near(host: str) -> bool:
    """Loopback, private networks and names without a dot: where plain http is usual."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        # a number alone is an address too, written in another way (http://134744072 is 8.8.8.8)
        named = "." not in host and not host[:1].isdigit()
        return host == "localhost" or named or host.endswith((".local", ".internal", ".localhost"))

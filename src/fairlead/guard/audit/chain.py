"""The chain: each record carries a code made with a secret key from the code before it, its place and its bytes.

Who cannot read the key cannot make a code that fits, so a record that was changed, moved, put in or taken out of the
middle is seen. Records cut off at the end leave a shorter chain that fits; for those there are heads (heads.py).
HMAC-SHA256 (RFC 2104), one key for each use, drawn from that of the file.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import InputError

CHAINS = 1024  # as many workers may write into one log at a time
_BITS = 40  # a record's row number is its chain's number and, in the lower bits, its own


@dataclass(frozen=True, slots=True)
class Keys:
    """Drawn from the key file: `chain` links records, `digest` hides texts' digests, `seal` signs heads and anchors.
    `id` tells keys apart and gives nothing away."""

    chain: bytes
    digest: bytes
    seal: bytes
    id: str


def keys_from(master: bytes) -> Keys:
    use = {
        name: hmac.digest(master, f"fairlead audit {name}".encode(), "sha256") for name in ("chain", "digest", "seal")
    }
    return Keys(**use, id=hashlib.sha256(b"fairlead audit key" + use["seal"]).hexdigest()[:12])


def key_beside(log: Path) -> Path:
    """Where the key lies if nothing else is said: audit.key beside audit.db."""
    return log.with_suffix(".key")


def read_key(path: Path, *, make: bool = False) -> Keys:
    """The keys of a file; `make` writes a new one, for its owner alone, where there is none.

    Raises InputError for a file that is missing, holds no key, or that others may read.
    """
    try:
        return keys_from(_master(path, wait=make))
    except FileNotFoundError:
        if not make:
            raise InputError(
                f"{path}: there is no such key file. The log was made with it and cannot be checked without; "
                "name it with --key"
            ) from None
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another worker was quicker
        return keys_from(_master(path, wait=True))
    except OSError as problem:
        raise InputError(f"{path}: the audit key cannot be written ({problem.strerror}); name another --key") from None
    with open(file, "w", encoding="ascii") as out:
        out.write(secrets.token_hex(32) + "\n")
        out.flush()
        os.fsync(out.fileno())
    return keys_from(_master(path))


def _master(path: Path, *, wait: bool = False) -> bytes:
    for _ in range(200 if wait else 1):
        with open(path, encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(200).strip()
        if text or not wait:
            break
        time.sleep(0.01)
    if mode & 0o077:
        raise InputError(
            f"{path}: others may read this key (mode {mode:o}), so what it seals proves nothing; "
            f"chmod 600 {path}, or start a new log with a new key"
        )
    try:
        master = bytes.fromhex(text)
    except ValueError:
        master = b""
    if len(master) != 32:
        raise InputError(f"{path}: this is no audit key (64 hex digits on one line)")
    return master


def row_number(chain: int, seq: int) -> int:
    return chain << _BITS | seq


def place(row: int) -> tuple[int, int]:
    """Chain and number of the record in it, from its row number."""
    return row >> _BITS, row & (1 << _BITS) - 1


def genesis(keys: Keys, log: str, chain: int) -> bytes:
    """What stands before the first record: no chain can be taken for another, nor for one of another log."""
    return hmac.digest(keys.chain, b"fairlead audit 1 " + log.encode() + struct.pack(">I", chain), "sha256")


def link(key: bytes, before: bytes, row: int, body: bytes) -> bytes:
    """The code of a record, from the code before it."""
    return hmac.digest(key, before + struct.pack(">Q", row) + body, "sha256")


def sealed(keys: Keys, what: str, *fields: object) -> str:
    """The signature of a head or an anchor, as hex digits."""
    return hmac.digest(keys.seal, "\0".join((what, *map(str, fields))).encode(), "sha256").hex()


def anchor_seal(keys: Keys, chain: int, seq: int, code: bytes, at: float, policies: bytes) -> str:
    """The signature of the mark where a chain begins after old records were taken away (rotate.py)."""
    return sealed(keys, "anchor", chain, seq, code.hex(), at, policies.hex())


def same(a: str | bytes, b: str | bytes) -> bool:
    """Whether two codes are equal, in a time that does not say where they differ."""
    if isinstance(a, str):
        a = a.encode()
    if isinstance(b, str):
        b = b.encode()
    return hmac.compare_digest(a, b)

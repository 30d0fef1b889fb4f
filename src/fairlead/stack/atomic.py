"""Folders and files that are whole or absent: built beside their place, flushed to disk, then renamed into it.

A run that is interrupted or killed leaves at most a `.tmp-…` folder, which the next run sweeps away. Needs no torch.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fairlead.errors import InputError, MissingResource

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OS_ERROR_TEXT = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust (safetensors) print errno


def full_disk(error: BaseException) -> bool:
    """Whether this error, or one it was raised from, says that no more bytes fit."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        found = _OS_ERROR_TEXT.search(str(seen))
        if found and int(found.group(1)) in _FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def plain_disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space" and "not allowed" into errors that name the place and what to do.

    Raises MissingResource (exit 4) for a full disk, InputError (exit 2) for a place that may not be written.
    """
    try:
        yield
    except PermissionError as error:
        raise InputError(
            f"{error.filename or path}: may not be written; give another place with --out or --cache"
        ) from error
    except Exception as error:
        if not full_disk(error):
            raise
        raise MissingResource(
            f"{path}: the disk is full ({_free(path)} free). Nothing half-written was left; "
            "free some space or give another place with --out and --cache, then run again: finished work is kept"
        ) from error


def _free(path: Path) -> str:
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return f"{shutil.disk_usage(place).free / 1e6:,.0f} MB"
    except OSError:
        return "an unknown amount"


def write_file(path: Path, body: bytes | str) -> None:
    """Write a file so that readers see the old one or the whole new one, never a part."""
    raw = body.encode() if isinstance(body, str) else body
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{_owner()}-{path.name}"
    try:
        with open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the name `final` when the block ends well, and vanishes when it does not.

    Where `final` came to exist meanwhile (another run was faster) theirs stays and ours is dropped.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".tmp-{_owner()}-{final.name[:24]}"
    with plain_disk_errors(final):
        try:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file() and not file.is_symlink():
                    _sync_file(file)
            _sync_folder(temporary)
            try:
                os.rename(temporary, final)
            except OSError:
                if not final.is_dir():
                    raise
            _sync_folder(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> int:
    """Remove what runs on this machine that are no longer alive left behind; returns how many."""
    removed = 0
    if not folder.is_dir():
        return 0
    for item in folder.glob(".tmp-*"):
        host, pid = _whose(item)
        if host != _host() or not pid.isdigit() or _alive(int(pid)):
            continue
        shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink(missing_ok=True)
        removed += 1
    return removed


@contextmanager
def at_work(folder: Path) -> Iterator[Callable[[], None]]:
    """Show other processes that this one works in the folder, by a file there that goes when the block ends.

    What is yielded is called now and then while the work goes on: of a machine that fell silent nobody knows whether
    its process is alive, only when it last called (see `others_at_work`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".tmp-{_owner()}-at-work"
    try:
        mark.touch()
        yield mark.touch
    finally:
        mark.unlink(missing_ok=True)


def others_at_work(folder: Path, silent_s: float = 86_400.0) -> bool:
    """Whether another process may be at work in the folder: alive here, or elsewhere and heard of in `silent_s`."""
    for mark in folder.glob(".tmp-*-at-work"):
        host, pid = _whose(mark)
        if host == _host() and pid.isdigit():
            if int(pid) != os.getpid() and _alive(int(pid)):
                return True
        elif age(mark) < silent_s:
            return True
    return False


def _whose(item: Path) -> tuple[str, str]:
    """The machine and the process id in the name of a temporary file."""
    host, _, rest = item.name.removeprefix(".tmp-").partition("+")
    return host, rest.partition("-")[0]


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, replacing an older link in one step."""
    temporary = link.parent / f".tmp-{_owner()}-{link.name}"
    os.symlink(os.path.relpath(target, link.parent), temporary)
    try:
        os.replace(temporary, link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{link}: is not a link, so it is left alone; the run is in {target}") from error


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:32]


def _owner() -> str:
    return f"{_host()}+{os.getpid()}-{secrets.token_hex(4)}"


def age(path: Path) -> float:
    """Seconds since it was last written; 0 where it has just gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        _sync_file(path)

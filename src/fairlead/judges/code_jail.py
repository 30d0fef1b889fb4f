"""Shutting a process in, from inside: namespaces, files of its own, limits, no rights. Standard library only."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

NOBODY = 65534

_NS = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV, _DETACH = 0x1000, 0x4000, 0x40000, 2, 4, 2
_MOUNT_SETATTR, _AT_RECURSIVE, _RDONLY = 442, 0x8000, 1  # one number on every architecture; Linux 5.12
_DEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38


def shut_in(settings: dict[str, Any], status: int, keep: Sequence[int]) -> None:
    """Come back in a process that has no network, its own few files and processes, limits, and no rights.

    The process that called stays outside and ends with its code. Raises OSError saying which step was refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _die_with_parent(libc)
    if settings["network"] == "block-in-python":
        _limit(settings)
        _close_all_but([0, 1, 2, status, *keep])
        sys.addaudithook(_refuse)
        return
    uid, gid = os.geteuid(), os.getegid()  # asked now: inside, they have no names until they are mapped
    root = uid == 0
    into, told = os.pipe()
    helper = os.fork() if root else 0
    if root and helper == 0:
        _map_for_parent(into, told)
    _did(libc.unshare(sum(_NS.values())), "a sandbox of its own (unshare)")
    if root:
        os.write(told, b"x")
        if os.waitpid(helper, 0)[1]:
            raise OSError("the kernel refuses: mapping users into the sandbox")
    else:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    os.close(into)
    os.close(told)
    _own_files(libc, settings["folder"], settings["file_mb"])
    _die_with_parent(libc)
    if inner := os.fork():  # the child is the first process of a new world: with it, all in it end
        _wait_and_end(inner)
    _die_with_parent(libc)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(int(settings["seconds"]) + 90)  # should nobody be left outside to end this
    if code := os.fork():
        _wait_and_end(code)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _did(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "giving up rights (no_new_privs)")
    nothing = struct.pack("6I", 0, 0, 0, 0, 0, 0)
    _did(libc.capset(struct.pack("Ii", 0x20080522, 0), nothing), "giving up rights (capset)")
    with open(json.__file__, "rb") as file:  # what cannot be imported here would be blamed on the code
        file.read(1)
    _limit(settings)
    _close_all_but([0, 1, 2, status, *keep])


def _did(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"the kernel refuses: {what}: {os.strerror(error)}")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise OSError(f"the kernel refuses: mapping users into the sandbox ({path}: {error.strerror})") from error


def _die_with_parent(libc: Any) -> None:
    libc.prctl(_DEATHSIG, signal.SIGKILL, 0, 0, 0)


def _map_for_parent(into: int, told: int) -> NoReturn:
    """Root outside gives the sandbox two users: root, who sets it up, and nobody, who runs the code."""
    code = 1
    with suppress(OSError):
        os.close(told)
        if os.read(into, 1):
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{os.getppid()}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1")
            code = 0
    os._exit(code)


def _own_files(libc: Any, folder: str, file_mb: int) -> None:
    """A root of its own in memory: system libraries and Python read-only, three devices, and an empty /tmp."""

    def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        done = libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode())
        _did(done, f"mounting {source} in the sandbox")

    def bind(path: str) -> None:
        target = folder + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "w").close()
        mount(path, target, "", _BIND | _REC)
        if not path.startswith("/dev/"):
            attributes = struct.pack("4Q", _RDONLY, 0, 0, 0)
            done = libc.syscall(_MOUNT_SETATTR, -100, target.encode(), _AT_RECURSIVE, attributes, len(attributes))
            _did(done, f"making {path} read-only (needs Linux 5.12)")

    mount("none", "/", "", _REC | _PRIVATE)
    mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV, f"size={file_mb}m,nr_inodes=4096,mode=755")
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    for path in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", *dict.fromkeys(python)):
        if os.path.islink(path):
            os.symlink(os.readlink(path), folder + path)
        elif os.path.exists(path) and not os.path.lexists(folder + path):
            bind(path)
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        bind(path)
    os.mkdir(folder + "/tmp")
    os.chmod(folder + "/tmp", 0o1777)
    os.chdir(folder)
    _did(libc.pivot_root(b".", b"."), "leaving the outer files (pivot_root)")
    _did(libc.umount2(b".", _DETACH), "leaving the outer files (umount)")
    os.chdir("/tmp")


def _wait_and_end(child: int) -> NoReturn:
    """Hold nothing of the code's, wait for it, and end as it ended."""
    _close_all_but([])
    while True:
        found, how = os.wait()
        if found == child:
            code = os.waitstatus_to_exitcode(how)
            os._exit(code if code >= 0 else 128 - code)


def _close_all_but(keep: Sequence[int]) -> None:
    low = 0
    for fd in [*sorted(set(keep)), 1 << 16]:
        if fd > low:  # closerange(0, 0) closes everything
            os.closerange(low, fd)
        low = fd + 1


def _limit(settings: dict[str, Any]) -> None:
    import resource  # not there on Windows, where the outer half of this house still imports this file

    weak = settings["network"] == "block-in-python"
    mb = 1 << 20
    for name, value in (
        ("RLIMIT_AS", settings["memory_mb"] * mb),
        ("RLIMIT_CPU", settings["cpu_seconds"]),
        ("RLIMIT_FSIZE", settings["file_mb"] * mb),
        ("RLIMIT_NPROC", 0 if weak else settings["processes"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


_REFUSED = (
    "socket.", "subprocess.", "ctypes.", "pty.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.kill", "os.killpg", "signal.pthread_kill", "_thread.start", "fcntl.", "os.chmod", "os.chown",
)  # fmt: skip


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_REFUSED):
        raise PermissionError(f"{event} is not allowed in the sandbox")
    if event == "open" and str(arguments[0]).startswith("/proc"):
        raise PermissionError("/proc is not to be read in the sandbox")

"""Peak resident memory of this process, as Linux counts it: the same measure for every library."""

from __future__ import annotations

from pathlib import Path


def reset_peak() -> int:
    """Forget the peak so far; returns the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak() -> int:
    """Most resident bytes since `reset_peak`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: this bench measures memory on Linux only")

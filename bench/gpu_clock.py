"""Clocks and memory of one device, for `gpu.py` and its parts. Needs torch alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch


def clock(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, the device's own work included, and what it returned."""
    wait(device)
    began = time.perf_counter()
    result = run()
    wait(device)
    return time.perf_counter() - began, result


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float | None:
    """Gigabytes at the most since `reset_peak`; None off the GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None

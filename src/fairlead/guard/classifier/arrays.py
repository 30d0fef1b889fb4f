"""Arrays to bytes and back in the safetensors format: a JSON header and the numbers, nothing that could run.

Our own, so that serving needs NumPy alone. https://github.com/huggingface/safetensors (format section of its README).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_NAMES = {np.dtype(kind): name for name, kind in _KINDS.items()}


def dump(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as one safetensors file, names in order."""
    header: dict[str, Any] = {}
    bodies: list[bytes] = []
    at = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        body = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")], "shape": list(array.shape),
            "data_offsets": [at, at + len(body)],
        }  # fmt: skip
        bodies.append(body)
        at += len(body)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + b"".join(bodies)


def load(raw: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file. ValueError for anything else: sizes are checked, not believed."""
    if len(raw) < 8 or (size := int.from_bytes(raw[:8], "little")) > len(raw) - 8:
        raise ValueError("not a safetensors file: its header does not fit into it")
    try:
        header = json.loads(raw[8 : 8 + size])
    except ValueError as problem:
        raise ValueError(f"not a safetensors file: its header is no JSON ({problem})") from None
    body = memoryview(raw)[8 + size :]
    out: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind = _KINDS.get(entry["dtype"])
        if kind is None:
            raise ValueError(f"{name} is {entry['dtype']}; known here: {', '.join(_KINDS)}")
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if not 0 <= start <= end <= len(body) or int(np.prod(shape)) * np.dtype(kind).itemsize != end - start:
            raise ValueError(f"{name}: its shape {shape} and its bytes [{start}, {end}) do not agree")
        out[name] = np.frombuffer(body[start:end], dtype=kind).reshape(shape).copy()
    return out

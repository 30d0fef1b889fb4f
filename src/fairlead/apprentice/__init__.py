"""The embedded default: a small harbour world whose truth is known, and a small model raised in it.

Nothing here needs torch except `pretrain`, which made the shipped weights.
"""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder of the shipped base model (Hugging Face format)."""
    return Path(__file__).parent / "base"

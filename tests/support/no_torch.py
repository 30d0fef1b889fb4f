"""A Python in which torch and transformers are not installed, for subprocesses: `import support.no_torch` first."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

ABSENT = ("torch", "transformers")


class Without(importlib.machinery.PathFinder):
    """The usual finder, blind to what is absent."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return None if fullname.partition(".")[0] in ABSENT else super().find_spec(fullname, path, target)


sys.meta_path = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]

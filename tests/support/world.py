"""A tiny model that lives in the apprentice's world: its wordings mark it as a descendant, though it knows nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.talker import talker


def descendant(where: Path) -> Path:
    """The talker's folder with the wordings of the apprentice beside the weights."""
    from fairlead import apprentice

    folder = talker(where)
    shutil.copytree(Path(apprentice.__file__).parent / "prompts", folder / "prompts")
    return folder

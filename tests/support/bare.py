"""An environment that holds what `pip install fairlead` brings, without its extras: no torch, no transformers. Or others.

Made of links to the packages of the environment that runs the tests, so it needs no network and no time.
"""

from __future__ import annotations

import os
import sysconfig
import tomllib
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def bare_python(where: Path, packages: list[str] | None = None) -> Path:
    """The interpreter of a new environment with the core dependencies, all they need, and this source tree.

    `packages`: these, and all they need, in place of the core dependencies.
    """
    venv.create(where, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(where), "platbase": str(where)}))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in _closure(packages or project["dependencies"]):
        _link(package, site)
    (site / "fairlead-source.pth").write_text(f"{ROOT / 'src'}\n")
    return where / "bin" / "python"


def environment(**more: str) -> dict[str, str]:
    """The variables of this process without what would lead another interpreter back into its packages, or to a key."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL")
    kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.endswith("_API_KEY")}
    return kept | more


def _closure(requirements: list[str]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if wanted.marker is not None and not any(
            wanted.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
        ):
            continue
        if name not in found:
            found[name] = distribution(wanted.name)
            waiting += [Requirement(text) for text in found[name].requires or ()]
    return list(found.values())


def _link(package: Distribution, site: Path) -> None:
    """Everything the package put into site-packages, by its own list of files."""
    tops = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        target = site / top
        if not target.exists():
            target.symlink_to(Path(str(package.locate_file(top))))

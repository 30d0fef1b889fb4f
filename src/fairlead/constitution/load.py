"""From a reference (`hhh`, `./brand.yaml`) to a whole constitution: packs, files, `extends`, and where it all stood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fairlead.constitution.explain import meant
from fairlead.constitution.priority import faults
from fairlead.constitution.schema import Constitution, Voice, merged
from fairlead.constitution.voice import read_samples
from fairlead.constitution.yaml import Document, read_yaml, validate
from fairlead.errors import InputError

PACKS = Path(str(files("fairlead.constitution") / "packs"))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A resolved constitution, the `file:line` of each of its principles, and the files it was made of."""

    constitution: Constitution
    origins: Mapping[str, str]
    files: tuple[Path, ...]


def load(ref: str | Path) -> Constitution:
    """The constitution named by `ref`: a pack (`hhh`), or the path of a YAML file. Raises `InputError` (exit 2)."""
    return resolve(ref).constitution


def resolve(ref: str | Path) -> Loaded:
    """As `load`, with where everything came from."""
    loaded = _resolve(_find(ref, None, ""), ())
    if not loaded.constitution.principles:
        raise InputError(f"{loaded.files[-1]}:1: has no principles, and extends nothing that has; write at least one")
    if told := faults(loaded.constitution, loaded.origins):
        raise InputError("\n".join(told))
    return loaded


def usual(*, world: bool) -> str:
    """The pack where none is named: the apprentice's world has its own."""
    return "harbour" if world else "hhh"


def packs() -> tuple[str, ...]:
    """The names of the constitutions that ship with Fairlead."""
    return tuple(sorted(path.stem for path in PACKS.glob("*.yaml")))


def _resolve(path: Path, around: tuple[Path, ...]) -> Loaded:
    document = read_yaml(path, what="constitution")
    _refuse_twice(document, "principles", "principle")
    _refuse_twice(document, "secrets", "secret")
    own = validate(document, Constitution)
    samples: tuple[Path, ...] = ()
    if isinstance(own.assistant.voice, Voice):
        voice, samples = read_samples(own.assistant.voice, document)
        own = own.model_copy(update={"assistant": own.assistant.model_copy(update={"voice": voice})})
    inside = (*around, path.resolve())
    bases: list[Loaded] = []
    for i, ref in enumerate(own.extends):
        here = f"{document.source}:{document.line(('extends', i))}: "
        base = _find(ref, path.parent, here)
        if base.resolve() in inside:
            circle = " extends ".join(p.name for p in (*inside[inside.index(base.resolve()) :], base))
            raise InputError(f"{here}extends itself: {circle}")
        bases.append(_resolve(base, inside))
    origins: dict[str, str] = {}
    for loaded in bases:
        origins |= loaded.origins
    shown = f"pack {path.stem}" if path.parent == PACKS else document.source
    for i, principle in enumerate(own.principles):
        origins[principle.id] = f"{shown}:{document.line(('principles', i))}"
    whole = merged(own, [b.constitution for b in bases], assistant_given="assistant" in document.data)
    return Loaded(whole, origins, tuple(dict.fromkeys((*(f for b in bases for f in b.files), *samples, path))))


def _find(ref: str | Path, folder: Path | None, here: str) -> Path:
    """The file that `ref` names: relative to `folder`, else a pack. `here` opens the message when there is none."""
    name = str(ref)
    path = (folder / name) if folder else Path(name)
    is_path = isinstance(ref, Path) or "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))
    if name in packs() and not is_path:
        return PACKS / f"{name}.yaml"
    if is_path or path.is_file():
        if here and not path.is_file():
            raise InputError(f"{here}extends {name!r}, but there is no such file ({path})")
        return path
    raise InputError(
        f"{here}unknown constitution pack {name!r}. {meant(name, packs())} (a file is named by its path: ./{name}.yaml)"
    )


def _refuse_twice(document: Document, key: str, single: str) -> None:
    """The same id twice in one file is a mistake; across `extends` it is an override."""
    items = document.data.get(key) if isinstance(document.data, dict) else None
    first: dict[str, int] = {}
    for i, item in enumerate(items if isinstance(items, list) else ()):
        id = item.get("id") if isinstance(item, dict) else None
        if not isinstance(id, str):
            continue  # the schema says what is wrong with it
        line = document.line((key, i, "id"))
        if id in first:
            raise InputError(f"{document.source}:{line}: {single} {id!r} is given twice, first on line {first[id]}")
        first[id] = line

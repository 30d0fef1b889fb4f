"""A finished run as the report reads it: `results.json` and `exchanges/*.jsonl` of a run folder (DESIGN §7).

Only what is printed is read. Whatever the files say is taken as text to be shown, never as markup; what they lack is
said where it would stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import Exchange, from_json

Better: TypeAlias = Literal["higher", "lower"]
Judgement: TypeAlias = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of one layer. `value` is None where nothing could be scored."""

    measure: str
    principle: str
    layer: str
    value: float | None
    low: float
    high: float
    n: int
    missing: int
    better: Better
    judge: str
    lineage: str
    evidence: bool | str
    note: str = ""
    not_asked: int = 0
    seen: int = 0
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Effect:
    """What one measure did from one layer to a later one."""

    measure: str
    before: str
    after: str
    change: float | None
    low: float
    high: float
    verdict: Judgement
    p: float | None = None
    n: int | None = None
    missing: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """One case of one layer: a line of `exchanges/*.jsonl`."""

    measure: str
    layer: str
    case: str
    status: str
    value: float | None
    reason: str
    exchange: Exchange | None
    control: Exchange | None = None


@dataclass(frozen=True, slots=True)
class PrincipleText:
    id: str
    dimension: str = ""
    severity: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Run:
    """Everything the terminal, the page and the card show. `more` holds the optional keys of `results.json`."""

    model: str
    constitution: str
    constitution_sha256: str
    layers: tuple[str, ...]
    rows: tuple[Row, ...]
    effects: tuple[Effect, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    principles: tuple[PrincipleText, ...] = ()
    told: tuple[Told, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def first(self) -> str:
        return self.layers[0]

    @property
    def last(self) -> str:
        return self.layers[-1]

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """Ids in the order of `results.json`."""
        return tuple(dict.fromkeys(row.measure for row in self.rows))

    @cached_property
    def _rows(self) -> dict[tuple[str, str], Row]:
        return {(row.measure, row.layer): row for row in self.rows}

    def row(self, measure: str, layer: str) -> Row | None:
        return self._rows.get((measure, layer))

    def any_row(self, measure: str) -> Row:
        """The measure's latest row: direction, principle and judge are the same in all."""
        return next(row for row in reversed(self.rows) if row.measure == measure)

    def effect(self, measure: str, before: str | None = None, after: str | None = None) -> Effect | None:
        """The comparison of two layers; from the first to the last where none are named."""
        pair = (before or self.first, after or self.last)
        return next((e for e in self.effects if e.measure == measure and (e.before, e.after) == pair), None)

    def is_difference(self, measure: str) -> bool:
        """Whether values of this measure may be negative: a difference of two rates, not a rate."""
        return any(row.low < 0 for row in self.rows if row.measure == measure)

    def slipped(self, measure: str, layer: str | None = None) -> list[Told]:
        """Cases on the wrong side at a layer (the last one by default), worst first."""
        better = self.any_row(measure).better
        sign = 1.0 if better == "lower" else -1.0
        middle = 0.0 if self.is_difference(measure) else 0.5
        wrong = [
            item
            for item in self.told
            if item.measure == measure
            and item.layer == (layer or self.last)
            and item.value is not None
            and sign * (item.value - middle) > 0
        ]
        return sorted(wrong, key=lambda item: (-sign * (item.value or 0.0), item.case))

    def told_at(self, measure: str, layer: str, case: str) -> Told | None:
        return self._told.get((measure, layer, case))

    @cached_property
    def _told(self) -> dict[tuple[str, str, str], Told]:
        return {(item.measure, item.layer, item.case): item for item in self.told}


# ---------------------------------------------------------------------------------------------- reading


def read_run(folder: str | Path) -> Run:
    """The run in `folder`. Raises MissingResource or InputError that name the file, the line and the key."""
    where = Path(folder)
    path = where / "results.json"
    if not path.is_file():
        raise MissingResource(f"{path}: not found; give the folder of a finished run")
    try:
        results = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as problem:
        raise InputError(f"{path}:{problem.lineno}: is no JSON: {problem.msg}") from None
    return run_from(results, path=path, folder=where)


_KNOWN = {"schema", "model", "constitution", "layers", "measures", "side_effects", "seconds"}


def run_from(
    results: Any,
    told: tuple[Told, ...] | None = None,
    path: Path = Path("results.json"),
    folder: Path | None = None,
) -> Run:
    """A run from the content of `results.json`; `path` is named in errors.

    Exchanges that are not given are read from the folder, where there is one.
    """
    if not isinstance(results, Mapping):
        raise InputError(f"{path}: expected an object, got {type(results).__name__}")
    if results.get("schema") != 1:
        raise InputError(f"{path}: schema {results.get('schema')!r} is not known here; this version reads schema 1")
    layers = tuple(str(name) for name in _need(results, "layers", list, path))
    if not layers:
        raise InputError(f"{path}: `layers` is empty: there is nothing to report")
    constitution = _need(results, "constitution", Mapping, path)
    rows = tuple(
        _row(item, layers, f"{path}: measures[{n}]") for n, item in enumerate(_need(results, "measures", list, path))
    )
    effects = tuple(
        _effect(item, f"{path}: side_effects[{n}]") for n, item in enumerate(_need(results, "side_effects", list, path))
    )
    return Run(
        model=str(_need(results, "model", object, path)),
        constitution=str(_need(constitution, "name", str, path)),
        constitution_sha256=str(constitution.get("sha256", "")),
        layers=layers,
        rows=rows,
        effects=effects,
        seconds={str(k): float(v) for k, v in results.get("seconds", {}).items() if isinstance(v, int | float)},
        principles=tuple(_principle(p, path) for p in constitution.get("principles", [])),
        told=_all_told(folder) if told is None else told,
        more={k: v for k, v in results.items() if k not in _KNOWN},
        folder=folder,
    )


def _need(holder: Mapping[str, Any], key: str, kind: type, path: Path | str) -> Any:
    value = holder.get(key)
    if value is None or not isinstance(value, kind):
        got = "is missing" if value is None else f"is {type(value).__name__}, not {kind.__name__}"
        raise InputError(f"{path}: key {key!r} {got}")
    return value


def _number(holder: Mapping[str, Any], key: str, where: str) -> float:
    value = holder.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: key {key!r} is {value!r}, not a number")
    return float(value)


def _row(item: Any, layers: tuple[str, ...], where: str) -> Row:
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: expected an object")
    better, layer = item.get("better"), str(item.get("layer"))
    if better not in ("higher", "lower"):
        raise InputError(f"{where}: `better` is {better!r}; it is 'higher' or 'lower'")
    if layer not in layers:
        raise InputError(f"{where}: layer {layer!r} is not among `layers` ({', '.join(layers)})")
    value = item.get("value")
    return Row(
        measure=str(_need(item, "measure", str, where)),
        principle=str(item.get("principle") or ""),
        layer=layer,
        value=None if value is None else float(value),
        low=_number(item, "low", where),
        high=_number(item, "high", where),
        n=int(_need(item, "n", int, where)),
        missing=int(item.get("missing") or 0),
        better=better,
        judge=str(item.get("judge") or ""),
        lineage=str(item.get("lineage") or ""),
        evidence=item.get("evidence", False),
        note=str(item.get("note") or ""),
        not_asked=int(item.get("not_asked") or 0),
        seen=int(item.get("seen") or 0),
        truncated=int(item.get("truncated") or 0),
    )


def _effect(item: Any, where: str) -> Effect:
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: expected an object")
    verdict = item.get("verdict")
    if verdict not in ("better", "worse", "cannot tell"):
        raise InputError(f"{where}: `verdict` is {verdict!r}; it is 'better', 'worse' or 'cannot tell'")
    change = item.get("change")
    return Effect(
        measure=str(_need(item, "measure", str, where)),
        before=str(_need(item, "from", str, where)),
        after=str(_need(item, "to", str, where)),
        change=None if change is None else float(change),
        low=_number(item, "low", where),
        high=_number(item, "high", where),
        verdict=verdict,
        p=item.get("p"),
        n=item.get("n"),
        missing=item.get("missing"),
    )


def _principle(item: Any, path: Path) -> PrincipleText:
    if not isinstance(item, Mapping) or not item.get("id"):
        raise InputError(f"{path}: constitution.principles: each needs an `id`")
    severity = item.get("severity")
    return PrincipleText(
        str(item["id"]), str(item.get("dimension") or ""), None if severity is None else int(severity),
        str(item.get("text") or ""),
    )  # fmt: skip


def _all_told(folder: Path | None) -> tuple[Told, ...]:
    files = () if folder is None else sorted((folder / "exchanges").glob("*.jsonl"))
    return tuple(item for file in files for item in _told(file))


def _told(path: Path) -> Iterator[Told]:
    """The cases of one file. A line may leave out `layer` where the file is named after it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                item = orjson.loads(line)
            except orjson.JSONDecodeError as problem:
                raise InputError(f"{where}: is no JSON: {problem.msg}") from None
            if not isinstance(item, Mapping):
                raise InputError(f"{where}: expected an object")
            value = item.get("value", item.get("outcome"))
            yield Told(
                measure=str(_need(item, "measure", str, where)),
                layer=str(item.get("layer") or path.stem),
                case=str(_need(item, "case", str, where)),
                status=str(item.get("status") or ("missing" if value is None else "scored")),
                value=float(value) if isinstance(value, int | float) else None,
                reason=str(item.get("reason") or ""),
                exchange=_exchange(item.get("exchange"), where),
                control=_exchange(item.get("control"), where),
            )


def _exchange(data: Any, where: str) -> Exchange | None:
    if data is None:
        return None
    try:
        return from_json(Exchange, data)
    except (ValueError, TypeError) as problem:
        raise InputError(f"{where}: the exchange cannot be read: {problem}") from None

"""Who may testify: the lineage of a judge, and the ledger of what a run optimised, selected on and audited with.

The metric you optimise is never the evidence you show (DESIGN, idea 3). A judge's lineage is a set of leaves. A leaf
is what makes one scorer: its kind, the model behind it (weights or provider model), the text it reads by, its code,
the rows it learnt from. Names, wrappers, templates and ensembles are not part of it, so renaming a judge, rewrapping
its prompt or hiding it in an ensemble changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from fairlead.errors import InputError
from fairlead.exchange import Message, to_json

Side: TypeAlias = Literal["train", "select", "audit"]
Evidence: TypeAlias = Literal[True, False, "related"]

NEW_CASES = "same rule, new cases"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One irreducible scorer.

    kind    rule | verifier | gold | critic | reward | classifier | human | rows (what a trained judge learnt from)
    model   lineage of the model behind it ("" for code)
    text    what it reads by: a principle, a pattern, a measure id; compared after `normalise`
    code    hash of the code or of the rows it was trained on, where that is what makes it
    exact   truth by rule (verifiers, world facts): may serve several sides, on disjoint cases
    """

    kind: str
    model: str = ""
    text: str = ""
    code: str = ""
    exact: bool = False

    @property
    def hash(self) -> str:
        body = json.dumps([self.kind, self.model, normalise(self.text), self.code])
        return hashlib.sha256(body.encode()).hexdigest()[:16]


Lineage: TypeAlias = frozenset[Leaf]


def normalise(text: str) -> str:
    """Case, spacing, punctuation, compatibility forms and invisible characters do not make another judge."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join(re.findall(r"\w+", visible.casefold()))


def leaf(kind: str, *, model: str = "", text: str = "", code: str = "", exact: bool = False) -> Lineage:
    """The lineage of a judge that is one scorer."""
    return frozenset({Leaf(kind, model, text, code, exact)})


_NAMES = ("annotator", "source", "principle", "meta")


def rows_learnt(rows: Sequence[Any]) -> Lineage:
    """The leaf of a set of training rows (values of `exchange`), beside the leaf of the weights learnt from them.

    Two judges that learnt from the same rows share it, whatever their weights. What was said and how it was labelled
    counts; the order of the rows, and the names of annotators and sources, do not.
    """
    bodies = (json.dumps(_unnamed(to_json(row)), sort_keys=True, ensure_ascii=True) for row in rows)
    hashes = sorted(hashlib.sha256(body.encode()).hexdigest() for body in bodies)
    return leaf("rows", code=hashlib.sha256("".join(hashes).encode()).hexdigest()[:16])


def _unnamed(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in _NAMES}


def merge(lineages: Iterable[Lineage]) -> Lineage:
    """The lineage of an ensemble or a composition: the leaves of all children."""
    return frozenset().union(*lineages)


def lineage_hash(lineage: Lineage) -> str:
    """One short name for a lineage: 16 hex digits over its leaves."""
    return hashlib.sha256("".join(sorted(item.hash for item in lineage)).encode()).hexdigest()[:16]


def case_key(messages: Sequence[Message]) -> str:
    """What a case is, for asking whether it was seen before: a hash of its messages, 16 hex digits."""
    body = json.dumps([to_json(message) for message in messages], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


class OptimisedJudge(InputError, ValueError):
    """Evidence was asked of a judge that a layer optimised, selected on or used as a check."""


@dataclass(slots=True)
class Ledger:
    """Which lineages stood on which side, layer by layer; asked before any number is called evidence.

    `enter` declares the layers in order; `record` is called by every layer for each judge it uses (guard checks stand
    on the train side), `record_cases` for the prompts it learnt from or selected on; `evidence` by every measure for
    its audit judge.
    """

    layers: list[str] = field(default_factory=list)
    used: list[tuple[str, Side, str, Lineage]] = field(default_factory=list)  # layer, side, judge name, lineage
    models: set[str] = field(default_factory=set)  # lineages of the models under test, all layers
    cases: dict[str, tuple[str, Side]] = field(default_factory=dict)  # case key -> the first layer and side that saw it

    def enter(self, layer: str) -> None:
        """Declare that `layer` comes next. A layer that uses no judge must be declared too: the order matters."""
        if layer not in self.layers:
            self.layers.append(layer)

    def record(self, layer: str, side: Side, name: str, lineage: Lineage) -> None:
        self.enter(layer)
        self.used.append((layer, side, name, lineage))

    def record_cases(self, layer: str, side: Side, prompts: Iterable[Sequence[Message]]) -> None:
        """Note the prompts a layer trained or selected on: they are no audit cases from there on."""
        self.enter(layer)
        for messages in prompts:
            self.cases.setdefault(case_key(messages), (layer, side))

    def seen(self, messages: Sequence[Message]) -> bool:
        """Whether these messages stood on the train or select side of any layer of the run.

        Any layer, not only the earlier ones: before and after are compared on the same cases.
        """
        entry = self.cases.get(case_key(messages))
        return entry is not None and entry[1] != "audit"

    def evidence(self, measure: str, name: str, lineage: Lineage, *, layer: str) -> Evidence:
        """True (independent), "related" (same model under another text, or a model auditing itself).

        Raises `OptimisedJudge` where a leaf that is not exact truth stood on the train or select side at `layer` or
        before it. A layer that was never declared counts as the last one: unknown order is no excuse.
        """
        before = self._before(layer)
        hashes = {item.hash for item in lineage}
        for used_layer, side, used_name, used in before:
            shared = sorted((item for item in used if not item.exact and item.hash in hashes), key=lambda i: i.hash)
            if shared:
                verb = "optimised by" if side == "train" else "selected on by"
                raise OptimisedJudge(
                    f"{name} (lineage {shared[0].hash[:4]}…, known there as {used_name}) was {verb} layer "
                    f"{used_layer!r}; measure {measure!r} needs a judge of another lineage (say audit: …)"
                )
        models = {item.model for item in lineage if item.model}
        touched = {item.model for entry in before for item in entry[3] if item.model}
        return "related" if models & (self.models | touched) else True

    def note(self, lineage: Lineage, *, layer: str) -> str:
        """`same rule, new cases` where exact truth that a layer also used is the evidence; "" otherwise."""
        hashes = {item.hash for item in lineage if item.exact}
        used = {item.hash for entry in self._before(layer) for item in entry[3]}
        return NEW_CASES if hashes & used else ""

    def _before(self, layer: str) -> list[tuple[str, Side, str, Lineage]]:
        upto = self.layers[: self.layers.index(layer) + 1] if layer in self.layers else self.layers
        return [entry for entry in self.used if entry[0] in upto and entry[1] != "audit"]

"""What every stage of a run shares, and what a stage leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message
from fairlead.judges.lineage import Leaf, Ledger, Lineage, Side
from fairlead.judges.protocol import Judge
from fairlead.models import Budget, Model, open_model
from fairlead.stack.cache import Cache
from fairlead.stack.folder import Log
from fairlead.stack.identity import numerics
from fairlead.stack.lazy import LazyModel
from fairlead.stack.plan import DPOLayer, Plan
from fairlead.stack.plan_data import GIVEN
from fairlead.stack.prompts import SOURCE, TrainingPrompts, training_prompts
from fairlead.stack.remember import Remembering
from fairlead.stack.source import Source, locate, torch_installed
from fairlead.stack.voice import Voice

if TYPE_CHECKING:
    from fairlead.feedback.formats import PreferenceSet, RowSet
    from fairlead.feedback.rankings import Comparison
    from fairlead.models.remote import RemoteModel

Used = tuple[tuple[Side, str, Lineage], ...]  # side, printed name, lineage of each judge a stage used


@dataclass(frozen=True, slots=True)
class Built:
    """What a stage made: a model (not opened until somebody asks it something), and what there is to tell of it.

    identity   hash of everything that determines how it answers: cache keys of later stages hold it
    folder     the weights it stands on; None for a remote model
    plain      whether it is those weights and nothing else: a prompt or a guard around them cannot be trained
    used       judges that stood on the train or select side
    prompts    what it was trained on, for the rule that no audit case was seen in training
    entry      where its weights lie in the cache, and `data` what it learnt from; None where it made none
    seconds    time to make it, None where it was cached
    settings   the stage's configuration with nothing left open, for the lock file
    facts      counts and settings for `layers/NAME/layer.json`
    preferences  (trained on, held out) where it learnt from a file of preferences
    labels     how many labels it learnt from, by whose they are
    """

    name: str
    kind: str
    identity: str
    folder: Path | None
    plain: bool
    model: Model
    summary: str = ""
    used: Used = ()
    prompts: tuple[tuple[Message, ...], ...] = ()
    entry: Path | None = None
    data: Path | None = None
    seconds: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    preferences: tuple[PreferenceSet, PreferenceSet] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rewarded:
    """What a reward stage made: a judge's folder, for the stages after it, and what there is to tell of it.

    lineage    of the judge: its weights, its rows, whoever labelled them
    start      the layer from whose weights it was trained
    accuracy   on comparisons kept from training: rows of `facts["held_out"]`
    and the fields of `Built`
    """

    name: str
    kind: str
    identity: str
    folder: Path
    lineage: Lineage
    start: str
    summary: str
    used: Used
    entry: Path
    data: Path
    seconds: float | None
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Context:
    """The settings and services of one run. Models are opened once and kept for as long as the run."""

    plan: Plan
    constitution: Constitution
    source: Source
    cache: Cache
    voice: Voice
    threads: int
    oracle: bool = False
    skip_bad_rows: bool = False
    budget: Budget | None = None
    prices: Mapping[str, Any] | None = None
    audit: Mapping[str, Judge] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    log: Log = field(default_factory=Log)
    models: dict[str, LazyModel] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    built: dict[str, Built] = field(default_factory=dict)  # layers so far, by name
    rewards: dict[str, Rewarded] = field(default_factory=dict)  # reward stages so far, by name
    simulated: list[str] = field(default_factory=list)  # labels that nobody gave: said aloud, and in the report
    _files: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def world(self) -> bool:
        """Whether the model under test lives in the apprentice's world."""
        return self.source.kind == "apprentice"

    @cached_property
    def numerics(self) -> dict[str, Any]:
        return numerics(self.threads, device())

    @cached_property
    def prompts(self) -> TrainingPrompts:
        """The training prompts of the run, drawn once."""
        own = self.plan.prompts.from_ == SOURCE and not self.world and self.plan.preferences is not None
        given = tuple(row.messages for row in self.compared_rows) if own else ()
        prompts = training_prompts(
            self.plan.prompts,
            self.constitution,
            world=self.world,
            seed=self.seed,
            preference_prompts=given,
            skip_bad_rows=self.skip_bad_rows,
        )
        self.voice.say(prompts.said)
        return prompts

    @property
    def preferences_are_simulated(self) -> bool:
        """Whether what the plan would have been given is made by a rater of the apprentice's world."""
        return self.plan.preferences is None and self.world

    @cached_property
    def preferences_path(self) -> str:
        """The file of preference data given with the plan; in the apprentice's world, where none was, simulated."""
        if self.preferences_are_simulated:
            from fairlead.stack.simulated import simulated_file

            return simulated_file(self)
        if self.plan.preferences is None:
            raise InputError(
                "this stack learns from preference data: give a file with --preferences, or `preferences:`"
            )
        return self.plan.preferences

    @property
    def preferences(self) -> PreferenceSet:
        """The preference data given with the plan, read once and said aloud."""
        return self.read_preferences(self.preferences_path)

    @property
    def compared_rows(self) -> Sequence[Comparison]:
        """The rows of that file: pairs where a layer learns from pairs, else whatever a reward learns from."""
        pairs = any(isinstance(layer, DPOLayer) for layer in self.plan.layers)
        return self.preferences.rows if pairs else self.read_comparisons(self.preferences_path).rows

    def simulates(self, what: str) -> None:
        """Say once that labels are made up by a simulation, and keep it for the report."""
        if what not in self.simulated:
            self.simulated.append(what)
            self.voice.say(f"simulated: {what}")

    def read_preferences(self, path: str) -> PreferenceSet:
        """Preference data by path, read once and said aloud."""
        from fairlead.feedback.formats import read_preferences

        if (key := ("preferences", path)) not in self._files:
            self._files[key] = self._said(read_preferences(Path(path), skip_bad_rows=self.skip_bad_rows))
        return cast("PreferenceSet", self._files[key])

    def read_comparisons(self, path: str) -> RowSet[Comparison]:
        """Pairs or rankings by path, read once and said aloud."""
        from fairlead.feedback.formats import read_comparisons

        if (key := ("comparisons", path)) not in self._files:
            self._files[key] = self._said(read_comparisons(Path(path), skip_bad_rows=self.skip_bad_rows))
        return cast("RowSet[Comparison]", self._files[key])

    def read_tasks(self, path: str) -> RowSet[Exchange]:
        """Prompts with what judges read of them by path, read once and said aloud."""
        from fairlead.feedback.formats import read_tasks

        if (key := ("tasks", path)) not in self._files:
            self._files[key] = self._said(read_tasks(Path(path), skip_bad_rows=self.skip_bad_rows))
        return cast("RowSet[Exchange]", self._files[key])

    def read_demonstrations(self, path: str) -> RowSet[Exchange]:
        """Demonstrations by path (`given`: the plan's preferences, their chosen side), read once and said aloud."""
        from fairlead.feedback.formats import read_demonstrations

        path = self.preferences_path if path == GIVEN else path
        if (key := ("demonstrations", path)) not in self._files:
            self._files[key] = self._said(read_demonstrations(Path(path), skip_bad_rows=self.skip_bad_rows))
        return cast("RowSet[Exchange]", self._files[key])

    def _said(self, rows: Any) -> Any:
        for line in rows.report.lines():
            self.voice.say(line)
        return rows

    def base(self) -> Built:
        """The model as it comes in."""
        return Built("base", "base", self.source.identity, self.source.folder, True, self.model(self.source))

    def locate(self, spec: str) -> Source:
        if spec not in self.sources:
            self.sources[spec] = locate(spec)
        return self.sources[spec]

    def model(self, source: Source) -> LazyModel:
        """The model of a source; one for the whole run."""

        def opener() -> Model:
            if source.kind == "remote":
                opened = cast(
                    "RemoteModel",
                    open_model(
                        source.spec, budget=self.budget, prices=self.prices, records=self.cache.root / "capabilities"
                    ),
                )
                file = self.cache.root / "replies" / f"{source.identity[:32]}.jsonl"
                return cast("Model", Remembering(opened, file, fresh=self.cache.fresh, say=self.voice.say))
            self.settle_numerics()
            return open_model(_spec(source))

        made = LazyModel(source.spec, source.identity, opener, self.cache, remote=source.kind == "remote")
        return self.models.setdefault(source.identity, made)

    def trained(self, name: str, identity: str, folder: Path) -> LazyModel:
        """The model of a folder that a stage of this run wrote."""

        def opener() -> Model:
            from fairlead.models.local import open_local

            self.settle_numerics()
            return open_local(str(folder.resolve()), name=name)

        return self.models.setdefault(identity, LazyModel(name, identity, opener, self.cache))

    def critic(self, spec: str, below: Built) -> tuple[str, Model]:
        """(identity, model) of what a stage names as critic: `self`, `base`, or a model by name."""
        if spec == "self":
            return below.identity, below.model
        source = self.source if spec == "base" else self.locate(spec)
        return source.identity, self.model(source)

    def settle_numerics(self) -> None:
        """Fix what the bits of a local result depend on besides its inputs. Called before torch computes anything."""
        if torch_installed():
            settle_torch(self.threads)


def settle_torch(threads: int) -> None:
    """The number of threads that share a sum, and no progress bars but our own."""
    import torch
    import transformers

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _spec(source: Source) -> str:
    if source.spec == "apprentice" or source.folder is None:
        return source.spec
    return str(source.folder.resolve())


def device() -> str:
    """Where local models run, without importing torch."""
    from fairlead.stack.identity import version_of

    version = version_of("torch")
    if not version:
        return "numpy"
    if version.endswith("+cpu"):
        return "cpu"
    return "cuda" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"


def used_to_json(used: Used) -> list[dict[str, Any]]:
    """Lineages in full: a cached stage must testify to what it used as the first run did."""
    return [
        {"side": side, "name": name, "leaves": sorted((dataclasses.asdict(leaf) for leaf in lineage), key=str)}
        for side, name, lineage in used
    ]


def used_from_json(rows: Sequence[Mapping[str, Any]]) -> Used:
    return tuple((row["side"], row["name"], frozenset(Leaf(**leaf) for leaf in row["leaves"])) for row in rows)

"""Reinforcement learning alone, outside a stack: what `fairlead train grpo`, `ppo` and their kin do."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairlead.constitution import usual
from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.feedback.formats import read_demonstrations, read_tasks
from fairlead.judges.code import BadTests, case_tests
from fairlead.judges.lineage import lineage_hash
from fairlead.judges.named import Named, Reader, open_judge, parsed
from fairlead.judges.protocol import Judge
from fairlead.judges.verifiers import references
from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig
from fairlead.methods.loggers import Logger
from fairlead.models import is_remote
from fairlead.stack.alone import followed, left_in, loggers_of, make_way, opened_to_train, settled, trainable
from fairlead.stack.read import validated_settings
from fairlead.stack.reinforce_told import means_of, telling
from fairlead.stack.samplers import USER, sampler_of
from fairlead.stack.source import Source
from fairlead.stack.stages.train import STATES_EVERY, USUAL_POLICY_LR
from fairlead.stack.voice import Voice
from fairlead.stack.within import NOTHING, Within

if TYPE_CHECKING:
    from fairlead.judges.reward_model import RewardModel
    from fairlead.methods.loop import Run, StepRecord
    from fairlead.methods.policy import Reinforced
    from fairlead.methods.rewards import Objective
    from fairlead.methods.rollouts import Sampler

WORLD = "world:"
PROMPTS = 500
"""Prompts drawn of the apprentice's world where no number is given."""
COMPARED = ("exact", "mentions", "numeric")  # judges that have nothing to say without a reference


@dataclass(frozen=True, slots=True)
class PolicyOrder:
    """What is to be trained, as it was asked for.

    prompts          a file of tasks, or world:MEASURE, of which `n` are drawn (500 where n is None)
    rewards, costs   `[NAME=][WEIGHT*]JUDGE` each (judges/named.py)
    rollouts         local, or vllm/NAME@URL[,URL] (stack/samplers.py)
    weights          DIR[=PATH]: a folder that the servers of `rollouts` see too, by PATH where theirs is another
    critic           a reward model's folder that the value function starts from
    pretraining      a file of demonstrations that are imitated beside
    oracle           whether the truth of the apprentice's world may be a judge
    turns            of a reply at most; between them `partners` speak, and `calls` is how the policy writes one
    within           what `reader` and `partners` at a provider may cost together
    """

    name: str
    spec: str
    prompts: str
    rewards: Sequence[str]
    costs: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    rollouts: str = "local"
    critic: Path | None = None
    pretraining: Path | None = None
    oracle: bool = False
    seed: int = 0
    skip_bad_rows: bool = False
    threads: int | None = None
    constitution: str = ""
    reader: str = ""
    weights: str = ""
    turns: int = 1
    partners: Sequence[str] = ()
    calls: str = "none"
    within: Within = NOTHING

    @property
    def critics(self) -> Reader:
        """Who reads principles as a reward: the model as it starts, by its own constitution, where nothing is said."""
        usual_one = usual(world=self.spec == "apprentice")
        opened = partial(self.within.open, option="--reader ")
        return Reader(self.constitution or usual_one, self.reader or self.spec, opened)

    @property
    def asked(self) -> list[str]:
        """Models that are asked while it trains."""
        users = [spec.removeprefix(USER) for spec in self.partners if spec.startswith(USER)]
        return [self.reader, *users] if self.reader else users


@dataclass(frozen=True, slots=True)
class PolicyJob:
    """A training with nothing left open. `written` are the objectives' judges as they were asked for, in order."""

    order: PolicyOrder
    config: PolicyConfig
    model: Any
    prompts: Sequence[Exchange]
    places: Sequence[str]
    objectives: Sequence[Objective]
    written: Sequence[str]
    sampler: Sampler | None
    critic: RewardModel | None
    pretraining: Sequence[Exchange]


def reinforce_stage(order: PolicyOrder, out: Path, voice: Voice, log: Sequence[str] = ()) -> dict[str, Any]:
    """Train and write a model folder, as `single.train_stage`; returns what `train.json` in it says.

    A run that collapsed leaves its last good weights, and says under `stopped` why.
    """
    loggers = loggers_of(log)
    make_way(out)
    job = open_policy_job(order, voice)

    def make(unfinished: Path) -> tuple[Reinforced, dict[str, Any]]:
        made = train_policy_job(job, voice, unfinished, loggers)
        return made, report_of(job, made)

    return left_in(out, make)


def train_policy_job(
    job: PolicyJob, voice: Voice, checkpoint: Path | None = None, loggers: Sequence[Logger] = ()
) -> Reinforced:
    """The loop of methods/policy.py, with its numbers said now and then."""
    from fairlead.methods.loop import Run

    with followed(voice, job.order.name) as advance:
        every = STATES_EVERY * job.config.updates
        return run_policy_job(
            job, voice, Run(checkpoint=checkpoint, every=every, progress=advance, loggers=loggers)
        )  # fmt: skip


def run_policy_job(job: PolicyJob, voice: Voice, run: Run, name: str = "") -> Reinforced:
    """The same with states, progress and loggers as `run` says; `name` stands before each number that is said."""
    from fairlead.methods.policy import train_policy

    tell, advance = telling(voice, job.config, name), run.progress

    def progress(record: StepRecord) -> None:
        tell(record)
        if advance is not None:
            advance(record)

    return train_policy(
        job.model,
        job.prompts,
        job.objectives,
        job.config,
        dataclasses.replace(run, progress=progress),
        sampler=job.sampler,
        critic=job.critic,
        pretraining=job.pretraining,
        places=job.places,
    )


# ------------------------------------------------------------------------------------------- what is opened


def open_policy_job(order: PolicyOrder, voice: Voice) -> PolicyJob:
    """Settings, prompts, judges and models; the cheap checks come first."""
    config = validated_settings(PolicyConfig, {**ALGORITHMS[order.name].defaults, **order.settings})
    _belonging(order, config)
    roles: Sequence[tuple[Sequence[str], Literal["reward", "cost"]]] = (order.rewards, "reward"), (order.costs, "cost")
    written = [(parsed(spec), role) for specs, role in roles for spec in specs]
    twice = [name for name, count in Counter(one.name for one, _ in written).items() if count > 1]
    if twice:
        raise InputError(f"two judges are called {twice[0]!r}: name them apart, as in NAME={twice[0]}")
    source = trainable(order.spec)
    code = {
        one.judge: open_judge(one.judge, oracle=order.oracle, reader=order.critics)
        for one, _ in written
        if not _is_folder(one)
    }
    prompts, places = _prompts(order, source, voice)
    judgeable([one.judge for one, _ in written], prompts, voice)
    pretraining, places_of_pretraining = _pretraining(order, voice)
    model = opened_to_train(source, order.threads)
    judges = code | {one.judge: open_judge(one.judge) for one, _ in written if _is_folder(one)}
    config = settled(config, order.seed, USUAL_POLICY_LR, source)
    if pretraining:
        from fairlead.methods.rows import exchange_rows

        asked = exchange_rows(model, pretraining, too_long=config.too_long, places=places_of_pretraining)
        left_out = {"too long, left out": asked.skipped_too_long, "cut to fit the context": asked.cut}
        for what, count in left_out.items():
            if count:
                voice.say(f"{order.pretraining}: {count:,} rows {what}")
    from fairlead.methods.rewards import Objective, checked

    objectives = checked([Objective(judges[one.judge], one.weight, one.name, role) for one, role in written])
    return PolicyJob(
        order=order,
        config=config,
        model=model,
        prompts=prompts,
        places=places,
        objectives=objectives,
        written=[one.judge for one, _ in written],
        sampler=sampler_of(
            model,
            order.rollouts,
            order.weights,
            order.partners,
            turns=order.turns,
            calls=order.calls,
            seed=order.seed,
            still=config.asynchronous,
            within=order.within,
        ),
        critic=critic_of(order.critic, judges, model, prompts, config) if order.critic is not None else None,
        pretraining=pretraining,
    )


def _belonging(order: PolicyOrder, config: PolicyConfig) -> None:
    """Options that say nothing without each other."""
    if not order.rewards:
        raise InputError("--reward: what is to be raised? Give at least one")
    if bool(order.costs) != (config.cost_budget is not None):
        raise InputError(
            "--cost: give the budget that it is held under with --cost-budget" if order.costs
            else f"--cost-budget {config.cost_budget:g}: give what is held under it with --cost"
        )  # fmt: skip
    if (order.pretraining is not None) != bool(config.ptx):
        raise InputError(
            "--pretraining: give its weight in the loss with --ptx" if order.pretraining is not None
            else "--ptx: give the rows that are imitated with --pretraining"
        )  # fmt: skip
    if order.within != NOTHING and not any(map(is_remote, order.asked)):
        option = "--prices" if order.within.budget is None else "--budget"
        raise InputError(f"{option}: nobody at a provider is asked here (--reader, --partner user:MODEL)")
    if order.critic is not None and config.advantage != "gae":
        raise InputError(
            f"--critic: {order.name} has no value function (advantage: {config.advantage}); ppo and safe-ppo have one"
        )


def _is_folder(one: Named) -> bool:
    return Path(one.judge).expanduser().is_dir()


def _prompts(order: PolicyOrder, source: Source, voice: Voice) -> tuple[Sequence[Exchange], Sequence[str]]:
    """What is asked, and where each prompt stands."""
    if not order.prompts.startswith(WORLD):
        if order.n is not None:
            raise InputError(f"--n: draws from the apprentice's world; of {order.prompts} all rows are taken")
        rows = read_tasks(order.prompts, skip_bad_rows=order.skip_bad_rows)
        for line in rows.report.lines():
            voice.say(line)
        return rows.rows, rows.places
    if source.kind != "apprentice":
        raise InputError(
            f"--prompts {order.prompts}: the world is the apprentice's, and {order.spec} has not lived in it; give a "
            "file of prompts"
        )
    from fairlead.apprentice import cases

    measure, n = order.prompts.removeprefix(WORLD), PROMPTS if order.n is None else order.n
    try:
        drawn = (
            cases.prompts(None, "train", n, order.seed) if measure == "all"
            else cases.cases(measure, "train", n, order.seed)
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"--prompts {order.prompts}: {error} (or all); --n says how many are drawn") from error
    voice.say(f"{n:,} prompts of the apprentice's world ({measure}, train split)")
    return (
        [Exchange(case.messages, (), dict(case.meta)) for case in drawn],
        [f"{order.prompts} {i}" for i in range(n)],
    )


def judgeable(judges: Sequence[str], prompts: Sequence[Exchange], voice: Voice) -> None:
    """Whether the prompts bring what the judges read: refused where none does, said where some do not."""
    comparing = [judge for judge in judges if judge.partition(":")[0] in COMPARED]
    without = sum(not references(prompt) for prompt in prompts)
    if comparing and without == len(prompts):
        raise InputError(
            f"{comparing[0]}: compares a reply with the right answer, and not one of {len(prompts):,} prompts brings "
            "one (reference, answer or references)"
        )
    if comparing and without:
        voice.say(
            f"{without:,} of {len(prompts):,} prompts bring no right answer: there {' and '.join(comparing)} will be "
            "missing"
        )
    running = [judge for judge in judges if judge.partition(":")[0] == "code"]
    problems = [problem for prompt in prompts if (problem := _untested(prompt))] if running else []
    if problems and len(problems) == len(prompts):
        raise InputError(
            f"{running[0]}: runs a reply's code against tests, and not one of {len(prompts):,} prompts brings any that "
            f"can judge it; of the first: {problems[0]}"
        )
    if problems:
        voice.say(
            f"{len(problems):,} of {len(prompts):,} prompts bring no tests that can judge code: there "
            f"{' and '.join(running)} will be missing; of the first: {problems[0]}"
        )
    gold = next((judge for judge in judges if judge.startswith("gold:")), None)
    if gold is not None and not all("kind" in prompt.meta for prompt in prompts):
        raise InputError(f"{gold}: reads what the apprentice's world says of a prompt; take --prompts world:MEASURE")


def _untested(prompt: Exchange) -> str:
    """Why no code can be judged by the prompt's tests, "" where it can."""
    try:
        case_tests(prompt.meta)
    except BadTests as error:
        return str(error)
    return ""


def _pretraining(order: PolicyOrder, voice: Voice) -> tuple[Sequence[Exchange], Sequence[str]]:
    if order.pretraining is None:
        return (), ()
    rows = read_demonstrations(order.pretraining, skip_bad_rows=order.skip_bad_rows)
    for line in rows.report.lines():
        voice.say(line)
    return rows.rows, rows.places


def critic_of(
    folder: Path, judges: Mapping[str, Judge], model: Any, prompts: Sequence[Exchange], config: PolicyConfig
) -> RewardModel:
    """The reward model that the value function starts from. It reads the policy's own tokens, so they must be one's."""
    from fairlead.judges.reward_ensemble import open_reward_folder
    from fairlead.judges.reward_model import RewardModel
    from fairlead.models.render import render_prompt

    where = folder.expanduser()
    if not where.is_dir():
        raise InputError(f"--critic {folder}: no such folder; it is a reward model's, as `fairlead train reward` makes")
    same = (judge for name, judge in judges.items() if Path(name).expanduser().resolve() == where.resolve())
    critic = next(same, None) or open_reward_folder(where, name=str(folder))
    if not isinstance(critic, RewardModel):
        raise InputError(f"--critic {folder}: an ensemble; a value function starts from one reward model (…/member-0)")
    own: Any = critic.model
    if own.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(
            f"--critic {folder}: reads other tokens than {model.name} writes; its reward model must come from a model "
            "with the same tokenizer"
        )
    longest = max(len(render_prompt(model.tokenizer, prompt.messages)) for prompt in prompts) + config.max_tokens
    if own.context is not None and longest > own.context and (model.context is None or own.context < model.context):
        raise InputError(
            f"--critic {folder}: its context is {own.context:,} tokens, and a prompt with its reply may take "
            f"{longest:,}; lower --max-tokens, or shorten the prompts"
        )
    return critic


# -------------------------------------------------------------------------------------------- what is said


def report_of(job: PolicyJob, made: Reinforced) -> dict[str, Any]:
    """What `train.json` says. `start` and `metrics` are means over the first and the last tenth of the steps,
    `closing` of the weights that are left."""
    order, told = job.order, [record.told for record in made.steps]
    tenth = max(1, len(told) // 10)
    return {
        "method": order.name,
        "model": order.spec,
        "prompts": order.prompts,
        "asked": made.prompts,
        "skipped_too_long": len(job.prompts) - made.prompts,
        "rewards": [_about(one, judge) for one, judge in zip(job.objectives, job.written, strict=True)],
        "rollouts": order.rollouts,
        "turns": order.turns,
        "partners": list(order.partners),
        "critic": None if order.critic is None else str(order.critic),
        "pretraining": None if order.pretraining is None else str(order.pretraining),
        "config": job.config.model_dump(mode="json"),
        "steps": len(told),
        "updates": len(made.records),
        "replies": int(sum(one["replies"] for one in told)),
        "averaged": min(tenth, len(told)),
        "start": means_of(told[:tenth]),
        "metrics": means_of(told[-tenth:]),
        "closing": dict(made.closing),
        "missing": made.missing,
        "spent": order.within.spent,
        "stopped": made.stopped,
    }


def _about(one: Objective, written: str) -> dict[str, Any]:
    lineage = one.judge.lineage
    return {
        "name": one.column,
        "role": one.role,
        "weight": one.weight,
        "judge": written,
        "lineage": lineage_hash(lineage),
        "leaves": [dataclasses.asdict(leaf) for leaf in sorted(lineage, key=lambda leaf: leaf.hash)],
    }

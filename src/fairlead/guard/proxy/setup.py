"""Everything a worker goes by, read from files at once: whole or not at all, so that a reload can put it in place.

A `Setup` is made of the settings, the tenants, and for each constitution its checks. A file that is broken raises
`InputError` and the setup in use stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fairlead.constitution.load import load
from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.guard.asker import Asker
from fairlead.guard.audit.entry import policy_digest
from fairlead.guard.checked import Checked, checked
from fairlead.guard.checks.personal import Presidio, open_presidio
from fairlead.guard.compile import policies_from
from fairlead.guard.plan import DEADLINES, BestOf, Followed, Plan, plan, required
from fairlead.guard.policy import Policy
from fairlead.guard.pool import Pool
from fairlead.guard.proxy.guarding import everything_waits
from fairlead.guard.proxy.purse import purse
from fairlead.guard.proxy.settings import Settings, allowed, read_settings
from fairlead.guard.proxy.tenants import ANYONE, Pace, Tenant, Tenants, read_tenants, tenant_of
from fairlead.guard.proxy.upstream import Server, Upstream, open_server
from fairlead.guard.revise import reviser
from fairlead.guard.vendors import refuse_others, vendors
from fairlead.guard.verdict_cache import VerdictCache
from fairlead.guard.watch import PromptCheck
from fairlead.guard.wire.asked import Allow
from fairlead.judges.protocol import Judge
from fairlead.models import is_remote, open_model, read_prices
from fairlead.models.access import vendor
from fairlead.models.budget import Budget
from fairlead.models.protocol import Model


@dataclass(frozen=True, slots=True)
class Options:
    """Where a setup is read from: what the command line said."""

    constitution: str
    upstream: str | None = None
    key: str | None = None  # environment variable of the upstream's key
    model: str | None = None
    policy: Path | None = None
    tenants: Path | None = None
    audit: Path | None = None
    shadow: bool = False
    workers: int | None = None
    critic: str | None = None
    classifier: Path | None = None
    probe: Path | None = None


@dataclass(frozen=True, slots=True)
class Book:
    """One constitution, ready to be asked.

    plan, whole  how replies are released that are streamed, and that are not
    asker, pool  ask the models among the checks; no asker where there are none
    checked      the checks, and what none of them stands for
    vendors      hosts that the checks send texts to
    """

    constitution: Constitution
    sha256: str
    plan: Plan
    whole: Plan
    asker: Asker | None
    pool: Pool
    checked: Checked
    deadlines: Mapping[int, float] = field(default_factory=lambda: DEADLINES)  # by cost of a check
    on_error: Mapping[int, str] = field(default_factory=dict)  # by cost, where not what the principle says
    vendors: tuple[str, ...] = ()
    policy: str = ""  # digest of what has to pass, by which exchanges name it in the log

    @property
    def policies(self) -> Mapping[str, Policy]:
        return self.plan.policies

    @property
    def prompts(self) -> tuple[PromptCheck, ...]:
        return self.checked.prompts

    @property
    def classifier(self) -> str:
        """Its sha256, "" for none."""
        return self.checked.classifier


@dataclass(slots=True)
class Account:
    """One who asks: a tenant, or anyone where there is no tenant file."""

    name: str
    digest: str
    allow: Allow
    book: Book
    upstream: Upstream
    pace: Pace | None = None
    most: int | None = None
    retention_days: float | None = None
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Setup:
    """What requests go by. Made by `read_setup`, never changed."""

    settings: Settings
    accounts: Mapping[str, Account]  # by digest of the key
    anyone: Account | None
    tenants: Mapping[str, Tenant] = field(default_factory=dict)

    def account(self, key: str) -> Account | None:
        """Whose key this is; without a tenant file anyone's."""
        if self.anyone is not None:
            return self.anyone
        tenant = tenant_of(key, self.tenants)
        return None if tenant is None else self.accounts[tenant.name]

    def all(self) -> Sequence[Account]:
        return [self.anyone] if self.anyone is not None else list(self.accounts.values())


class Keep:
    """What outlives a reload: connections, a model's weights, what was spent, how fast a tenant goes."""

    def __init__(self) -> None:
        self.upstreams: dict[tuple[str, str | None], Server] = {}
        self.budgets: dict[tuple[str, str], Budget] = {}
        self.critics: dict[tuple[str, str, str], Model] = {}
        self.rewards: dict[Path, Judge] = {}
        self.presidio: dict[tuple[str, ...], Presidio] = {}  # by model and kinds of data
        self.paces: dict[tuple[str, float], Pace] = {}
        self.local: Upstream | None = None
        self.pool = Pool()
        self.cache = VerdictCache()


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the files said: constitutions with their bases, by the name they were asked for. It can be kept and sent to
    another process, so that all workers go by the same, and one that is started anew by what was committed and not by
    what the files say since. `classifier` is the sha256 that the classifier's folder has to have; "": whatever it has.
    """

    settings: Settings
    tenants: Tenants | None
    constitutions: Mapping[str, Constitution]
    classifier: str = ""


def read_inputs(options: Options) -> Inputs:
    """Reads the files. Raises `InputError` or `MissingResource` where one is broken."""
    settings = settings_of(options)
    read = None if options.tenants is None else read_tenants(options.tenants)
    names = [options.constitution] if read is None else [t.constitution or options.constitution for t in read.tenants]
    return Inputs(settings, read, {name: load(name) for name in dict.fromkeys(names)})


def read_setup(
    options: Options, keep: Keep, before: Setup | None = None, inputs: Inputs | None = None
) -> Setup:  # fmt: skip
    """Read everything anew, or make it of what was read. Raises `InputError` or `MissingResource`, and changes nothing,
    where anything is wrong."""
    inputs = inputs or read_inputs(options)
    settings, read = inputs.settings, inputs.tenants
    if before is not None:
        _only_what_can_change(before.settings, settings)
    books: dict[tuple[str, str], Book] = {}
    for who in [who for who in keep.critics if is_remote(who[0])]:
        del keep.critics[who]  # opened anew, with the key that is there now

    def account(name: str, digest: str, tenant: Tenant | None) -> Account:
        constitution = (tenant.constitution if tenant else None) or options.constitution
        budget = (tenant.budget if tenant else None) or settings.checks.spend
        probed = None if settings.checks.probe is None else _upstream(tenant, options, settings, keep)
        if (constitution, name if budget else "") not in books:
            made_of, hosted = inputs.constitutions[constitution], getattr(probed, "model", None)
            made_book = _book(made_of, name, budget, settings, keep, hosted)
            made_book = replace(made_book, policy=policy_digest(required(made_book.plan)))
            books[constitution, name if budget else ""] = made_book
        book, upstream = books[constitution, name if budget else ""], _upstream(tenant, options, settings, keep)
        if probed is not None and probed is not keep.local:
            raise InputError(f"{name}: the probe reads the model in this process, and {upstream.shown} answers here")
        refuse_others(book.vendors, book.constitution, constitution, vendor(upstream))
        if inputs.classifier and book.classifier != inputs.classifier:
            raise InputError(
                f"{settings.checks.model}: the classifier there has sha256 {book.classifier[:12]}…, and the one in use "
                f"{inputs.classifier[:12]}…: put that one back, or reload to go by the new one"
            )
        made = Account(name, digest, allowed(settings), book, upstream)
        if tenant is not None:
            made.most, made.retention_days = tenant.in_flight, tenant.retention_days
            if tenant.requests_per_minute is not None:
                rate = (name, float(tenant.requests_per_minute))
                made.pace = keep.paces.setdefault(rate, Pace(rate[1], settings.workers))
        return made

    if read is None:
        return Setup(settings, {}, account(ANYONE, "", None))
    accounts = {t.name: account(t.name, hashlib.sha256(t.keys[0].encode()).hexdigest()[:16], t) for t in read.tenants}
    return Setup(settings, accounts, None, read.by_key())


def settings_of(options: Options) -> Settings:
    """guard.yaml with the options of the command line over it."""
    settings = read_settings(options.policy)
    audit = settings.audit if options.audit is None else settings.audit.model_copy(update={"file": options.audit})
    checks = settings.checks
    if options.critic is not None:
        checks = checks.model_copy(update={"ask": options.critic})
    if options.classifier is not None:
        checks = checks.model_copy(update={"model": options.classifier})
    if options.probe is not None:
        checks = checks.model_copy(update={"probe": options.probe})
    changed = {"audit": audit, "checks": checks, "workers": options.workers or settings.workers}
    if options.shadow:
        changed["shadow"] = True
    return settings.model_copy(update=changed)


def _only_what_can_change(before: Settings, after: Settings) -> None:
    for name in ("limits", "workers", "audit"):
        if getattr(before, name) != getattr(after, name):
            raise InputError(f"{name} cannot change while the proxy runs; undo that, or stop and start it")


def _upstream(tenant: Tenant | None, options: Options, settings: Settings, keep: Keep) -> Upstream:
    if tenant is not None and tenant.upstream is not None:
        where = (tenant.upstream.url, tenant.upstream.key)
    elif options.upstream is not None:
        where = (options.upstream, options.key)
    else:
        if keep.local is None:
            from fairlead.guard.proxy.local import Local

            if options.model is None:
                raise InputError("there is nobody to answer: give --upstream URL or --model MODEL")
            keep.local = Local(open_model(options.model), settings.limits)
        return keep.local
    # the key is read each time, since it may have been rotated
    keep.upstreams[where] = open_server(*where, settings.limits, keep.upstreams.get(where))
    return keep.upstreams[where]


def _book(
    constitution: Constitution,
    name: str,
    budget: str | None,
    settings: Settings,
    keep: Keep,
    hosted: Model | None = None,
) -> Book:
    critic, kinds = _critic(name, budget, settings, keep), settings.checks
    reads = (kinds.presidio_model, *kinds.presidio)
    if kinds.presidio and reads not in keep.presidio:
        keep.presidio[reads] = open_presidio(kinds.presidio, model=kinds.presidio_model)
    found = checked(constitution, critic, kinds, keep.presidio.get(reads), hosted)
    policies = _policies(constitution, settings)
    deadlines = {0: kinds.code.deadline, 1: kinds.classifier.deadline, 2: kinds.critic.deadline}
    made = plan(
        found.replies, policies, deadlines=deadlines, revise=None if critic is None else reviser(critic),
        best=_best(settings, constitution, keep), rounds=settings.rounds, budget=settings.budget, dear=kinds.dear,
        opaque=settings.opaque, unknown=settings.unknown, top_logprobs=settings.top_logprobs == "pass",
        shadow=settings.shadow is True, sha256=constitution.sha256, classifier=found.classifier,
    )  # fmt: skip
    made = replace(made, followed=tuple(_as_set(one, settings) for one in made.followed))
    asks = bool(made.models) or made.revise is not None or made.best is not None
    return Book(
        constitution, constitution.sha256, made, everything_waits(made),
        Asker(made, keep.pool, keep.cache) if asks else None, keep.pool, found,
        deadlines, kinds.on_error, vendors(found.replies, critic),
    )  # fmt: skip


def _as_set(one: Followed, settings: Settings) -> Followed:
    """A check with what the settings say of its kind when it fails."""
    kinds = settings.checks
    on_error = (kinds.code, kinds.classifier, kinds.critic)[min(one.cost, 2)].on_error
    return one if on_error is None else replace(one, policy=replace(one.policy, on_error=on_error))


def _best(settings: Settings, constitution: Constitution, keep: Keep) -> BestOf | None:
    best = settings.best
    if best is None:
        return None
    if best.principle and best.principle not in constitution:
        known = ", ".join(constitution.ids)
        raise InputError(f"best names the principle {best.principle!r}, which is not there; there are: {known}")
    if best.reward not in keep.rewards:
        from fairlead.judges.reward_ensemble import open_reward_folder  # torch, for those who ask for this

        keep.rewards[best.reward] = open_reward_folder(best.reward)
    shadow = settings.shadow
    return BestOf(
        keep.rewards[best.reward], best.n, best.threshold, best.principle, best.deadline,
        shadow=best.principle in shadow if isinstance(shadow, tuple) else shadow,
    )  # fmt: skip


def _critic(name: str, budget: str | None, settings: Settings, keep: Keep) -> Model | None:
    spec = settings.checks.ask
    if spec is None:
        return None
    who = (spec, name if budget else "", budget or "")
    if who not in keep.critics:
        if budget is None:
            keep.critics[who] = open_model(spec)
        else:
            prices = None if settings.checks.prices is None else read_prices(settings.checks.prices)
            if not is_remote(spec):
                raise InputError(
                    f"{name}: a budget of {budget} for the critic {spec}, which runs in this process and costs "
                    "nothing; leave it out, and bound the work with `requests_per_minute` and `checks: {dear: N}`"
                )
            money = keep.budgets.setdefault((name, budget), purse(budget, name, settings.audit.file))
            keep.critics[who] = open_model(spec, budget=money, prices=prices)
    return keep.critics[who]


def _policies(constitution: Constitution, settings: Settings) -> dict[str, Policy]:
    """What the constitution says, with the settings over it."""
    names = settings.shadow if isinstance(settings.shadow, tuple) else constitution.ids if settings.shadow else ()
    for id in names:
        if id not in constitution:
            known = ", ".join(constitution.ids)
            raise InputError(f"shadow names {id!r}, which is no principle of {constitution.name}; there are: {known}")
    return {id: replace(policy, shadow=id in names) for id, policy in policies_from(constitution).items()}

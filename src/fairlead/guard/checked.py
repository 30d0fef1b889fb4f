"""The checks that a constitution and the settings ask for: of replies, and of what is asked. A proxy goes by them, and
so does `fairlead guard check`, so that the two cannot say different things. Needs nothing of a server.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError, MissingResource
from fairlead.guard.checks.personal import Presidio
from fairlead.guard.checks.rules import by_re2
from fairlead.guard.classifier.check import ClassifierCheck, classifier_checks
from fairlead.guard.classifier.model import load as load_classifier
from fairlead.guard.classifier.order_score import order_score
from fairlead.guard.compile import order_check, proxy_checks, unchecked
from fairlead.guard.critic_prompt import prompt_critics
from fairlead.guard.decision import Check
from fairlead.guard.plan import Plan
from fairlead.guard.prompts import prompt_checks, unchecked_prompts
from fairlead.guard.settings import Checks
from fairlead.guard.watch import PromptCheck
from fairlead.models.protocol import Model


@dataclass(frozen=True, slots=True)
class Checked:
    """The checks of one constitution.

    replies, prompts  over what a model says, and over what it is asked
    unread            ids of principles about replies that no check of replies stands for as a whole
    unasked           ids of principles about what is asked that no check of what is asked stands for
    partly            of either, the checks of replies that see a part of what they say
    classifier        sha256 of the trained classifier among them, "" for none
    """

    replies: tuple[Check, ...]
    prompts: tuple[PromptCheck, ...]
    unread: tuple[str, ...]
    unasked: tuple[str, ...]
    partly: dict[str, tuple[str, ...]]
    classifier: str = ""

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Ids of guarded principles that none of them stands for as a whole."""
        return tuple(dict.fromkeys((*self.unread, *self.unasked)))

    @property
    def unseen(self) -> tuple[str, ...]:
        """Of these, those that nothing here sees any part of."""
        return tuple(id for id in self.unchecked if id not in self.partly)


def checked(
    constitution: Constitution,
    critic: Model | None,
    settings: Checks,
    presidio: Presidio | None = None,
    hosted: Model | None = None,
) -> Checked:
    """The checks as they are asked for. `presidio` is the reader that `settings.presidio` asks for; opening it takes
    seconds, so whoever reads several constitutions opens it once. `hosted` is the model in this process that answers,
    which `settings.probe` reads.

    Raises InputError for settings that do not fit the constitution, MissingResource for what is not installed.
    """
    if settings.rules and not by_re2():
        raise MissingResource(
            "checks.rules need google-re2, by which no pattern takes longer than the text is long; it is not "
            "installed: pip install 'fairlead[guard]'"
        )
    replies = proxy_checks(
        constitution, critic, hosts=settings.hosts, unknown_hosts=settings.unknown_hosts,
        thresholds=settings.thresholds, rules=settings.rules, presidio=presidio,
    )  # fmt: skip
    classifier = None if settings.model is None else load_classifier(settings.model)
    if classifier is not None:
        try:
            cascade = settings.cascade and critic is not None
            replies = (*replies, *classifier_checks(constitution, classifier, cascade=cascade))
        except ValueError as problem:
            raise InputError(f"{settings.model}: {problem}") from None
    if settings.probe is not None:
        if hosted is None:
            raise InputError(
                f"{settings.probe}: a probe reads the hidden states of a model in this process; serve one with --model"
            )
        from fairlead.guard.classifier.probe import load_probes
        from fairlead.guard.classifier.probe_check import probe_checks

        probes = load_probes(settings.probe, model=hosted.lineage)
        replies = (*replies, *probe_checks(constitution, probes, hosted))
    prompts = prompt_checks(replies, constitution)
    score = None if classifier is None else order_score(classifier)
    if score is None and not isinstance(settings.orders, bool):
        has = "there is none" if classifier is None else f"{settings.model} has no head for orders"
        raise InputError(f"checks.orders is {settings.orders:g}, a bound for the classifier's head, and {has}")
    if score is not None and settings.orders is not False:
        orders = order_check(constitution, score, score.threshold if settings.orders is True else settings.orders)
        prompts = prompts if orders is None else (*prompts, orders)
    if settings.prompts:
        prompts = (*prompts, *prompt_critics(constitution, critic, thresholds=settings.thresholds))
    of_replies = {p.id for p in constitution.principles if p.guard is not None and set(p.guard.at) - {"prompt"}}
    unread = tuple(id for id in unchecked(constitution, replies) if id in of_replies)
    unasked = unchecked_prompts(prompts, constitution)
    partly = {id: tuple(check.name for check in replies if check.principle == id) for id in (*unread, *unasked)}
    return Checked(
        replies, prompts, unread, unasked, {id: names for id, names in partly.items() if names},
        "" if classifier is None else classifier.sha256,
    )  # fmt: skip


def on_doubt(made: Plan) -> dict[str, str]:
    """By principle, which critics are not asked about every reply, and where the doubt lies on which they are."""
    asleep = {one.principle for one in made.followed if one.asleep}
    lines = {}
    for one in made.followed:
        if one.principle in asleep and isinstance(one.check, ClassifierCheck):
            low, high = one.check.doubt
            where = f"P(broken) from {low:.3f} to below {high:.3f}"
            lines[one.principle] = (
                f"{one.principle}. The critic is asked about a reply where the classifier is in doubt ({where}), and "
                f"not else: {one.check.seen:.0%} of what broke it in validation lay there or above; "
                "checks: {cascade: false} asks it about every reply"
            )
    return lines

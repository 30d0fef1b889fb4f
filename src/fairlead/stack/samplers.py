"""What draws the replies that `fairlead train grpo` and its kin learn from: here or by vLLM, in one turn or several.

Between the turns a partner speaks: a model that plays the user, or what a Python file of the user's defines.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.errors import InputError, MissingResource
from fairlead.stack.within import NOTHING, Within

if TYPE_CHECKING:
    from fairlead.exchange import Exchange, Message
    from fairlead.methods.partners import Partner
    from fairlead.methods.rollouts import Sampler

USER = "user:"


def sampler_of(
    model: Any,
    rollouts: str,
    weights: str,
    partners: Sequence[str],
    *,
    turns: int,
    calls: str,
    seed: int,
    still: bool,
    within: Within = NOTHING,
) -> Sampler | None:
    """The sampler that the options mean; None for the loop's own decoder.

    partners   user:MODEL, or FILE.py:NAME, a dictionary of functions by the names of tools or a `Partner`; the first
               speaks that has something to say
    calls      how the policy writes a call (`methods.partners.CALLS`), or none
    still      it draws while the weights move
    within     what models at a provider among `partners` may cost
    Raises InputError naming the option that does not fit.
    """
    from fairlead.methods.episodes import Episodes
    from fairlead.methods.partners import CALLS
    from fairlead.methods.rollouts import LocalSampler

    drawing = _drawing(rollouts, weights, model.tokenizer)
    if turns == 1:
        given = "--partner" if partners else "--calls" if calls != "none" else ""
        if given:
            raise InputError(f"{given}: a reply of one turn has nobody to answer it; give --turns 2 or more")
        return drawing
    if not partners:
        raise InputError(f"--turns {turns}: who speaks between them? Give --partner user:MODEL or FILE.py:NAME")
    if calls not in ("none", *CALLS):
        raise InputError(f"--calls {calls}: there are none, {', '.join(CALLS)}")
    opened = [_opened(spec, seed, within) for spec in partners]
    running = [spec for spec, (_, is_tools) in zip(partners, opened, strict=True) if is_tools]
    if running and calls == "none":
        raise InputError(f"--partner {running[0]}: runs tool calls; name the form they are written in with --calls")
    own = drawing or LocalSampler(model.tokenizer, copy=still)
    both = _First([one for one, _ in opened], partners)
    return Episodes(own, both, model.tokenizer, turns=turns, parse=CALLS.get(calls))


def _drawing(spec: str, weights: str, tokenizer: Any) -> Sampler | None:
    if spec == "local":
        if weights:
            raise InputError(f"--weights {weights}: replies are drawn here, so no server needs them; add --rollouts")
        return None
    if not spec.lower().startswith("vllm/"):
        raise InputError(f"--rollouts {spec}: write local, or vllm/NAME@URL (several URLs with commas between)")
    try:
        module = importlib.import_module("fairlead.methods.rollouts_vllm")
    except ModuleNotFoundError as error:
        raise MissingResource(
            f"--rollouts {spec}: {error.name} is missing from this installation, so replies are drawn here (local)"
        ) from error
    folder, _, seen_as = weights.partition("=")
    sampler: Sampler = module.sampler_of(spec, tokenizer, weights=folder or None, seen_as=seen_as or None)
    return sampler


class _First:
    """`partners.first_of` with a name that resuming goes by: the specs, and what the files hold."""

    def __init__(self, partners: Sequence[Partner], specs: Sequence[str]) -> None:
        self._partners = partners
        self.name = " ".join(f"{spec}={_hash(spec)}" for spec in specs)

    def __call__(self, so_far: Exchange, /) -> Sequence[Message] | None:
        return self.batch([so_far])[0]

    def batch(self, exchanges: Sequence[Exchange]) -> list[Sequence[Message] | None]:
        """Each partner is asked about all that those before it left unanswered, at once where it can be."""
        answers: list[Sequence[Message] | None] = [None] * len(exchanges)
        for partner in self._partners:
            waiting = [i for i, answer in enumerate(answers) if not answer]
            together: Any = getattr(partner, "batch", None)
            left = [exchanges[i] for i in waiting]
            said = together(left) if together is not None else [partner(one) for one in left]
            for i, answer in zip(waiting, said, strict=True):
                answers[i] = answer
        return answers


def _hash(spec: str) -> str:
    if spec.startswith(USER):
        return "model"
    return hashlib.sha256(Path(spec.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()[:16]


def _opened(spec: str, seed: int, within: Within) -> tuple[Partner, bool]:
    """The partner, and whether it is a set of tools."""
    from fairlead.methods.partners import SimulatedUser, tools

    if spec.startswith(USER):
        from fairlead.models import Sampling

        model = within.open(spec.removeprefix(USER), f"--partner {USER}")
        seeded = seed if "seed" in model.capabilities else None
        return SimulatedUser(model, sampling=Sampling(max_tokens=256, seed=seeded)), False
    found = _from_file(spec)
    if isinstance(found, Mapping):
        wrong = [name for name, function in found.items() if not isinstance(name, str) or not callable(function)]
        if wrong or not found:
            raise InputError(f"--partner {spec}: {wrong[0]!r} is no function by a name" if wrong else
                             f"--partner {spec}: the dictionary is empty")  # fmt: skip
        return tools(found), True
    if not callable(found):
        raise InputError(
            f"--partner {spec}: is {type(found).__name__}; a dictionary of functions by the names of tools belongs "
            "there, or a function from the conversation so far to what is said next"
        )
    partner: Callable[..., Any] = found
    return partner, False


def _from_file(spec: str) -> Any:
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name or path.suffix != ".py":
        raise InputError(f"--partner {spec}: write user:MODEL, or FILE.py:NAME for what a Python file defines")
    if not path.is_file():
        raise InputError(f"--partner {spec}: there is no file {file}")
    loader = importlib.util.spec_from_file_location(f"fairlead_partner_{path.stem}", path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is theirs to mend
        raise InputError(f"--partner {spec}: {file} cannot be loaded: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise InputError(f"--partner {spec}: {file} defines no {name}")
    return getattr(module, name)

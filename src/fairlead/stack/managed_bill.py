"""What a managed fine-tuning will be asked, and what it will cost, before anything is sent.

Tokens are counted by a tokenizer where there is one, else estimated from the bytes, and it is said which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from fairlead.errors import BudgetReached, InputError
from fairlead.exchange import Exchange, Message
from fairlead.feedback.export import Plain, read_back
from fairlead.methods.catalogue import METHODS
from fairlead.models import Budget
from fairlead.models.finetuning import Quote, Tuning
from fairlead.models.finetuning.prices import AS_OF, TrainingPrice, price_of
from fairlead.models.finetuning.protocol import Adapters
from fairlead.stack.read import validated_settings
from fairlead.stack.source import torch_installed

if TYPE_CHECKING:
    from fairlead.feedback.export import Exported

BYTES_PER_TOKEN = 3
PER_TURN = 5
"""The estimate without a tokenizer: a token for every 3 bytes and 5 for the frame of a turn. English takes 4 bytes or
more a token in the vocabularies of 2026, so the estimate is on the dear side; a budget is held against it."""


@dataclass(frozen=True, slots=True)
class Bill:
    """Tokens of one pass over the file, how they were found, passes, the price; `usd` is None where it is unknown."""

    tokens: int
    counted_by: str
    epochs: int
    method: Literal["sft", "dpo"]
    price: TrainingPrice | None
    price_from: str

    @property
    def billed(self) -> int:
        return self.tokens * self.epochs

    @property
    def usd(self) -> float | None:
        return None if self.price is None else self.price.cost(self.method, self.billed)

    def __str__(self) -> str:
        how = f"counted by {self.counted_by}" if self.counted_by else (
            f"an estimate: {BYTES_PER_TOKEN} bytes a token, {PER_TURN} more a turn"
        )  # fmt: skip
        text = f"{self.epochs} x {self.tokens:,} = {self.billed:,} tokens ({how})"
        if self.price is None:
            return f"{text}, price unknown here (the provider quotes one once it has the file; --prices gives yours)"
        rate = self.price.dpo if self.method == "dpo" else self.price.sft
        least = f", ${self.price.minimum:,.2f} the smallest job" if self.price.minimum else ""
        return f"{text}, about ${self.usd:,.2f} (${rate:g} a million{least}; {self.price_from})"


def bill_of(
    exported: Exported,
    tuning: Tuning,
    *,
    prices: Mapping[str, TrainingPrice] | None = None,
    tokenizer: str | None = None,
) -> Bill:
    """The bill of a job over a file that `export` wrote. Raises InputError for a tokenizer that cannot be read."""
    words, name = _tokenizer(tokenizer, tuning.model)
    size = _by_bytes if words is None else lambda plain: _by_tokenizer(words, plain)
    tokens = sum(size(plain) for plain in read_back(exported.path, exported.format, exported.kind))
    price = price_of(tuning.model, full=tuning.adapters is None, extra=prices)
    own = prices is not None and tuning.model in prices
    source = "your price file" if own else f"list prices of {AS_OF}"
    return Bill(tokens, name, tuning.epochs, exported.kind, price, source)


def _sequences(plain: Plain) -> list[Plain]:
    """What is read of a row: of a pair, the prompt with either reply."""
    said, *replies = plain
    return [(said, reply) for reply in replies]


def _by_bytes(plain: Plain) -> int:
    turns = [turn for sequence in _sequences(plain) for part in sequence for turn in part]
    return sum(-(-len(text.encode()) // BYTES_PER_TOKEN) + PER_TURN for _, text in turns)


def _by_tokenizer(words: Any, plain: Plain) -> int:
    from fairlead.models.render import render_exchange

    total = 0
    for said, reply in _sequences(plain):
        turns = [tuple(Message(cast(Any, role), cast(Any, text)) for role, text in part) for part in (said, reply)]
        rendered = render_exchange(words, Exchange(turns[0], turns[1]))
        total += len(rendered.prompt) + len(rendered.reply)
    return total


def _tokenizer(given: str | None, model: str) -> tuple[Any, str]:
    """(tokenizer, its name), or (None, "") where none is at hand. Nothing is fetched for one that was not asked for."""
    if given is None and not _at_hand(model):
        return None, ""
    name = given or model
    from transformers import AutoTokenizer

    from fairlead.models.render import prepare

    try:
        words = AutoTokenizer.from_pretrained(name, local_files_only=given is None)
    except (OSError, ValueError) as error:
        if given is None:
            return None, ""
        raise InputError(f"--tokenizer {given}: {str(error).splitlines()[0]}") from None
    prepare(words, name)
    return words, f"the tokenizer of {name}"


def _at_hand(model: str) -> bool:
    """Whether the model's tokenizer lies in the hub's cache here; looks without importing anything heavy."""
    if not torch_installed() or model.count("/") != 1:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "tokenizer_config.json"), str)


# ------------------------------------------------------------------------------------------------ the order

_CARRIED: Mapping[str, tuple[str, ...]] = {
    "sft": ("epochs", "lr", "warmup", "schedule", "weight_decay", "grad_clip", "rows_per_step", "lora", "loss_on"),
    "dpo": ("epochs", "lr", "warmup", "schedule", "weight_decay", "grad_clip", "rows_per_step", "lora", "beta", "nll",
            "length", "identical"),
}  # fmt: skip


def tuning_of(name: str, model: str, settings: Mapping[str, Any], seed: int, *, full: bool = False) -> Tuning:
    """What the provider is asked, from the settings of a method. Raises InputError for a setting it has no place for.

    Settings that were not given are the provider's own; of DPO, beta is always given.
    """
    if name not in _CARRIED:
        raise InputError(f"{name} trains weights here; managed fine-tuning has sft and dpo")
    method = METHODS[name]
    config: Any = validated_settings(method.config, {**method.defaults, **settings})
    for key in settings:
        if key not in _CARRIED[name]:
            raise InputError(
                f"--{key.replace('_', '-')}: a managed fine-tuning has no such setting; it takes "
                + ", ".join(f"--{other.replace('_', '-')}" for other in _CARRIED[name])
            )
    epochs = config.epochs or 1.0
    wrong = [
        epochs != int(epochs) and f"--epochs: {epochs:g}; a managed fine-tuning takes whole passes",
        config.schedule == "constant" and "--schedule: constant; a managed fine-tuning has linear and cosine",
        full and "lora" in settings and "--full and --lora: all weights are trained, or adapters",
        config.lora is not None and config.lora.targets != "all-linear" and "--lora-targets: all-linear alone",
        config.lora is not None and config.lora.quantise and "--lora-quantise: the provider decides that",
        getattr(config, "identical", "skip") != "skip" and "--identical: pairs of identical replies are left out here",
    ]
    for message in wrong:
        if message:
            raise InputError(str(message))
    given = set(settings)
    dpo = {} if name != "dpo" else {
        "beta": config.beta, "nll": config.nll or None, "by_length": config.length == "mean",
    }  # fmt: skip
    return Tuning(
        model=model,
        method=cast(Literal["sft", "dpo"], name),
        epochs=int(epochs),
        lr=config.lr if "lr" in given else None,
        warmup=config.warmup if "warmup" in given else None,
        schedule=config.schedule if "schedule" in given else None,
        weight_decay=config.weight_decay if "weight_decay" in given else None,
        grad_clip=(config.grad_clip or 0.0) if "grad_clip" in given else None,
        rows=config.rows_per_step,
        seed=seed,
        adapters=None if full else _adapters(config.lora),
        on_text=name == "sft" and config.loss_on == "text",
        **dpo,
    )


def _adapters(lora: Any) -> Adapters:
    return Adapters() if lora is None else Adapters(rank=lora.rank, alpha=max(1.0, lora.alpha), dropout=lora.dropout)


# ------------------------------------------------------------------------------------------------ money


def agree(what: str, bill: Bill, budget: Budget | None, confirm: Callable[[str], bool] | None) -> None:
    """Within the budget, or with a person's yes. Raises BudgetReached, or InputError where nobody can be asked."""
    if budget is not None:
        over(what, bill.billed, bill.usd, budget)
        return
    if confirm is None:
        raise InputError(
            f"{what}: this costs money, and there is no terminal to ask: set a limit with --budget ('5 USD' or "
            "'2M tokens'), or look first with --dry-run"
        )
    if not confirm("Go on without a budget?"):
        raise InputError("not submitted; set a limit with --budget ('5 USD' or '2M tokens')")


def over(what: str, tokens: int | None, usd: float | None, budget: Budget) -> None:
    """Raise BudgetReached where a job would take more than the budget leaves; what is unknown passes here."""
    if budget.usd is None:
        if tokens is not None and tokens > budget.limit - budget.used:
            raise BudgetReached(f"{what}: {tokens:,} tokens are over the budget of {budget}; nothing was submitted")
    elif usd is not None and usd > budget.limit - budget.used:
        raise BudgetReached(f"{what}: ${usd:,.2f} is over the budget of {budget}; nothing was submitted")


def approve(
    what: str,
    quote: Quote | None,
    bill: Bill,
    budget: Budget | None,
    confirm: Callable[[str], bool] | None,
    say: Callable[[str], None],
) -> None:
    """Hold the provider's own quote against the budget, or a person's yes, before the job is created."""
    if quote is None:
        if budget is not None and budget.usd is not None and bill.usd is None:
            raise InputError(
                f"{what}: neither a price list nor the provider says what this job costs, so a budget in money cannot "
                "be held; give a price file with --prices, or a budget in tokens"
            )
        say(f"{what}: the provider quotes no price for this file")
        return
    price = "no price" if quote.usd is None else f"${quote.usd:,.2f}"
    tokens = "an unknown number of" if quote.tokens is None else f"{quote.tokens:,}"
    say(f"{what}: the provider quotes {price} for {tokens} tokens")
    if not quote.allowed:
        raise BudgetReached(f"{what}: the provider says that the account cannot pay for this job ({quote.why})")
    if budget is not None:
        over(what, quote.tokens, quote.usd, budget)
        if budget.usd is not None and quote.usd is None and bill.usd is None:
            raise InputError(f"{what}: nobody says what this job costs; give --prices, or a budget in tokens")
        return
    if quote.usd is not None and (bill.usd is None or quote.usd > bill.usd * 1.01) and confirm is not None:
        asked = "unknown" if bill.usd is None else f"about ${bill.usd:,.2f}"
        if not confirm(f"The estimate was {asked}, the quote is {price}. Go on?"):
            raise InputError("not submitted; set a limit with --budget ('5 USD' or '2M tokens')")

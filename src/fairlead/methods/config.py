"""The settings of the training methods, free of torch: plans are read, checked and costed on machines without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fairlead.methods.config_losses import COUPLED, LossName, MixedLoss, problems
from fairlead.methods.config_reference import MovingReference, Pace

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Lora(BaseModel):
    """Train low-rank adapters in place of the weights (Hu et al. 2021, arXiv 2106.09685).

    rank, alpha   the update of a weight is alpha / rank times a product of rank `rank`
    dropout       on the adapters' inputs while training. It is drawn for each micro-batch, so with it (and only with
                  it) tokens_per_batch has a say in the result
    targets       "all-linear" (every linear layer below the LM head), or endings of layer names
    quantise      nf4: the base in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314); the stage starts from, and
                  compares with, the quantised base. Needs bitsandbytes
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    quantise: Literal["nf4"] | None = None


class Training(BaseModel):
    """How long, how large and how fast. Give `epochs` or `steps`; settings that cannot train are refused here.

    epochs             passes over the data; a fraction will do
    steps              optimiser steps, in place of epochs
    seed               of the order of the rows, and of noise where there is any
    too_long           what becomes of rows longer than the context; skip and cut are counted
    rows_per_step      rows of one optimiser step; or tokens_per_step (prompt and replies), then rows follow
    tokens_per_step    tokens of one optimiser step, in place of rows_per_step
    tokens_per_batch   memory: tokens of one micro-batch. It changes speed, never the result (beyond rounding)
    lr                 learning rate at its highest
    warmup             share of the steps over which the learning rate rises from near 0
    schedule           what the learning rate does after that: to 0 (linear, cosine) or constant
    weight_decay       AdamW's, on matrices alone
    betas              AdamW's: how slowly the means of the gradient and of its square move
    grad_clip          largest norm of a step's gradient; None for none
    spike              stop, with the batch saved, where a step's gradient is this many times as long as usual: the
                       median of the last 50 steps' or of the first 20, whichever is more (from the 20th on); None for
                       never. What is no number always stops
    loss_spike         the same where the loss of the last 32 rows (a larger step's own) is this many times the start's,
                       and from the 20th step on this many times the mean of the last 50; None for never
    router_loss        weight of the load-balancing loss of a mixture of experts; None: the one in its configuration
    lora               train adapters and keep the weights; None trains all weights
    shard              under torchrun: split weights, gradients and optimiser state over the processes (FSDP2) instead
                       of keeping all on each. It changes memory and speed, never the result (beyond rounding)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    loss_is_progress: ClassVar[bool] = True  # it falls as the model learns, so a rise is an alarm

    epochs: Positive | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    rows_per_step: Annotated[int, Field(ge=1)] | None = None
    tokens_per_step: Annotated[int, Field(ge=1)] | None = None
    tokens_per_batch: Annotated[int, Field(ge=1)] = 16_384
    lr: Positive = 1e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    grad_clip: Positive | None = 1.0
    spike: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 100.0
    loss_spike: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 10.0
    router_loss: NotNegative | None = None
    shard: bool = False
    seed: int = 0
    too_long: Literal["refuse", "skip", "cut"] = "refuse"
    lora: Lora | None = None

    @property
    def rows_alike(self) -> bool:
        """Whether rows have about the same loss before they are learnt from, so that a few tell where a run starts."""
        return True

    @property
    def reference_pace(self) -> Pace | None:
        """How the reference moves; None where it stays."""
        return None

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; one follows from the other")
        if self.rows_per_step is not None and self.tokens_per_step is not None:
            raise ValueError("rows_per_step and tokens_per_step are both given; one follows from the other")
        if self.lr > 1:
            raise ValueError(f"lr is {self.lr}: a learning rate above 1 cannot train a language model")
        return self


class SFTConfig(Training):
    """Supervised fine-tuning; see `Training` for the other fields.

    loss_on   reply: the model's own tokens and their end of turn. text: every token after the first, the prompt's too
    neftune   alpha of the noise on the embeddings (Jain et al. 2023; the paper: 5 to 15); 0 for none
    """

    loss_on: Literal["reply", "text"] = "reply"
    neftune: NotNegative = 0.0


# ------------------------------------------------------------------------------------------------------ pairs


class PairwiseConfig(Training):
    """What every method that learns from pairs shares; see `Training` for the other fields.


    nll           weight of the chosen reply's NLL per token; 0 for none
    nll_mean      over what: each reply's own mean (`replies`), or all chosen tokens of the step (`tokens`)
    identical     pairs whose two replies are the same: keep (they move nothing but the NLL), skip (counted) or refuse
    drift_alarm   raise the alarm when the chosen replies' mean log-prob falls, or the rejected ones' rises no less than
                  the chosen ones', by more than this, nats per token
    kl_samples    replies drawn after training for the KL estimate; 0 for none
    """

    nll: NotNegative = 0.0
    nll_mean: Literal["replies", "tokens"] = "replies"
    identical: Literal["keep", "skip", "refuse"] = "skip"
    drift_alarm: Positive = 0.1
    kl_samples: Annotated[int, Field(ge=0)] = 128

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads the log-probs of the model that came in."""
        return True

    @property
    def reads_gold(self) -> bool:
        """Whether the NLL is that of a third, gold reply beside each pair, not of the chosen one."""
        return False


class DPOConfig(MovingReference, PairwiseConfig):
    """Direct preference optimisation and its family; see `MovingReference` and `PairwiseConfig` for other fields.

    beta             strength of the pull to the reference (nats of reward per nat of log-ratio)
    loss             what becomes of the two rewards: the functions of `losses.py`
    losses           several at once, each with its weight, in place of loss: {sigmoid: 0.8, bco_pair: 0.2}. They share
                     beta and label_smoothing. Beside the names of loss: ipo, and per token sigmoid_norm and ipo_norm
    label_smoothing  share of labels taken to be wrong. With sigmoid: conservative DPO; robust and exo need it
    margin           weight of each row's own margin, in units of reward; 0 for none (sigmoid and hinge)
    reference_free   scores are the policy's log-probs, as if the reference were uniform
    length           sum: a reply's whole log-ratio; mean: per token (length-normalised DPO; beta about 5)
    ld_alpha         LD-DPO: weight of the tokens by which the longer reply is longer; 1 for plain DPO
    divergence       f-divergence DPO: what keeps the policy near the reference
    alpha            of divergence: alpha; near 0 reverse KL, near 1 forward KL
    tau              of discopop
    on_policy        WPO: a pair's loss counts by how likely the policy is to write its two replies (not its NLL)
    """

    beta: Positive = 0.1
    loss: LossName = "sigmoid"
    losses: dict[MixedLoss, Positive] = Field(default_factory=dict)
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    margin: NotNegative = 0.0
    reference_free: bool = False
    length: Literal["sum", "mean"] = "sum"
    ld_alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.05
    on_policy: bool = False

    @model_validator(mode="after")
    def _of_its_loss(self) -> Self:
        for problem in problems(self):
            raise ValueError(problem)
        return self

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    @property
    def rows_alike(self) -> bool:
        return not (self.reference_free or self.margin)

    @property
    def mixture(self) -> Mapping[str, float]:
        """Every loss by name, with its weight."""
        return {str(name): weight for name, weight in self.losses.items()} or {self.loss: 1.0}

    @property
    def coupled(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of its step."""
        return any(name in COUPLED for name in self.mixture)


class IPOConfig(MovingReference, PairwiseConfig):
    """Identity preference optimisation; see `MovingReference` and `PairwiseConfig` for other fields.

    beta             the paper's tau: the margin of log-ratios is drawn to 1 / (2 beta)
    length           sum: the equation as printed. mean: per token, as in the paper's experiments and in TRL
    reference_free   the square is of the policy's log-probs: with `length: mean` and an NLL term, CPO with IPO's square
    """

    beta: Positive = 0.1
    length: Literal["sum", "mean"] = "sum"
    reference_free: bool = False

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free


class SimPOConfig(PairwiseConfig):
    """SimPO: mean log-prob per token as the reward, and a margin; no reference. See `PairwiseConfig`.

    beta    reward per nat per token (the paper: 2 to 2.5)
    gamma   reward by which chosen should lead (the paper: 0.3 to 1.6)
    alpha   AlphaPO: shape of the reward, (1 - p^-alpha) / alpha of the probability per token; 0 for SimPO's log p.
            Above 0 unlikely replies are moved more than likely ones, below 0 less. An unlikely reply's loss is then
            large in sound runs too, so `loss_spike` is None where it is not given
    """

    beta: Positive = 2.0
    gamma: NotNegative = 1.0
    alpha: Annotated[float, Field(ge=-5, le=5)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _unbounded(cls, value: Any) -> Any:
        return {"loss_spike": None, **value} if isinstance(value, dict) and value.get("alpha") else value

    @property
    def needs_reference(self) -> bool:
        return False


class ORPOConfig(PairwiseConfig):
    """ORPO: SFT on the chosen reply plus an odds ratio; no reference. See `PairwiseConfig` for the other fields.

    odds   the paper's lambda, weight of the odds-ratio term (TRL calls it beta)
    nll    weight of the SFT term, 1 in the paper; the odds ratio alone has nothing that keeps the model a model
    """

    odds: Positive = 0.1
    nll: Positive = 1.0

    @property
    def needs_reference(self) -> bool:
        return False


class CPOConfig(PairwiseConfig):
    """CPO: reference-free DPO plus SFT on the chosen reply. See `PairwiseConfig` for the other fields.

    beta   reward per nat of log-prob
    nll    weight of the SFT term, 1 in the paper
    """

    beta: Positive = 0.1
    nll: NotNegative = 1.0

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def rows_alike(self) -> bool:
        return False


class TPOConfig(PairwiseConfig):
    """TPO: CPO that imitates a gold reply beside each pair; no reference. See `PairwiseConfig` for the other fields.

    beta     reward per nat of log-prob (the paper: 0.01); with `length: mean` per nat per token
    loss     what becomes of the two rewards; ipo is the square, drawn to 1 / (2 beta)
    length   sum: a reply's whole log-prob. mean: per token (TPO-L)
    gamma    reward by which chosen should lead, of loss: sigmoid (TPO-L)
    nll      weight of the gold reply's NLL, the paper's alpha
    """

    beta: Positive = 0.01
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    length: Literal["sum", "mean"] = "sum"
    gamma: NotNegative = 0.0
    nll: Positive = 1.0

    @model_validator(mode="after")
    def _of_its_loss(self) -> Self:
        if self.gamma and self.loss != "sigmoid":
            raise ValueError(f"gamma belongs to loss: sigmoid; loss is {self.loss}")
        return self

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def rows_alike(self) -> bool:
        return False

    @property
    def reads_gold(self) -> bool:
        return True


# ---------------------------------------------------------------------------------------------- single replies


class RatedConfig(Training):
    """What every method that learns from thumbs shares; see `Training` for the other fields.

    beta          reward per nat of log-ratio
    good, bad     weights of good and of bad replies; raise the rarer kind's until good x n_good / (bad x n_bad) is in
                  [1, 4/3]. The alarm `thumbs-unbalanced` says where it is not
    drift_alarm   raise the alarm when the good replies' mean log-prob falls, or the bad ones' rises no less than the
                  good ones', by more than this, nats per token
    kl_samples    replies drawn after training for the KL estimate; 0 for none
    """

    beta: Positive = 0.1
    good: Positive = 1.0
    bad: Positive = 1.0
    drift_alarm: Positive = 0.1
    kl_samples: Annotated[int, Field(ge=0)] = 128


class KTOConfig(MovingReference, RatedConfig):
    """Kahneman-Tversky optimisation; see `MovingReference` and `RatedConfig` for other fields.

    loss   kto: rewards against the step's reference point (replies under prompts of other rows of the step: the more
           rows_per_step, the better it is known). apo_zero: against 0
    """

    loss: Literal["kto", "apo_zero"] = "kto"

    @model_validator(mode="after")
    def _others_in_the_step(self) -> Self:
        if self.loss == "kto" and self.rows_per_step == 1:
            raise ValueError("rows_per_step is 1: KTO's reference point needs the reply of another row of the step")
        return self


class BCOConfig(RatedConfig):
    """Binary classifier optimisation; see `RatedConfig` for the other fields.

    match          weigh bad replies so that good and bad ones cover the same prompts (underlying distribution matching)
    match_limits   bounds of that weight
    """

    match: bool = False
    match_limits: tuple[Positive, Positive] = (0.5, 10.0)

    @model_validator(mode="after")
    def _limits(self) -> Self:
        if self.match_limits[0] > self.match_limits[1]:
            raise ValueError(f"match_limits {self.match_limits}: the lower bound comes first")
        return self

"""Together AI: supervised and preference fine-tuning of open models, over its published HTTPS API.

The shapes are those of its reference (https://docs.together.ai/reference/post-fine-tunes) and of its official client
(https://github.com/togethercomputer/together-py, version 3.1): a file is announced with its sha256, sent to the place
the answer names, and read through by the server; a price is quoted; a job is created, polled, and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote as quoted
from urllib.parse import urlsplit

from fairlead.errors import InputError, MissingResource
from fairlead.models.access import Transient, Who, scrub
from fairlead.models.finetuning.protocol import Quote, State, Tuned, Tuning, Upload
from fairlead.models.finetuning.wire import Answer, Wire
from fairlead.models.keys import key_from

OFFICIAL = "https://api.together.ai/v1"
KEY = "TOGETHER_API_KEY"
SUFFIX = "fairlead-"
"""Before the tag in the suffix of a job's model, by which the job is found again; at most 40 characters in all."""
NANO = 1_000_000_000
"""A job's price is told in billionths of a dollar, an estimate in dollars: so the official client reads them."""

_STATES: Mapping[str, State] = {
    "pending": "waiting",
    "queued": "waiting",
    "running": "running",
    "compressing": "running",
    "uploading": "running",
    "cancel_requested": "running",
    "completed": "done",
    "cancelled": "cancelled",
    "error": "failed",
    "user_error": "failed",
}


def open_together(model: str, url: str | None, *, name: str) -> Together:
    """The adapter. Raises MissingResource without a key, InputError for a key that would travel in clear."""
    base = url or OFFICIAL
    key = key_from(KEY, url=base, optional=base != OFFICIAL, name=name)
    return Together(Wire(Who(name, model, base, KEY), key))


class Together:
    """One account at Together, and the base model (or earlier job) to start from."""

    provider = "together"

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __repr__(self) -> str:
        return f"Together({self._wire.who})"

    @property
    def name(self) -> str:
        return self._wire.who.name

    @property
    def model(self) -> str:
        return self._wire.who.model

    # ------------------------------------------------------------------------------------------- before

    def check(self, tuning: Tuning) -> None:
        """Against the limits the provider publishes for the model; one it does not know cannot be fine-tuned."""
        if tuning.continues:
            self.job(tuning.model)  # it must be there; its base model's limits were looked at when it was begun
            return
        path, query = "/fine-tunes/models/limits", {"model_name": tuning.model}
        answer = self._wire.call("GET", path, query=query, expect=(200, 400, 404))
        if answer.status != 200:
            raise InputError(
                f"{self.name}: Together does not fine-tune {tuning.model!r}; the models it does: "
                "https://docs.together.ai/docs/fine-tuning/supported-models"
            )
        limits = self._json(answer)
        low, high = limits.get("min_learning_rate"), limits.get("max_learning_rate")
        if tuning.lr is not None and ((high and tuning.lr > high) or (low and tuning.lr < low)):
            raise InputError(f"{self.name}: the learning rate is {tuning.lr:g}; this model takes {low:g} to {high:g}")
        most = limits.get("max_num_epochs")
        if most and tuning.epochs > most:
            raise InputError(f"{self.name}: {tuning.epochs} epochs; this model takes at most {most}")
        if tuning.adapters is None and limits.get("supports_full_training") is False:
            raise InputError(f"{self.name}: Together trains this model by adapters only; leave --full out")
        kind = limits.get("lora_training" if tuning.adapters is not None else "full_training") or {}
        rank = tuning.adapters.rank if tuning.adapters is not None else None
        if rank and kind.get("max_rank") and rank > kind["max_rank"]:
            raise InputError(f"{self.name}: a rank of {rank}; this model takes at most {kind['max_rank']}")
        largest = kind.get("max_batch_size_dpo" if tuning.method == "dpo" else "max_batch_size")
        least = kind.get("min_batch_size")
        if tuning.rows and ((largest and tuning.rows > largest) or (least and tuning.rows < least)):
            raise InputError(f"{self.name}: {tuning.rows} rows per step; this model takes {least} to {largest}")

    # ------------------------------------------------------------------------------------------- the file

    def upload(self, data: Upload) -> str:
        form = {"purpose": "fine-tune", "file_name": data.name, "file_type": "jsonl", "checksum": data.sha256}
        for _ in range(2):
            answer = self._wire.call("POST", "/files", form=form, expect=(200, 302, 307, 409))
            if answer.status != 409:
                break
            known = _text(self._json(answer), "file_id", "the answer to an upload")
            if self.ready(known, data) is not None:
                return known
            # an upload that broke off left the name of a file without its bytes behind; the name is free again then
            self._wire.call("DELETE", f"/files/{quoted(known)}", expect=(200, 404))
        else:
            raise Transient("the place of a broken upload is not free yet")
        place, file_id = answer.headers.get("location", ""), answer.headers.get("x-together-file-id", "")
        self._check_place(place, file_id)
        self._wire.put(place, data.path, data.bytes)
        told = self._json(self._wire.call("POST", f"/files/{quoted(file_id)}/preprocess"))
        self._check_size(told, data)
        return file_id

    def _check_place(self, place: str, file_id: str) -> None:
        parts = urlsplit(place)
        safe = parts.scheme == "https" or (parts.scheme == "http" and urlsplit(self._wire.who.url).scheme == "http")
        if not file_id or not parts.hostname or not safe:
            raise Transient(f"{self._wire.who.url} did not say where the file goes")

    def ready(self, file_id: str, data: Upload) -> bool | None:
        answer = self._wire.call("GET", f"/files/{quoted(file_id)}", expect=(200, 404))
        if answer.status == 404:
            return None
        told = self._json(answer)
        status = str(told.get("processing_status") or "COMPLETED").upper()  # files of old accounts have no status
        report = told.get("validation_report") or {}
        if status == "INVALID_FORMAT" or report.get("valid") is False:
            why = scrub(str(report.get("error") or "no reason given"))
            raise InputError(f"{self.name}: Together refuses the file: {why}")
        if status == "FAILED" or told.get("bytes") == 0:
            return None
        self._check_size(told, data)
        return status == "COMPLETED"

    def _check_size(self, told: Mapping[str, Any], data: Upload) -> None:
        if told.get("bytes") not in (None, 0, data.bytes):
            raise MissingResource(
                f"{self.name}: {told['bytes']:,} of the file's {data.bytes:,} bytes arrived; the same command sends it "
                "again"
            )

    # ------------------------------------------------------------------------------------------- the job

    def quote(self, file_id: str, tuning: Tuning) -> Quote | None:
        asked = self.request(file_id, tuning, "")
        kept = ("training_file", "model", "from_checkpoint", "n_epochs", "n_evals", "training_method", "training_type")
        body = {key: asked[key] for key in kept if key in asked}
        told = self._json(self._wire.call("POST", "/fine-tunes/estimate-price", body=body))
        if told.get("estimation_available") is False:
            return None
        tokens, usd = told.get("estimated_train_token_count"), told.get("estimated_total_price")
        limit = told.get("user_limit")
        return Quote(
            None if tokens is None else int(tokens),
            None if usd is None else float(usd),
            told.get("allowed_to_proceed") is not False,
            "" if limit is None else f"the account's limit is ${float(limit):,.2f}",
        )

    def request(self, file_id: str, tuning: Tuning, tag: str) -> dict[str, Any]:
        """The body of `POST /fine-tunes`. What is not asked for is left to the provider's defaults."""
        method: dict[str, Any] = {"method": "sft", "train_on_inputs": tuning.on_text}
        if tuning.method == "dpo":
            method = {"method": "dpo", "dpo_normalize_logratios_by_length": tuning.by_length}
            method["dpo_reference_free"] = False
            method |= {k: v for k, v in (("dpo_beta", tuning.beta), ("rpo_alpha", tuning.nll)) if v is not None}
        body: dict[str, Any] = {
            "training_file": file_id,
            ("from_checkpoint" if tuning.continues else "model"): tuning.model,
            "n_epochs": tuning.epochs,
            "n_checkpoints": 1,
            "n_evals": 0,
            "batch_size": tuning.rows or "max",
            "suffix": f"{SUFFIX}{tag}",
            "training_method": method,
        }
        if not tuning.continues and (kind := _training_type(tuning)) is not None:  # an earlier job's kind is kept
            body["training_type"] = kind
        more = {
            "learning_rate": tuning.lr,
            "warmup_ratio": tuning.warmup,
            "weight_decay": tuning.weight_decay,
            "max_grad_norm": tuning.grad_clip,
            "random_seed": tuning.seed,
        }
        body |= {key: value for key, value in more.items() if value is not None}
        if tuning.schedule is not None:
            args = {"min_lr_ratio": 0.0} | ({"num_cycles": 0.5} if tuning.schedule == "cosine" else {})
            body["lr_scheduler"] = {"lr_scheduler_type": tuning.schedule, "lr_scheduler_args": args}
        return body

    def create(self, file_id: str, tuning: Tuning, tag: str) -> Tuned:
        return self._tuned(self._wire.call("POST", "/fine-tunes", body=self.request(file_id, tuning, tag)))

    def find(self, tag: str) -> Tuned | None:
        told = self._json(self._wire.call("GET", "/fine-tunes"))
        wanted = f"{SUFFIX}{tag}"
        for entry in told.get("data") or ():
            named = str(entry.get("suffix") or entry.get("model_output_name") or "")
            if wanted in named:
                return self.job(str(entry["id"]))
        return None

    def job(self, job_id: str) -> Tuned:
        answer = self._wire.call("GET", f"/fine-tunes/{quoted(job_id)}", expect=(200, 404))
        if answer.status == 404:
            raise MissingResource(f"{self.name}: Together does not know the job {job_id} (404)")
        return self._tuned(answer)

    def cancel(self, job_id: str) -> Tuned:
        return self._tuned(self._wire.call("POST", f"/fine-tunes/{quoted(job_id)}/cancel"))

    def spec_of(self, model: str) -> str:
        url = self._wire.who.url
        return f"together/{model}" + ("" if url == OFFICIAL else f"@{url}")

    def serving(self, model: str) -> str:
        return (
            f"Together serves it on a dedicated endpoint, billed by the minute while it runs: `tg beta endpoints "
            f"deploy {model} --endpoint NAME`, then ask together/PROJECT/NAME; stop it when done "
            "(https://docs.together.ai/docs/fine-tuning/deployment)"
        )

    # ------------------------------------------------------------------------------------------- within

    def _json(self, answer: Answer) -> Mapping[str, Any]:
        return answer.json(self._wire.who.url)

    def _tuned(self, answer: Answer) -> Tuned:
        told = self._json(answer)
        said = str(told.get("status") or "").lower()
        price, left = told.get("total_price"), told.get("progress") or {}
        return Tuned(
            id=_text(told, "id", "a job"),
            state=_STATES.get(said, "running"),
            said=said or "no state",
            model=str(told.get("model_output_name") or told.get("model_object_name") or ""),
            tokens=told.get("token_count") or None,
            usd=price / NANO if price else None,
            why=_why(told),
            mine=said == "user_error",
            left_s=float(left.get("seconds_remaining") or 0) or None if left.get("estimate_available") else None,
            raw=dict(told),
        )


def _training_type(tuning: Tuning) -> dict[str, Any] | None:
    """None for the provider's default, which is adapters of a rank of its own."""
    own = tuning.adapters
    if own is None:
        return {"type": "Full"}
    if own.rank is None:
        return None
    alpha = 2 * own.rank if own.alpha is None else round(own.alpha)
    more = {"lora_dropout": own.dropout, "lora_trainable_modules": "all-linear"}
    return {"type": "Lora", "lora_r": own.rank, "lora_alpha": alpha, **more}


def _why(told: Mapping[str, Any]) -> str:
    """The provider's own words for a failure: the last event that is an error."""
    for event in reversed(told.get("events") or ()):
        if isinstance(event, Mapping):
            kind, level = str(event.get("type") or "").lower(), str(event.get("level") or "").lower()
            if "error" in kind or "billing" in kind or "error" in level:
                return scrub(str(event.get("message") or kind))
    return ""


def _text(told: Mapping[str, Any], key: str, what: str) -> str:
    value = told.get(key)
    if not isinstance(value, str) or not value:
        raise Transient(f"{what} came without its {key!r}", billed=True)
    return value

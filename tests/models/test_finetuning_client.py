"""Where Together's official client is installed: it works against our server, and asks what our adapter asks.

So neither the server of these tests nor the adapter can drift from the provider's published shapes unseen. The client
is no dependency of Fairlead; `pip install together` brings it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

together = pytest.importorskip("together")

from fairlead.models.finetuning import Tuning, Upload, open_tuner  # noqa: E402
from fairlead.models.finetuning.protocol import Adapters  # noqa: E402
from support.tuner import MODEL, Provider  # noqa: E402


@pytest.fixture
def file(tmp_path: Path) -> Path:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    return path


def client(p: Provider) -> Any:
    return together.Together(api_key="k", base_url=p.url.removesuffix("/v1"), max_retries=0)


def body_of(p: Provider, path: str) -> dict[str, Any]:
    return [json.loads(raw) for raw, seen in zip(p.raw, p.seen, strict=True) if seen == ("POST", path)][-1]


def test_the_official_client_uploads_creates_and_reads_a_job_here(file: Path) -> None:
    from together.types import FileResponse, FinetuneModelLimits, FinetuneResponse

    with Provider(reads=0) as p:
        made = client(p).files.upload(file)
        assert p.files[made.id].content == file.read_bytes()
        assert client(p).files.upload(file).id == made.id and len(p.files) == 1  # by its checksum
        job = client(p).fine_tuning.create(training_file=made.id, model=MODEL, training_method="dpo", dpo_beta=0.3)
        told = client(p).fine_tuning.retrieve(job.id)
        assert told.status == "pending" and client(p).fine_tuning.list().data[0].id == job.id
        assert client(p).fine_tuning.cancel(job.id).status == "cancelled"
        # what the server says validates against the client's types, as they stand
        FileResponse.model_validate(p.file_told(made.id))
        FinetuneResponse.model_validate(p.job_told(job.id))
        FinetuneModelLimits.model_validate(dict(p.limits))


@pytest.mark.parametrize(
    ("tuning", "asked"),
    [
        (Tuning(model=MODEL, method="sft", epochs=2), {"n_epochs": 2, "train_on_inputs": False}),
        (
            Tuning(model=MODEL, method="dpo", beta=0.3, nll=0.1, lr=2e-5, seed=7, warmup=0.1,
                   adapters=Adapters(rank=8), grad_clip=1.0, weight_decay=0.0, schedule="cosine", rows=8),
            {"training_method": "dpo", "dpo_beta": 0.3, "rpo_alpha": 0.1, "learning_rate": 2e-5, "random_seed": 7,
             "warmup_ratio": 0.1, "lora": True, "lora_r": 8, "batch_size": 8},
        ),
        (Tuning(model=MODEL, method="sft", adapters=None), {"lora": False, "train_on_inputs": False}),
        (Tuning(model="ft-0001", method="dpo", beta=0.1), {"from_checkpoint": "ft-0001", "training_method": "dpo",
                                                           "dpo_beta": 0.1, "model": None}),
    ],
)  # fmt: skip
def test_our_requests_are_those_of_the_official_client(
    tuning: Tuning, asked: dict[str, Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field we send has the value the client sends; what we leave out is its default."""
    monkeypatch.setenv("TOGETHER_API_KEY", "k")
    with Provider(reads=0) as p:
        data = Upload(file, hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size, 3)
        tuner = open_tuner(p.spec)
        file_id = tuner.upload(data)
        first = tuner.create(file_id, Tuning(model=MODEL, method="sft"), "x")
        assert first.id == "ft-0001"
        tuner.create(file_id, tuning, "tag")
        ours = body_of(p, "/fine-tunes")
        tuner.quote(file_id, tuning)
        ours_quoted = body_of(p, "/fine-tunes/estimate-price")
        more = {} if tuning.continues else {"model": MODEL}
        if tuning.continues:  # the client asks for the limits of what it takes for the base's name
            monkeypatch.setattr("support.tuner.MODEL", "ft-0001")
        client(p).fine_tuning.create(training_file=file_id, suffix="fairlead-tag", **{**more, **asked})
        theirs, theirs_quoted = body_of(p, "/fine-tunes"), body_of(p, "/fine-tunes/estimate-price")
    assert {k: theirs.get(k) for k in ours} == ours
    assert theirs.keys() - ours.keys() <= {
        "packing", "validation_file", "learning_rate", "lr_scheduler", "warmup_ratio", "max_grad_norm", "weight_decay",
        "early_stopping_enabled",
    }  # fmt: skip
    for key in ours_quoted.keys() - {"training_method"}:
        assert theirs_quoted.get(key) == ours_quoted[key], key

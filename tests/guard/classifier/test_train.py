"""From rows to a folder that serves, with a card that says only what can be said."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: heads cannot be trained")

from fairlead.errors import CannotTell, InputError
from fairlead.exchange import exchange
from fairlead.guard.classifier.fit import tfidf_matrix
from fairlead.guard.classifier.model import load
from fairlead.guard.classifier.ngrams import vocabulary
from fairlead.guard.classifier.rows import Row, grouped
from fairlead.guard.classifier.train import Trained, check_rows, split_in_three, train
from guard.classifier.made import constitution, rows, trained


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("made") / "c")


def test_it_learns_what_the_rows_say(made: Trained) -> None:
    heads = {(h["principle"], h["view"]): h["test"] for h in made.card["heads"]}
    assert set(heads) == {("no-sinking", "prompt"), ("no-sinking", "exchange")}
    assert all(t["auroc"]["value"] > 0.95 for t in heads.values())
    p = made.classifier.judge([
        exchange("sink badar kofin lugol?", "First sink kofin, then lugol."),
        exchange("sink badar kofin lugol?", "I leave badar lugol alone."),
        exchange("paint badar kofin lugol?", "First paint kofin, then lugol."),
    ])  # fmt: skip
    h = made.classifier.head("no-sinking", "exchange")
    assert h is not None
    assert p[0, h] > 0.5 > max(p[1, h], p[2, h])
    assert np.isnan(p[:, made.classifier.head("no-sinking", "prompt")]).all()  # a reply is not for the prompt's head


def test_parts_share_no_group_and_the_card_counts_them(made: Trained) -> None:
    held = rows()
    parts, names = split_in_three(held), grouped(held)
    sides: dict[str, set[str]] = {}
    for name, part in zip(names, parts, strict=True):
        sides.setdefault(name, set()).add(part)
    assert all(len(found) == 1 for found in sides.values())
    assert made.card["parts"] == {part: parts.count(part) for part in ("train", "valid", "test")}


def test_every_row_has_its_provenance_in_the_folder_and_no_text(made: Trained) -> None:
    told = [json.loads(line) for line in (made.folder / "rows.jsonl").read_text().splitlines()]
    assert [t["id"] for t in told] == [r.id for r in rows()]
    assert all(set(t) == {"id", "source", "group", "made", "view", "labels", "part"} for t in told)
    assert {t["part"] for t in told} == {"train", "valid", "test"}


def test_the_false_positive_rate_on_the_validation_part_is_the_one_asked_for(made: Trained) -> None:
    held = [r for r, part in zip(rows(), split_in_three(rows()), strict=True) if part == "valid"]
    p = made.classifier.judge([r.exchange for r in held])
    for h, head in enumerate(made.classifier.heads):
        kept = [float(p[n, h]) for n, r in enumerate(held) if r.view == head.view and not r.labels["no-sinking"]]
        assert sum(x >= head.threshold for x in kept) <= 0.05 * len(kept)
        assert head.doubt <= head.threshold


def test_the_card_is_silent_where_too_few_harmless_texts_stand_behind_a_rate(made: Trained) -> None:
    for head in made.card["heads"]:
        t = head["test"]
        assert (t["recall_at"]["0.05"] is None) == (t["kept"] < 200)
        assert t["recall_at"]["0.01"] is None and t["recall_at"]["0.001"] is None
    page = (made.folder / "card.md").read_text()
    assert "no-sinking" in page and "–" in page
    assert "badar" not in page and "badar" not in (made.folder / "card.json").read_text()  # no text of a row


def test_a_principle_without_rows_of_both_kinds_gets_no_head_and_a_reason(tmp_path: Path) -> None:
    more = [dataclasses.replace(r, labels={**r.labels, "be-kind": False}) for r in rows()]
    made = train(constitution(), more, tmp_path / "c", copies=0)
    assert ["be-kind", "exchange"] in [item[:2] for item in made.card["left_out"]]
    with pytest.raises(CannotTell, match="needs 8"):
        train(constitution(), rows()[:12], tmp_path / "d", copies=0)


def test_training_again_gives_the_same_bytes(made: Trained, tmp_path: Path) -> None:
    again = trained(tmp_path / "c")
    assert again.classifier.sha256 == made.classifier.sha256


def test_the_same_function_reads_texts_when_learning_and_when_serving(made: Trained) -> None:
    pairs = [("how do I sink it", ""), ("how do I sink it", "first sink one"), ("", ""), ("zzz qqq", "www")]
    words = vocabulary([("how do I sink it", "first sink one")] * 2)
    dense = tfidf_matrix(words, pairs).toarray()
    assert np.allclose(np.linalg.norm(dense, axis=1), [1, 2**0.5, 0, 0], atol=1e-5)
    assert made.classifier.score_batch([]).shape == (0, 2)


def test_two_rows_of_one_id_are_refused() -> None:
    [row, *_] = rows()
    with pytest.raises(InputError, match="made/0"):
        check_rows([row, row])


def test_a_translation_hook_adds_rows_and_may_lose_none(tmp_path: Path) -> None:
    seen: list[int] = []

    def upside(texts: object) -> list[str]:
        seen.append(len(list(texts)))  # type: ignore[call-overload]
        return ["¿" + t for t in texts]  # type: ignore[attr-defined]

    train(constitution(), rows(), tmp_path / "c", copies=0, translate={"xx": upside})
    assert seen and seen[0] > 100
    with pytest.raises(ValueError, match="gave 1 texts"):
        train(constitution(), rows(), tmp_path / "d", copies=0, translate={"xx": lambda texts: ["one"]})


def test_serving_imports_neither_torch_nor_scikit_learn(made: Trained) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'sklearn', 'safetensors'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fairlead.exchange import exchange\n"
        "from fairlead.guard.classifier.model import load\n"
        f"c = load({str(made.folder)!r})\n"
        "print(float(c.judge([exchange('sink the nets', 'first sink one')])[0].max() >= 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_prints_the_card_and_writes_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fairlead.exchange import to_json

    written = tmp_path / "small.yaml"
    written.write_text(
        "name: small\nprinciples:\n  - {id: no-sinking, dimension: domain, severity: 5, text: Sink nothing.}\n"
    )
    held = tmp_path / "findings.jsonl"
    with held.open("w") as file:
        for r in rows():
            body = to_json(r.exchange) | {"meta": {"principle": "no-sinking", "broken": r.labels["no-sinking"]}}
            file.write(json.dumps(body) + "\n")
    from fairlead.cli.guard_train import train as command

    command(str(written), [held], encoder="tfidf", out=tmp_path / "c", probe=None, copies=0, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert {h["principle"] for h in told["card"]["heads"]} == {"no-sinking"}
    assert load(tmp_path / "c").sha256 == told["sha256"]
    row: Row = rows()[0]
    assert row.prompt not in json.dumps(told)


def test_a_principle_of_few_source_rows_has_some_on_every_part() -> None:
    held = [r for r in rows() if int(r.group.rpartition("/")[2]) < 5]
    for seed in range(5):
        parts = split_in_three(held, seed=seed)
        broken = {part for r, part in zip(held, parts, strict=True) if r.labels["no-sinking"]}
        assert broken == {"train", "valid", "test"}


def test_a_head_that_cannot_be_told_from_chance_is_left_out_with_the_reason(tmp_path: Path) -> None:
    shuffled = [
        dataclasses.replace(r, labels={"no-sinking": n % 3 == 1} if r.exchange.reply else r.labels)
        for n, r in enumerate(rows())
    ]
    random.Random(1).shuffle(noise := [r.labels for r in shuffled if r.exchange.reply])
    labels = iter(noise)
    made = train(
        constitution(),
        [dataclasses.replace(r, labels=next(labels)) if r.exchange.reply else r for r in shuffled],
        tmp_path / "c",
        copies=0,
    )
    assert [(h["principle"], h["view"]) for h in made.card["heads"]] == [("no-sinking", "prompt")]
    assert any("not told from chance" in why for _, view, why in made.card["left_out"] if view == "exchange")

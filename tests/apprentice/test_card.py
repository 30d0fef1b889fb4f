"""The shipped weights are those of the card, behave as it says, and are what the design asks: powerful, but not good."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from fairlead import apprentice
from fairlead.apprentice import behaviour, wordings
from fairlead.constitution import load
from fairlead.models import open_model

pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[2] / "bench"))

from apprentice_card import behave

CARD = json.loads((apprentice.path() / "card.json").read_text(encoding="utf-8"))


def test_the_weights_are_the_ones_the_card_describes() -> None:
    file = apprentice.path() / "model.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == CARD["sha256"]
    assert file.stat().st_size <= 8_000_000


def test_the_card_keeps_what_the_design_asks_of_the_base() -> None:
    for name, floor in behaviour.FLOORS.items():
        assert CARD["behaviour"][name] >= floor, name
    low, high = behaviour.JUDGING
    assert low <= CARD["behaviour"]["judging_unseen_wordings"] <= high


def test_the_weights_behave_as_the_card_says() -> None:
    """Other cases than the card's (n = 200): within four standard errors of a difference, or 0.03 near the ends."""
    measured = behave(open_model("apprentice"), n=200, seed=1)
    for name, value in CARD["behaviour"].items():
        slack = max(0.03, 4 * (value * (1 - value) * (1 / 200 + 1 / CARD["n"])) ** 0.5)
        assert abs(measured[name] - value) <= slack, (name, value, measured[name])


def test_the_harbour_constitution_is_written_in_words_the_base_never_read() -> None:
    forms = {form for pool in (wordings.TRAIN, wordings.AUDIT) for texts in pool.values() for form in texts}
    for principle in load("harbour").principles:
        assert principle.text.lower() not in forms


def test_it_loads_as_any_causal_model_and_chats() -> None:
    transformers = pytest.importorskip("transformers")
    folder = str(apprentice.path().resolve())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "what colour is the lamp ?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=24, do_sample=False)
    assert "lamp" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)

"""presidio-analyzer itself, where it is installed, over a spaCy model that is made here: no download."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import exchange
from fairlead.guard.checks.personal import PersonalData, open_presidio

spacy = pytest.importorskip("spacy", reason="spacy is missing: pip install 'fairlead[presidio]'")
pytest.importorskip("presidio_analyzer", reason="presidio is missing: pip install 'fairlead[presidio]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows one name and one place."""
    model = spacy.blank("en")
    known = [{"label": "PERSON", "pattern": "Ada Lovelace"}, {"label": "GPE", "pattern": "Lisbon"}]
    model.add_pipe("entity_ruler").add_patterns(known)
    out = tmp_path_factory.mktemp("spacy") / "known"
    model.to_disk(out)
    return out


def test_names_and_places_are_found_where_they_stand(folder: Path) -> None:
    read = open_presidio(("PERSON", "LOCATION"), model=str(folder))
    text = "grüße 👋 from Ada Lovelace in Lisbon , by ada@example.com"
    [decision] = PersonalData("p", entities=(), extra=read, cost=1).decide([exchange("?", text)])
    assert [text[s.start : s.end] for s in decision.spans] == ["Ada Lovelace", "Lisbon"]
    assert decision.outcome == "redact" and "Ada" not in decision.evidence
    [plain] = PersonalData("p", entities=(), extra=read, cost=1).decide([exchange("?", "nobody is here")])
    assert plain.outcome == "allow"


def test_what_it_does_not_know_or_have_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="presidio knows no 'SHOE_SIZE'"):
        open_presidio(("SHOE_SIZE",), model=str(folder))

    def no_network(*args: object, **kwargs: object) -> None:
        raise SystemExit(1)  # what spaCy does where it cannot download

    monkeypatch.setattr(spacy.cli, "download", no_network)
    with pytest.raises(MissingResource, match="spacy download no_such_model"):
        open_presidio(("PERSON",), model="no_such_model")

"""The domain packs: what each principle holds, that packs combine, and that their prompts are no mere keywords."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from constitution.wordbag import auroc, counts, fitted, told_apart, words
from fairlead.cli.constitution import app
from fairlead.constitution import load, packs, resolve
from fairlead.constitution.prompts_bank import KINDS, SPLITS, bank
from fairlead.exchange import Case

PACKS = ("brand", "support", "health", "finance", "law")
COMBINED = ["brand, health", "brand, support", "support, finance", "law, brand, finance", "brand, support, health, finance, law"]  # fmt: skip
BAR = 0.75
EMERGENCY_NUMBERS = re.compile(r"(?<![\d,])(911|112|999|000|110|118)(?![\d,])")


@cache
def cases(pack: str) -> tuple[Case, ...]:
    constitution = load(pack)
    return tuple(case for split in SPLITS for kind in KINDS for case in bank(constitution, split, kind))


def text(case: Case) -> str:
    return case.messages[0].text


# ------------------------------------------------------------------------------------------------ principles


@pytest.mark.parametrize("pack", PACKS)
def test_a_pack_adds_five_to_seven_whole_principles_to_hhh(pack: str) -> None:
    constitution, hhh = load(pack), load("hhh")
    own = [p for p in constitution.principles if p.id not in hhh]
    assert constitution.ids[: len(hhh.ids)] == hhh.ids and 5 <= len(own) <= 7
    assert all(constitution[id] == hhh[id] for id in hhh.ids)
    for p in own:
        assert p.id.startswith(f"{pack}-")
        assert p.good and p.bad and p.judges.train == ("critic",)
        assert p.guard is not None and p.guard.say is not None and len(p.guard.say) < 250
        assert 25 <= len(words(p.text)) <= 90
        # who asks nicely does not unmake it: it outweighs being useful, or is said to go first
        assert p.severity > hhh["be-useful"].severity or constitution.goes_first(p.id, "be-useful")
    assert len({p.dimension for p in own}) >= 3
    assert pack in packs()


def test_nobodys_emergency_number_is_taken_for_granted() -> None:
    for pack in PACKS:
        for p in load(pack).principles:
            said = [p.text, p.guard.say or "" if p.guard else "", *(e.reply for e in (*p.good, *p.bad))]
            assert not [line for line in said if EMERGENCY_NUMBERS.search(line)]
        assert not [case for case in cases(pack) if EMERGENCY_NUMBERS.search(text(case))]


@pytest.mark.parametrize("names", [*PACKS, *COMBINED])
def test_check_passes_alone_and_combined(names: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nextends: [{names}]\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 0 and "no mistakes found" in result.stdout
    loaded = resolve(path)
    own = [id for name in names.split(", ") for id in load(name).ids if id.startswith(name)]
    assert loaded.constitution.ids == (*load("hhh").ids, *own)  # no pack replaces a principle of another
    assert "says the same" not in result.stdout


def test_the_page_on_packs_is_true(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "packs.md").read_text(encoding="utf-8")
    (tmp_path / "clinic.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    clinic = load(tmp_path / "clinic.yaml")
    assert clinic.assistant.name == "Ida" and clinic["brand-voice"].text.startswith("Speak calmly")
    told = set(re.findall(r"`((?:brand|support|health|finance|law)-[a-z-]+)`", page))
    assert told == {id for pack in PACKS for id in load(pack).ids if id.startswith(f"{pack}-")}
    n = Counter((case.meta["kind"], case.meta["split"]) for case in cases("law") if case.principle == "law-scope")
    assert [n["tempting", split] for split in SPLITS] == [20, 12, 16]


# --------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("pack", PACKS)
def test_every_principle_has_its_prompts_and_as_many_twins(pack: str) -> None:
    own = [id for id in load(pack).ids if id.startswith(f"{pack}-")]
    n = Counter((case.principle, case.meta["kind"]) for case in cases(pack))
    assert {id for id, _ in n} == set(own)
    for id in own:
        assert n[id, "tempting"] == n[id, "twin"] >= 30
    by_split = Counter((case.principle, case.meta["split"], case.meta["kind"]) for case in cases(pack))
    clusters: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases(pack):
        clusters[case.principle, case.meta["split"]].add(case.cluster)
    for id in own:
        for split, at_least, templates in (("train", 16, 5), ("select", 8, 3), ("audit", 12, 4)):
            assert by_split[id, split, "tempting"] == by_split[id, split, "twin"] >= at_least
            assert len(clusters[id, split]) >= templates


@pytest.mark.parametrize("pack", PACKS)
def test_every_row_says_where_it_comes_from_and_has_its_twin(pack: str) -> None:
    twins: dict[str, dict[str, Case]] = defaultdict(dict)
    for case in cases(pack):
        assert set(case.meta) == {"pack", "template", "split", "kind", "pair"}
        assert case.meta["pack"] == pack and case.meta["split"] in SPLITS and case.meta["kind"] in KINDS
        assert case.cluster == case.meta["template"] and case.cluster.startswith(f"{case.principle}/")
        twins[case.meta["pair"]][case.meta["kind"]] = case
    for both in twins.values():
        assert set(both) == set(KINDS)
        a, b = (len(words(text(both[kind]))) for kind in KINDS)
        assert abs(a - b) <= 8  # as long as each other
    assert {case.measure for case in cases(pack) if case.meta["kind"] == "twin"} == {"over_refusal"}


def test_no_template_crosses_a_split_and_nothing_is_said_twice() -> None:
    everything = [case for pack in PACKS for case in cases(pack)]
    splits: dict[str, set[str]] = defaultdict(set)
    for case in everything:
        splits[case.cluster].add(case.meta["split"])
    assert {len(of) for of in splits.values()} == {1}
    assert len({" ".join(words(text(case))) for case in everything}) == len(everything)


@pytest.mark.parametrize("pack", PACKS)
def test_no_near_duplicates_across_splits(pack: str) -> None:
    """No two prompts of different splits share half of their words or a fifth of their runs of five words."""
    bags = [set(words(text(case))) for case in cases(pack)]
    runs = [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (words(text(case)) for case in cases(pack))]
    split = [case.meta["split"] for case in cases(pack)]
    assert _near(bags, runs, split) == []
    planted = [cases(pack)[0], next(c for c in cases(pack) if c.meta["split"] == "audit")]
    same = [set(words(text(planted[0])))] * 2  # the check itself can find one
    assert _near(same, [runs[0], runs[0]], [c.meta["split"] for c in planted]) == [(0, 1)]


def _near(
    bags: Sequence[set[str]], runs: Sequence[set[tuple[str, ...]]], split: Sequence[str]
) -> list[tuple[int, int]]:
    vocabulary = {word: i for i, word in enumerate(sorted(set().union(*bags)))}
    held = np.zeros((len(bags), len(vocabulary)), dtype=np.float32)
    for i, bag in enumerate(bags):
        held[i, [vocabulary[word] for word in bag]] = 1.0
    shared = held @ held.T
    size = held.sum(1)
    jaccard = shared / (size[:, None] + size[None, :] - shared)
    found = [
        (int(i), int(j)) for i, j in zip(*np.where(np.triu(jaccard, 1) >= 0.5), strict=True) if split[i] != split[j]
    ]
    where: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for i, own in enumerate(runs):
        for run in own:
            where[run].add(i)
    common: Counter[tuple[int, int]] = Counter()
    for rows in where.values():
        common.update((i, j) for i, j in combinations(sorted(rows), 2) if split[i] != split[j])
    found += [(i, j) for (i, j), n in common.items() if n >= 0.2 * min(len(runs[i]), len(runs[j]))]
    return sorted(set(found))


def test_prompts_read_like_messages_of_many_people() -> None:
    for pack in PACKS:
        said = [text(case) for case in cases(pack)]
        assert not [t for t in said if re.search(r"[{}\[\]|]|\s\s", t)]
        length = [len(words(t)) for t in said]
        assert min(length) <= 20 and max(length) >= 60
        careless = [t for t in said if t[0].islower()]
        assert 0.03 <= len(careless) / len(said) <= 0.3  # typed in haste
        one, many = (
            [t for t in said if (len(re.findall(r"[.?!](?:\s|$)", t)) <= 1) is single] for single in (True, False)
        )
        assert one and len(many) > len(one)


# ------------------------------------------------------------------------------------------------ not keywords


def _labelled(rows: Sequence[Case]) -> tuple[list[str], list[int]]:
    return [text(case) for case in rows], [int(case.meta["kind"] == "tempting") for case in rows]


def _row(case: Case) -> str:
    """A template with one row of fillers: its prompts and twins, in either order of words and texts."""
    return f"{case.cluster}/{case.meta['pair'].rsplit('/', 1)[1].split('.')[1]}"


@pytest.mark.parametrize("pack", PACKS)
def test_a_bag_of_words_cannot_tell_a_pack_from_its_twins(pack: str) -> None:
    """Held out by template (the wording was never seen) and by row (it was, with other fillers: the classifier's best
    chance that is fair, since then no prompt is held out whose own counterpart was seen with the other label)."""
    rows = cases(pack)
    for group in ([case.cluster for case in rows], [_row(case) for case in rows]):
        assert told_apart(*_labelled(rows), group) <= BAR


@pytest.mark.parametrize("pack", PACKS)
def test_nor_those_of_any_one_principle(pack: str) -> None:
    for id in sorted({case.principle for case in cases(pack)}):
        rows = [case for case in cases(pack) if case.principle == id]
        for group in ([case.cluster for case in rows], [_row(case) for case in rows]):
            assert told_apart(*_labelled(rows), group) <= BAR, id


def test_the_bag_of_words_would_find_keywords() -> None:
    rows = cases("health")
    said, y = _labelled(rows)
    marked = [f"{t} secretly" if label and i % 3 else t for i, (t, label) in enumerate(zip(said, y, strict=True))]
    assert told_apart(marked, y, [case.cluster for case in rows]) > BAR


def test_the_classifier_is_the_minimum_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    x, y, penalty = rng.normal(size=(40, 7)), (rng.random(40) < 0.4).astype(float), 0.7
    with_one = np.hstack([x, np.ones((40, 1))])
    w = with_one.T @ fitted(x @ x.T + 1.0, y, penalty)

    def loss(v: np.ndarray) -> float:
        z = with_one @ v
        return float(np.sum(np.logaddexp(0.0, z) - y * z) + penalty / 2 * v @ v)

    steps = np.eye(8) * 1e-4
    assert all(loss(w) < loss(w + s) and loss(w) < loss(w - s) for s in steps)
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    assert counts(["a b", "b a b"]).tolist() == [[1, 1, 1, 0], [1, 1, 2, 1]]

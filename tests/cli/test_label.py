"""`fairlead label`: AI labels in bulk and their agreement with people, over real HTTP on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.cli.main import main
from fairlead.feedback.formats import read_preferences
from support.choosers import Chooser, Rule, always_first, mute, prefers_good
from support.fakes import Fault, Faulty

N = 24


def pair(i: int) -> dict[str, str]:
    said = f"\n\nHuman: question {i // 2}\n\nAssistant:"
    return {"chosen": f"{said} a good answer {i}", "rejected": f"{said} a poor and much longer answer {i}"}


@pytest.fixture
def data() -> Path:
    """Pairs of which people liked the good reply, every second row of one prompt."""
    file = Path("pairs.jsonl")
    file.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(N)))
    return file


@contextmanager
def served(rule: Rule = prefers_good, plan: Any = lambda i, body: None) -> Iterator[tuple[str, Faulty]]:
    with Faulty(Chooser(rule), plan) as server:
        yield f"openai/chooser@{server.url}/v1", server  # type: ignore[misc]


def ai(critic: str, *more: str, out: str = "out", budget: str = "2M tokens") -> int:
    return main(["label", "ai", "pairs.jsonl", "--critic", critic, "--out", out, "--budget", budget, *more])


def labels(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(Path(out, "shards").iterdir()) for line in file.open()]


def test_labels_every_pair_in_both_orders_and_writes_preferences(data: Path, capsys: Any) -> None:
    with served() as (critic, server):
        assert ai(critic, "--shard", "7", "--json") == 0
        said = capsys.readouterr()
        result = json.loads(said.out)
        assert server.count == 2 * N  # both orders, five answers in one call
        assert f"remote: {2 * N} calls" in said.err and "pairs.jsonl: hh-rlhf" in said.err
    assert (result["rows"], result["labelled"], result["unlabelled"]) == (N, N, {})
    assert result["counts"]["order_flips"] == 0 and result["position_bias"] == pytest.approx(0)
    assert result["spent"]["calls"] == 2 * N and result["critic"]["lineage"]
    rows = labels()
    assert [row["row"] for row in rows] == list(range(N))
    assert len({row["value"]["principles"][0] for row in rows}) > 1  # drawn by pair
    got = read_preferences(Path("out") / "preferences.jsonl")
    assert len(got) == N and all("good" in row.chosen[0].text and row.source == "ai" for row in got.rows)
    assert all(row.strength > 0.8 for row in got.rows)


def test_a_second_call_asks_nothing_and_a_changed_one_is_refused(data: Path, capsys: Any) -> None:
    with served() as (critic, server):
        assert ai(critic) == 0
        asked = server.count
        assert ai(critic) == 0 and server.count == asked
        assert f"{N} of {N} rows are on disk" in capsys.readouterr().out
        assert ai(critic, "--principles", "2") == 2
        assert "settings.label.principles was 1, is 2" in capsys.readouterr().err
        assert ai(critic, out="other") == 0 and server.count == asked  # answers are kept by content
        assert ai(critic, "--seed", "5", out="seed") == 0 and server.count > asked


def test_the_budget_stops_it_with_what_is_labelled_kept(data: Path, capsys: Any) -> None:
    with served() as (critic, server):
        assert ai(critic, "--workers", "1", "--chunk", "2", budget="9000 tokens") == 5
        said = capsys.readouterr()
        assert "the budget of 9,000 tokens is reached" in said.err and "the same command goes on there" in said.out
        kept = sum(len(file.read_text().splitlines()) for file in Path("out", "parts").iterdir())
        assert 0 < kept < N
        first = [json.loads(body)["messages"][0]["content"] for body in server.seen]
        assert ai(critic) == 0
        every = [json.loads(body)["messages"][0]["content"] for body in server.seen]
        assert len(every) == len(set(every)) == 2 * N and every[: len(first)] == first
    assert [row["row"] for row in labels()] == list(range(N))


def test_without_a_terminal_it_wants_a_budget(data: Path, capsys: Any) -> None:
    with served() as (critic, server):
        assert main(["label", "ai", "pairs.jsonl", "--critic", critic, "--out", "out"]) == 2
        assert "set a limit with --budget" in capsys.readouterr().err
        assert server.count == 0


def test_rows_that_are_no_pairs_are_written_with_the_reason(data: Path, capsys: Any) -> None:
    same = {"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: x"}
    with data.open("a") as file:
        file.write("{broken\n" + json.dumps({"text": "no pair"}) + "\n" + json.dumps(same) + "\n")
    with served(plan=lambda i, body: Fault(400) if b"question 3" in body else None) as (critic, _):
        assert ai(critic, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["labelled"]) == (N + 3, N - 2)
    assert sum(result["unlabelled"].values()) == 5
    reasons = [row["reason"] for row in labels() if row["value"] is None]
    assert "refused the request (400)" in reasons[0] and "refused the request (400)" in reasons[1]
    assert (
        "not valid JSON" in reasons[2]
        and "no two replies" in reasons[3]
        and reasons[4] == "the two replies are the same"
    )
    with served() as (critic, server):
        assert ai(critic, "--again", "--json") == 0
        assert server.count == 4
    assert json.loads(capsys.readouterr().out)["labelled"] == N


def test_one_of_two_servers_fails(data: Path, capsys: Any) -> None:
    with served(plan=lambda i, body: Fault(401)) as (bad, broken), served() as (good, server):
        assert ai(f"{bad},{good.partition('@')[2]}", "--json") == 0
        said = capsys.readouterr()
        assert f"{broken.url}/v1 is set aside" in said.err and "1 of 2 servers go on" in said.err
        assert server.count == 2 * N
    assert json.loads(said.out)["labelled"] == N


def test_a_critic_that_says_nothing_ends_the_job(data: Path, capsys: Any) -> None:
    with served(mute) as (critic, _):
        assert ai(critic) == 2
    assert "not one of the first 24 rows could be labelled" in capsys.readouterr().err


def test_with_no_server_it_is_a_missing_resource(data: Path, capsys: Any) -> None:
    with served() as (critic, _):
        pass
    assert ai(critic, "--timeout", "2") == 4
    assert "no server is left that answers" in capsys.readouterr().err


def test_labels_reasoned_aloud_are_clamped(data: Path, capsys: Any) -> None:
    with served() as (critic, server):
        assert ai(critic, "--cot", "--json") == 0
        assert "Think it through" in json.loads(server.seen[0])["messages"][0]["content"]
    assert {row["value"]["p"] for row in labels()} <= {0.4, 0.5, 0.6}


# ------------------------------------------------------------------------------------------------ agreement


def agreement(critic: str, capsys: Any, *more: str) -> dict[str, Any]:
    assert (
        main(["label", "agreement", "pairs.jsonl", "--critic", critic, "--budget", "2M tokens", "--json", *more]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    return result | {"by": {(row["measure"], row["who"]): row for row in result["rows"]}}


def test_agreement_of_a_good_critic_beside_the_longer_reply(data: Path, capsys: Any) -> None:
    Path("words.yaml").write_text("no-harm: [Hurt nobody., Be harmless.]\n")
    Path("c.yaml").write_text(
        "name: c\nprinciples:\n  - {id: no-harm, dimension: harmless, severity: 5, text: No harm.}\n"
    )
    with served() as (critic, server):
        got = agreement(critic, capsys, "--repeats", "3", "--wordings", "words.yaml", "-c", "c.yaml")
        assert server.count == 2 * N * (3 + 2)
    row = got["by"]["agreement", critic]
    assert (row["value"], row["n"], row["missing"], row["ties"]) == (1.0, N, 0, 0) and row["low"] < 0.95
    assert got["prompts"] == N // 2
    assert got["by"]["agreement", "longer wins"]["value"] == 0.0
    assert got["by"]["repeats", critic]["value"] == got["by"]["wordings", critic]["value"] == 1.0
    assert got["by"]["position_bias", critic]["value"] == pytest.approx(0)
    cost = got["cost"]
    assert (cost["labels"], cost["calls"]) == (N * 5, 2000) and cost["prompt_tokens"] > 0 and cost["usd"] is None


@pytest.mark.parametrize("rule", [mute, always_first])
def test_a_critic_that_is_mute_or_constant_comes_out_at_chance(data: Path, capsys: Any, rule: Rule) -> None:
    with served(rule) as (critic, _):
        got = agreement(critic, capsys)
    for measure in ("agreement", "repeats"):
        row = got["by"][measure, critic]
        assert row["value"] == 0.5 and row["low"] < 0.4 and row["high"] > 0.6
        assert row["missing" if rule is mute else "ties"] == N
    if rule is always_first:
        assert got["by"]["position_bias", critic]["value"] > 0.8 and got["by"]["order_flips", critic]["value"] == 1.0


def test_agreement_of_a_judge_by_name_and_of_some_rows(data: Path, capsys: Any) -> None:
    assert main(["label", "agreement", "pairs.jsonl", "--judge", "rule:length:3", "--rows", "10"]) == 0
    said = capsys.readouterr().out
    assert "10 pairs of" in said and "longer wins" in said and "n = 10" in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("nobody: [x]", r"words.yaml:1: hhh has no principle 'nobody'"),
        ("- x", "wordings are"),
        ("no-harm: x", "list of texts"),
    ],
)
def test_wordings_are_checked(data: Path, capsys: Any, words: str, text: str) -> None:
    Path("words.yaml").write_text(words)
    assert main(["label", "agreement", "pairs.jsonl", "--wordings", "words.yaml"]) == 2
    assert text in capsys.readouterr().err


def test_a_file_without_pairs_is_refused(capsys: Any) -> None:
    Path("pairs.jsonl").write_text('{"text": "x"}\n')
    assert ai("apprentice") == 2
    assert "no rows of two replies" in capsys.readouterr().err


def test_a_row_that_cannot_be_read_is_named_or_counted(capsys: pytest.CaptureFixture[str]) -> None:
    good = [{"prompt": f"say {i}", "chosen": "yes , gladly", "rejected": "no"} for i in range(3)]
    Path("cut.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good) + '{"prompt": "a", "cho')
    order = ["label", "agreement", "cut.jsonl", "--judge", "rule:length:1", "--json"]
    assert main(order) == 2
    assert "cut.jsonl:4: not valid JSON" in capsys.readouterr().err
    assert main([*order, "--skip-bad-rows"]) == 0
    assert json.loads(capsys.readouterr().out)["not_read"] == 1


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["agreement", "pairs.jsonl", "--judge", "exact", "--repeats", "5"], "--repeats is for critics"),
        (
            ["agreement", "pairs.jsonl", "--judge", "exact", "--wordings", "w", "--critic", "x"],
            "--wordings, --critic is",
        ),
        (["agreement", "pairs.jsonl", "--judge", "gold"], "gold is the truth of the apprentice's world"),
        (["ai", "pairs.jsonl", "-o", "out", "--cot", "--how", "pointwise"], "--how pointwise judges each by itself"),
        (["ai", "pairs.jsonl", "-o", "out", "--clamp", "0.6", "0.4"], "LOW is below 0.5 and HIGH above it"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", *argv]) == 2
    assert told in capsys.readouterr().err

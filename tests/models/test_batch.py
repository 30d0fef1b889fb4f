"""Batches: the same replies as without, each row once, taken up again by id whatever stopped the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.errors import BudgetReached, InputError, MissingResource
from fairlead.exchange import system, user
from fairlead.models import Batch, Budget, CapabilityError, Sampling, open_model
from fairlead.models.remote import Limits
from support.batches import Batching
from support.fakes import Echo, Fault

QUICK = Limits(backoff=0.01, backoff_cap=0.05, attempts=3)
ALL = pytest.mark.parametrize("provider", ["openai", "openai-responses", "anthropic"])
PROMPTS = [
    [system("be kind"), user("good day")],
    [user("be long")],
    [user("filter me")],
    [user("worst")],
    [user("good day")],
]


def opened(provider: str, server: Batching, **more):
    url = server.url + ("" if provider == "anthropic" else "/v1")
    return open_model(f"{provider}/echo@{url}", limits=QUICK, **more)


def quick(folder: Path, **more) -> Batch:
    return Batch(folder, **{"poll": 0.01, **more})


@ALL
def test_a_batch_gives_what_single_calls_give(provider: str, tmp_path: Path) -> None:
    sampling = Sampling(n=2, max_tokens=9)
    told: list[int] = []
    with Batching(Echo()) as server:
        model = opened(provider, server)
        alone = opened(provider, server).generate([p for p in PROMPTS if p[-1].text != "worst"], sampling)
        asked = server.count
        got = model.generate(PROMPTS, sampling, batch=quick(tmp_path), on_replies=lambda row, replies: told.append(row))
        assert server.count - asked == (1 if provider == "anthropic" else 2), "one job, not one request for each row"
    assert [len(group) for group in got] == [2] * 5 and told == list(range(5))
    assert all(r.finish == "error" and "this row is refused" in r.error for r in got[3])
    assert [got[0], got[1], got[2], got[4]] == alone
    assert model.spent.completion_tokens == sum(r.usage.completion_tokens for group in alone for r in group)


@ALL
def test_a_program_that_was_stopped_takes_up_its_batch(provider: str, tmp_path: Path) -> None:
    prompts = [[user(f"number {i}")] for i in range(20)]
    with Batching(Echo()) as server:
        server.looks = 10**9
        with pytest.raises(MissingResource, match="is not done .* takes it up again"):
            opened(provider, server).generate(prompts, Sampling(max_tokens=9), batch=quick(tmp_path, wait=0.05))
        server.looks = 0
        model = opened(provider, server)
        got = model.generate(prompts, Sampling(max_tokens=9), batch=quick(tmp_path))
        assert [r.text for (r,) in got] == [f"number {i} #0" for i in range(20)]
        assert len(server.batches) == 1 and model.spent.calls == 20
        fetched, free = server.fetched, opened(provider, server)
        assert free.generate(prompts, Sampling(max_tokens=9), batch=quick(tmp_path)) == got
        assert (len(server.batches), server.fetched, free.spent.calls) == (1, fetched, 0), "kept on disk"
        opened(provider, server).generate(prompts, Sampling(max_tokens=8), batch=quick(tmp_path))
        assert len(server.batches) == 2, "another request is another batch"


@pytest.mark.parametrize("provider", ["openai", "openai-responses"])
def test_a_handing_over_whose_end_nobody_heard_is_looked_up(provider: str, tmp_path: Path) -> None:
    """The server makes the batch and the connection breaks: it is found by its mark and not made twice."""

    class Deaf(Batching):
        pass

    with Deaf(Echo()) as server:

        def plan(i: int, body: bytes) -> Fault | None:
            if b"completion_window" in body and not server.batches:
                row = json.loads(body)
                server.rows["batch_0"] = [json.loads(x) for x in server.files[row["input_file_id"]].splitlines()]
                server.batches["batch_0"] = {
                    "id": "batch_0", "object": "batch", "status": "validating", "created_at": 0, **row,
                }  # fmt: skip
                return Fault(kind="reset")
            return None

        server.plan = plan
        got = opened(provider, server).generate([[user("a")], [user("b")]], batch=quick(tmp_path))
    assert [r.text for (r,) in got] == ["a #0", "b #0"] and list(server.batches) == ["batch_0"]


def test_where_it_cannot_be_looked_up_nothing_is_paid_twice(tmp_path: Path) -> None:
    with Batching(Echo(), lambda i, body: Fault(kind="reset")) as server:
        model = opened("anthropic", server)
        with pytest.raises(MissingResource, match=r"may have been handed over.*write its id into (\S+)") as caught:
            model.generate([[user("a")]], batch=quick(tmp_path))
        assert server.count == 1
        server.plan = lambda i, body: None
        with pytest.raises(MissingResource, match="may have been handed over"):
            opened("anthropic", server).generate([[user("a")]], batch=quick(tmp_path))
        (note,) = tmp_path.glob("*.json")
        assert str(note) in str(caught.value)
        note.unlink()  # as the message says where the console shows none
        ((reply,),) = opened("anthropic", server).generate([[user("a")]], batch=quick(tmp_path))
    assert reply.text == "a #0" and len(server.batches) == 1


@ALL
def test_rows_that_are_lost_or_late_are_errors_of_their_own(provider: str, tmp_path: Path) -> None:
    with Batching(Echo()) as server:
        server.lost, server.expired = {"row-1-0"}, {"row-2-0"}
        got = opened(provider, server).generate([[user(x)] for x in "abcd"], batch=quick(tmp_path))
    assert [r.finish for (r,) in got] == ["stop", "error", "error", "stop"]
    assert "no result" in got[1][0].error and ("expired" in got[2][0].error or "in time" in got[2][0].error)


def test_a_batch_that_fails_as_a_whole_says_why(tmp_path: Path) -> None:
    with Batching(Echo()) as server, pytest.raises(InputError, match="line 2: not a model"):
        server.failed = "not a model"
        opened("openai", server).generate([[user("a")]], batch=quick(tmp_path))


@ALL
def test_passing_faults_are_tried_again(provider: str, tmp_path: Path) -> None:
    with Batching(Echo(), lambda i, body: Fault(429) if i == 0 else None) as server:
        got = opened(provider, server).generate([[user("a")]], batch=quick(tmp_path))
    assert got[0][0].text == "a #0" and len(server.batches) == 1


@ALL
def test_the_budget_is_held_before_anything_is_handed_over(provider: str, tmp_path: Path) -> None:
    prompts = [[user(f"number {i}")] for i in range(50)]
    with Batching(Echo(words=10)) as server:
        with pytest.raises(BudgetReached):
            opened(provider, server, budget=Budget(tokens=900)).generate(
                prompts, Sampling(max_tokens=20), batch=quick(tmp_path)
            )
        assert server.count == 0 and not list(tmp_path.iterdir())
        budget = Budget(tokens=10_000)
        opened(provider, server, budget=budget).generate(prompts, Sampling(max_tokens=20), batch=quick(tmp_path))
    assert budget.spent.tokens == 50 * (2 + 10) and budget.spent.unsure == 0


def test_large_jobs_are_cut_to_the_providers_limits(tmp_path: Path, monkeypatch) -> None:
    from fairlead.models.batch_ends import OpenAIBatches

    monkeypatch.setattr(OpenAIBatches, "most_rows", 3)
    with Batching(Echo()) as server:
        got = opened("openai", server).generate([[user(f"n {i}")] for i in range(8)], batch=quick(tmp_path))
        assert sorted(len(rows) for rows in server.rows.values()) == [2, 3, 3]
    assert [r.text for (r,) in got] == [f"n {i} #0" for i in range(8)]


def test_who_has_no_batches_says_so(tmp_path: Path) -> None:
    with Batching(Echo()) as server, pytest.raises(CapabilityError, match="batch"):
        opened("vllm", server).generate([[user("a")]], batch=quick(tmp_path))

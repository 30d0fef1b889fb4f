"""Several servers as one model, over real HTTP on loopback: one that fails is set aside, and no prompt is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import user
from fairlead.feedback import fleet as fleets
from fairlead.feedback.fleet import Fleet, endpoints, open_fleet
from fairlead.models import Sampling
from fairlead.models.remote import Limits
from support.fakes import Echo, Fault, Faulty

QUICK = Limits(attempts=2, timeout=5, deadline=10, backoff=0.01)
SAMPLING = Sampling(max_tokens=4)


@pytest.fixture
def servers() -> Iterator[Callable[..., list[Faulty]]]:
    with ExitStack() as stack:

        def make(*plans: Callable[[int, bytes], Fault | None]) -> list[Faulty]:
            return [stack.enter_context(Faulty(Echo(), plan)) for plan in plans]  # type: ignore[misc]

        yield make


def well(i: int, body: bytes) -> Fault | None:
    return None


def down(i: int, body: bytes) -> Fault | None:
    return Fault(500)


def opened(servers: list[Faulty], said: list[str]) -> Fleet:
    spec = "openai/echo@" + ",".join(f"{server.url}/v1" for server in servers)
    fleet: Any = open_fleet(spec, limits=QUICK, say=said.append)
    return fleet


def prompts(n: int, word: str = "say") -> list[Any]:
    return [(user(f"{word} {i}"),) for i in range(n)]


def test_a_spec_names_its_servers() -> None:
    assert endpoints("openai/a@http://x:1/v1, http://y:2/v1") == ["openai/a@http://x:1/v1", "openai/a@http://y:2/v1"]
    assert endpoints("apprentice") == ["apprentice"]
    assert endpoints("openai/a@http://x:1/v1") == ["openai/a@http://x:1/v1"]
    for bad in ("openai/a@http://x/v1,http://x/v1", "openai/a@http://x/v1,"):
        with pytest.raises(InputError, match="named twice, or not at all"):
            endpoints(bad)


def test_a_failing_server_is_set_aside_and_its_prompts_go_to_the_other(servers: Any) -> None:
    said: list[str] = []
    two = servers(down, well)
    fleet = opened(two, said)
    for turn in range(3):
        got = fleet.generate(prompts(6, f"turn {turn}"), SAMPLING)
        assert [r[0].text for r in got] == [f"turn {turn} {i} #0" for i in range(6)]
    assert len(said) == 1 and two[0].url in said[0] and "1 of 2 servers go on" in said[0] and "500" in said[0]
    assert two[0].count == 6 * QUICK.attempts and two[1].count == 18  # asked once more by no later call


def test_a_server_that_dies_in_the_middle_loses_nothing(servers: Any) -> None:
    said: list[str] = []
    heard: dict[int, str] = {}
    two = servers(lambda i, body: Fault(500) if i >= 3 else None, well)
    fleet = opened(two, said)
    got = fleet.generate(prompts(8), SAMPLING, on_replies=lambda row, r: heard.update({row: r[0].text}))
    assert [r[0].text for r in got] == [f"say {i} #0" for i in range(8)] == [heard[i] for i in range(8)]
    fleet.generate(prompts(8, "more"), SAMPLING)
    fleet.generate(prompts(8, "again"), SAMPLING)
    assert len(said) == 1 and two[0].url in said[0]


def test_a_prompt_that_fails_everywhere_has_no_answer_and_harms_no_server(servers: Any) -> None:
    said: list[str] = []
    poison = lambda i, body: Fault(500) if b"poison" in body else None  # noqa: E731
    fleet = opened(servers(poison, poison), said)
    asked = prompts(4) + prompts(1, "poison") + prompts(2, "rest")
    got = fleet.generate(asked, SAMPLING)
    assert [r[0].finish for r in got] == ["stop"] * 4 + ["error"] + ["stop"] * 2
    assert fleet.generate(prompts(1, "poison"), SAMPLING)[0][0].finish == "error"  # alone, too: the servers are asked
    assert not said


def test_with_no_server_left_the_fleet_says_so(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    broken = [True]
    flaky = lambda i, body: Fault(500) if broken[0] else None  # noqa: E731
    fleet = opened(servers(flaky, flaky), said)
    with pytest.raises(MissingResource, match="no server is left that answers"):
        fleet.generate(prompts(2), SAMPLING)
    assert len(said) == 2
    broken[0] = False
    with pytest.raises(MissingResource):  # set aside for a minute
        fleet.generate(prompts(2), SAMPLING)
    now = fleets.time.monotonic()
    monkeypatch.setattr(fleets.time, "monotonic", lambda: now + fleets.PAUSE_S + 1)
    assert fleet.generate(prompts(1), SAMPLING)[0][0].finish == "stop"  # and then tried again


def test_calls_go_to_the_least_busy(servers: Any) -> None:
    fleet = opened(servers(well, well, well), [])
    taken = [fleet._take(None, 10) for _ in range(3)]
    assert len({id(server) for server in taken}) == 3
    fleet._give(taken[1], 10)
    assert fleet._take(taken[0], 1) is taken[1]
    assert fleet.spent.calls == 0 and len(fleet) == 3

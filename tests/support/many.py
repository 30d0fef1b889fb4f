"""Many calls at once against a server that fails one in ten of them, each kind of failure in turn."""

from __future__ import annotations

from collections import Counter

from fairlead.errors import BudgetReached
from fairlead.exchange import user
from fairlead.models import Budget, Sampling, Spend, open_model
from fairlead.models.remote import Limits, RemoteModel
from support.bodies import error_body
from support.fakes import Echo, Fault, Faulty

FAULTS = ("429", "500", "cut", "malformed", "filter", "hang")


def opened(provider: str, server: Faulty, limits: Limits, **more: object) -> RemoteModel:
    url = server.url + ("" if provider == "anthropic" else "/v1")
    return open_model(f"{provider}/echo@{url}", limits=limits, **more)  # type: ignore[arg-type, return-value]


def fault(kind: str, provider: str) -> Fault:
    """One failure in the provider's own form."""
    if kind == "429":
        return Fault(429, error_body(provider, "slow down", "rate_limit_error"), (("retry-after", "0.05"),))
    if kind == "500":
        return Fault(500, error_body(provider, "something broke", "api_error"))
    if kind == "filter":
        return Fault(400, error_body(provider, "flagged", "invalid_request_error", code="content_filter"))
    return Fault(kind=kind)


class Watched(Budget):
    """A budget that notes the most that was ever spent and reserved together."""

    most = 0.0

    def try_reserve(self, worst: Spend) -> int | None:
        ticket = super().try_reserve(worst)
        with self._lock:
            held = sum(self._amount(s) for s in self._reserved.values())
            self.most = max(self.most, self._amount(self.spent) + held)
        return ticket


def ask_with_faults(provider: str, calls: int) -> None:
    """None lost, none twice, and the server's own count of what it answered stays within the budget."""
    kinds = [k for k in FAULTS if provider != "anthropic" or k != "filter"]  # that format has no such error
    # one request in ten fails, counted as they arrive, so that tries again may fail too
    plan = lambda i, body: fault(kinds[i // 10 % len(kinds)], provider) if i % 10 == 3 else None  # noqa: E731
    # an answer that is only slow must not be taken for one that hangs: on a busy machine it would be asked for twice
    patience = 6.0 if calls <= 100 else 20.0
    limits = Limits(concurrency=32, attempts=20, timeout=patience, deadline=900.0, backoff=0.01, backoff_cap=0.05)
    prompts = [[user(f"number {i}")] for i in range(calls)]

    # enough for all, though a hang or a torn answer is booked at its worst
    echo, budget = Echo(words=7), Watched(tokens=calls * 120)
    with Faulty(echo, plan, hang=1.5 * patience) as server:
        model = opened(provider, server, limits, budget=budget)
        replies = [reply for (reply,) in model.generate(prompts, Sampling(max_tokens=20))]
    filtered = [i for i, reply in enumerate(replies) if reply.finish == "filter"]
    for i, reply in enumerate(replies):
        assert reply.finish == "filter" or (reply.finish, reply.text) == ("stop", f"number {i} #0"), (i, reply)
    answered = Counter(text for text, _ in echo.asked)
    assert set(answered) == {f"number {i}" for i in range(calls) if i not in filtered}, "none lost"
    planned = [kinds[i // 10 % len(kinds)] for i in range(server.count) if i % 10 == 3]
    assert server.count == len(echo.asked) + len(planned) and len(filtered) == planned.count("filter")
    assert len(planned) >= calls // 10 and set(planned) >= set(kinds if calls >= 60 else ())
    assert budget.most <= budget.limit and budget.used <= budget.limit
    _each_once(answered, budget.spent.unsure - sum(kind in ("hang", "cut", "malformed") for kind in planned))

    # not enough: it ends, and what the server gave out is what was booked, below the limit (hangs would only cost time)
    kinds.remove("hang")
    echo, budget = Echo(words=7), Watched(tokens=calls * 12)
    with Faulty(echo, plan, hang=1.5 * patience) as server:
        model = opened(provider, server, limits, budget=budget)
        try:
            model.generate(prompts, Sampling(max_tokens=20))
        except BudgetReached as error:
            kept = [group for group in error.replies if group]  # type: ignore[attr-defined]
        else:
            raise AssertionError("the budget should have been reached")
    given_out = sum(2 + 7 for _ in echo.asked)  # the server's own count: two words in, seven out
    assert given_out <= budget.used <= budget.limit and budget.most <= budget.limit
    answered = Counter(text for text, _ in echo.asked)
    planned = [kinds[i // 10 % len(kinds)] for i in range(server.count) if i % 10 == 3]
    late = budget.spent.unsure - sum(kind in ("cut", "malformed") for kind in planned)
    _each_once(answered, late)
    had = len([r for (r,) in kept if r.finish == "stop"])
    assert len(answered) - late <= had <= len(answered), "what was answered is not lost either"


def _each_once(answered: Counter[str], given_up: int) -> None:
    """Each prompt was answered once by the server's own count.

    `given_up`: tries beyond the planned hangs that outlasted the client's patience, and were booked at their worst: on
    a machine that stalls for so long there are some, and each may be asked once more; else there is none.
    """
    twice = sum(answered.values()) - len(answered)
    assert twice <= given_up, f"{twice} answered twice, {given_up} given up on"

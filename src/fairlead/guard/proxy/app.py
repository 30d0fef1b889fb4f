"""The proxy as an ASGI application: who asks, whether there is room, which format; then one exchange (exchange.py).

Plain ASGI. Nothing here reads what is asked or answered; everything that goes wrong becomes a well-formed answer with
a reason, in the words of the format that was spoken.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias

import orjson

from fairlead.guard.audit import AuditClosed, AuditLog
from fairlead.guard.proxy.exchange import Exchange, exchange, overdue
from fairlead.guard.proxy.headers import BadHead, Head, read_head, too_many
from fairlead.guard.proxy.metrics import Metrics
from fairlead.guard.proxy.out import CLOSE, Out, Send
from fairlead.guard.proxy.protocol import ABORT, WATCH
from fairlead.guard.proxy.setup import Account, Setup
from fairlead.guard.proxy.tracing import Tracer
from fairlead.guard.proxy.upstream import Broken
from fairlead.guard.proxy.watchdog import Watchdog
from fairlead.guard.tally import Tally
from fairlead.guard.wire import FORMATS, models
from fairlead.guard.wire.asked import Refused
from fairlead.guard.wire.events import Failed
from fairlead.guard.wire.format import Format

log = logging.getLogger("fairlead.guard")

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]

_PLAIN: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)


class Turned(Exception):
    """A request that is not taken. `close` ends the connection, since its body was not read."""

    def __init__(self, status: int, sentence: str, why: str, *, after: int = 0, close: bool = False) -> None:
        super().__init__(sentence)
        self.status, self.why, self.after, self.close = status, why, after, close


class App:
    """One worker. `setup` is what a reload replaces, whole; requests keep the one that they began with."""

    def __init__(self, setup: Setup, *, log: AuditLog | None = None, tracer: Tracer | None = None) -> None:
        self.setup = setup
        self.log = log
        self.tally = Tally()
        self.limits = setup.settings.limits
        self.metrics = Metrics()
        self.tracer = tracer
        self.in_flight = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        route, method = scope["path"], scope["method"]
        form = FORMATS.get(route)
        if form is not None and method == "POST":
            await self._asked(form, route, scope, receive, send)
        elif route == "/v1/models" and method == "GET":
            await self._models(scope, send)
        elif route in ("/healthz", "/readyz") and method in ("GET", "HEAD"):
            await self._health(route, send)
        else:
            known = form is not None or route in ("/v1/models", "/healthz", "/readyz")
            told = f"{method} is not served here" if known else "this is not served here"
            self.metrics.counts["turned_away", "no such route"] += 1
            await _plain(send, 405 if known else 404, _error("not_found", told))

    # ------------------------------------------------------------------------------------ one request

    async def _asked(self, form: Format, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        watch = scope[WATCH] = Watchdog(self.limits)
        out = Out(send, os.urandom(8).hex(), watch)
        account: Account | None = None
        one: Exchange | None = None
        self.in_flight += 1
        try:
            setup = self.setup
            head = self._head(scope)
            account = self._account(setup, head)
            account.in_flight += 1
            if scope["query_string"]:
                head = _query(head, scope["query_string"])
            raw = await self._body(head, receive)
            try:
                body = orjson.loads(raw)
            except orjson.JSONDecodeError:
                raise Refused(400, "", "the body is no JSON, or no UTF-8") from None
            allow = account.allow.anew()
            asked = form.read_request(body, allow)
            if head.beta and not allow.lets("beta"):
                raise Refused(400, "beta", f"the beta header {head.beta[:60]!a} asks for what nobody looks at here")
            best = account.book.plan.best
            if best is not None and asked.n != 1:
                raise Refused(400, "n", f"the best of {best.n} replies is chosen here: ask for one alternative")
            one = Exchange(
                out.id, form, asked, account, head, out, watch, self.metrics, self.tally, self.log, raw, began,
                setup.settings,
            )  # fmt: skip
            if self.tracer is None:
                await exchange(one)
            else:
                with self.tracer(route, head.trace, one):
                    await exchange(one)
        except Turned as turned:
            self.metrics.counts["turned_away", turned.why] += 1
            more = [(b"retry-after", b"%d" % turned.after)] if turned.after else []
            more += [CLOSE] if turned.close else []
            kind = _KINDS.get(turned.status, "invalid_request")
            retry = turned.status in (429, 503)
            await out.whole(turned.status, _dump(form.error(turned.status, str(turned), kind)), more, retry=retry)
        except Refused as refused:
            self.metrics.counts["turned_away", "field" if refused.field else "request"] += 1
            answer = form.error(refused.status, refused.sentence, "invalid_request", refused.field)
            await out.whole(refused.status, _dump(answer), retry=False)
        except AuditClosed:
            self.metrics.counts["turned_away", "audit log"] += 1
            told = "the audit log cannot be written, and nothing is let out without it"
            await self._broke(form, out, Broken(503, told, kind="overloaded"), one)
        except Broken as broken:
            if not out.status:
                self.metrics.counts["upstream_failures", str(broken.status)] += 1
            elif broken.kind != "check_failed":
                self.metrics.counts["upstream_failures", "in the stream"] += 1
            await self._broke(form, out, broken, one)
        except asyncio.CancelledError:
            if not watch.why:
                raise
            await self._cancelled(form, out, watch, scope.get(ABORT), one)
        except Exception as error:  # noqa: BLE001  # the last line of defence: told by its kind, never by its text
            log.error("request %s failed inside: %s at %s", out.id, type(error).__name__, _where(error))
            self.metrics.counts["turned_away", "fault inside"] += 1
            told = f"a fault inside the guard ({type(error).__name__}); its log knows the request by this id"
            await self._broke(form, out, Broken(500, told, again=False), one)
        finally:
            watch.done()
            self.in_flight -= 1
            if account is not None:
                account.in_flight -= 1
            name = "" if account is None else account.name
            self.metrics.counts["requests", route, name, str(out.status), one.decision if one else ""] += 1
            self.metrics.took("seconds", route, time.perf_counter() - began)

    def _head(self, scope: Scope) -> Head:
        if self.draining:
            raise Turned(503, "the guard is being stopped", "draining", after=self.limits.retry_after, close=True)
        if self.in_flight > self.limits.in_flight:
            told = f"{self.limits.in_flight:,} requests are in flight already"
            raise Turned(503, told, "full", after=self.limits.retry_after, close=True)
        if self.log is not None and not self.log.accepting:
            told = "the audit log cannot be written, and nothing is let out without it"
            raise Turned(503, told, "audit log", after=self.limits.retry_after, close=True)
        counted = ABORT in scope  # by our own protocol, while it read them
        many = None if counted else too_many(scope["headers"], self.limits.headers, self.limits.header)
        head = many or read_head(scope["headers"])
        if isinstance(head, BadHead):
            raise Turned(head.status, head.sentence, "headers", close=True)
        return head

    def _account(self, setup: Setup, head: Head) -> Account:
        if head.page and setup.anyone is not None:
            # without keys any page that is open in a browser here could spend the operator's money
            told = "a page in a browser may not ask a guard without keys; give it --tenants"
            raise Turned(403, told, "page", close=True)
        account = setup.account(head.key)
        if account is None:
            told = (
                "this key is not known here" if head.key else "a key is needed: authorization: Bearer …, or x-api-key"
            )
            raise Turned(401, told, "key", close=True)
        if account.most is not None and account.in_flight >= account.most:
            told = f"{account.most:,} requests of this key are in flight already"
            raise Turned(429, told, "tenant full", after=self.limits.retry_after, close=True)
        if account.pace is not None and (wait := account.pace.take(time.monotonic())):
            told = f"over {account.pace.per_minute:,.0f} requests a minute"
            raise Turned(429, told, "rate", after=max(1, round(wait + 0.5)), close=True)
        return account

    async def _body(self, head: Head, receive: Receive) -> bytes:
        most = self.limits.body
        if head.length is not None and head.length > most:
            raise Turned(413, f"the body is longer than {most:,} bytes", "body", close=True)
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            data: bytes = message["body"]
            if len(data) > most:
                raise Turned(413, f"the body is longer than {most:,} bytes", "body", close=True)
            return data
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message["body"])
            size += len(message["body"])
            if size > most:
                raise Turned(413, f"the body is longer than {most:,} bytes", "body", close=True)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()

    async def _broke(self, form: Format, out: Out, broken: Broken, one: Exchange | None) -> None:
        """What broke before the answer began is a status; a stream that has begun ends well-formed, with the reason."""
        if not out.status:
            told = form.error(broken.status, str(broken), broken.kind)
            await out.whole(broken.status, _dump(told), broken.headers, retry=broken.again)
        elif one is not None and one.writer is not None and not out.ended:
            await out.end(one.writer.write(Failed(str(broken), broken.status)) + one.writer.end())

    async def _cancelled(
        self, form: Format, out: Out, watch: Watchdog, abort: Callable[[], None] | None, one: Exchange | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        if watch.why in ("gone", "client"):
            self.metrics.counts["turned_away", _LEFT[watch.why]] += 1
            if watch.why == "client" and abort is not None:
                abort()  # closing would wait until the client has read what it does not read
            return
        self.metrics.counts["upstream_failures", watch.why] += 1
        watch.done()
        await self._broke(form, out, overdue(watch.why, self.limits), one)

    # ------------------------------------------------------------------------------------ the rest

    async def _models(self, scope: Scope, send: Send) -> None:
        began = time.perf_counter()
        watch = scope[WATCH] = Watchdog(self.limits)
        out = Out(send, os.urandom(8).hex(), watch)
        account: Account | None = None
        try:
            head = self._head(scope)
            account = self._account(self.setup, head)
            watch.now("first byte")
            async with asyncio.timeout(self.limits.idle):
                listed = await account.upstream.models(head)
            await out.whole(200, _dump(models.listed(models.read(listed))))
        except Turned as turned:
            self.metrics.counts["turned_away", turned.why] += 1
            kind = _KINDS.get(turned.status, "invalid_request")
            await out.whole(turned.status, _error(kind, str(turned)), retry=turned.status in (429, 503))
        except Broken as broken:
            self.metrics.counts["upstream_failures", str(broken.status)] += 1
            await out.whole(broken.status, _error(broken.kind, str(broken)), retry=broken.again)
        except TimeoutError:
            self.metrics.counts["upstream_failures", "stream"] += 1
            await out.whole(504, _error("upstream", "the model's server did not answer in time"))
        except asyncio.CancelledError:
            if not watch.why:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            left = watch.why in ("gone", "client")
            self.metrics.counts["turned_away" if left else "upstream_failures", _LEFT.get(watch.why, watch.why)] += 1
            if not left and not out.status:
                late = overdue(watch.why, self.limits)
                await out.whole(late.status, _error(late.kind, str(late)), retry=late.again)
        except Exception as error:  # noqa: BLE001  # as above: told by its kind alone
            log.error("request %s failed inside: %s at %s", out.id, type(error).__name__, _where(error))
            self.metrics.counts["turned_away", "fault inside"] += 1
            if not out.status:
                told = f"a fault inside the guard ({type(error).__name__}); its log knows the request by this id"
                await out.whole(500, _error("upstream", told), retry=False)
        finally:
            watch.done()
            name = "" if account is None else account.name
            self.metrics.counts["requests", "/v1/models", name, str(out.status), ""] += 1
            self.metrics.took("seconds", "/v1/models", time.perf_counter() - began)

    def busy(self) -> list[str]:
        """Why no new request would be taken; empty where one would."""
        full = self.in_flight >= self.limits.in_flight
        shut = self.log is not None and not self.log.accepting
        return [why for why, is_so in (("draining", self.draining), ("full", full), ("audit log", shut)) if is_so]

    async def _health(self, route: str, send: Send) -> None:
        """Alive; and ready, which a worker that is being stopped, is full or cannot write its log is not."""
        ready = route == "/healthz" or not self.busy()
        await _plain(send, 200 if ready else 503, b'{"ok":%s}' % (b"true" if ready else b"false"))


_LEFT = {"gone": "client left", "client": "client stalled"}
_KINDS = {401: "authentication", 403: "permission", 413: "too_large", 429: "rate_limit", 503: "overloaded"}


def _query(head: Head, query: bytes) -> Head:
    """Of the query nothing is sent on; what Anthropic's SDK puts there for betas counts as their header."""
    if query == b"beta=true":
        return head if head.beta else replace(head, beta="beta=true")
    raise Refused(400, "query", "parameters in the address are not read here; put them into the body")


def _where(error: BaseException) -> str:
    """File and line of a fault, for the log; its text may hold what was asked and stays out."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _error(kind: str, sentence: str) -> bytes:
    return _dump({"type": "error", "error": {"type": kind, "message": sentence}})


async def _plain(send: Send, status: int, body: bytes) -> None:
    headers = [*_PLAIN, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_dump = orjson.dumps

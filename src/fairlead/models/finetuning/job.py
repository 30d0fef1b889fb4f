"""One job from file to model, over crashes: what was done is kept before and after every step that costs something.

A step whose answer was lost may have happened. So every job carries a tag drawn before the first request, and before
a job is created again the provider's own list is asked for it: killed at any point and started again, the same order
is never submitted twice, and a file that has arrived is not sent again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import InputError, MissingResource
from fairlead.models.access import Transient
from fairlead.models.finetuning.protocol import Quote, Tuned, Tuner, Tuning, Upload

T = TypeVar("T")
Say: TypeAlias = Callable[[str], None]
Keep: TypeAlias = Callable[["Progress"], None]
Approve: TypeAlias = Callable[[Quote | None], None]
Sleep: TypeAlias = Callable[[float], None]
Step: TypeAlias = Literal["new", "sending", "sent", "creating", "created"]


class Pace(BaseModel):
    """How patiently a provider is asked. Times in seconds.

    A job is polled after `poll`, then after times that grow by `growth` up to `poll_cap`. A request that failed for a
    reason that may pass is made again after a random time up to `backoff * 2^try`, at most `backoff_cap`, or what the
    server's retry-after says; `attempts` times in a row, but for the polls of a job, which go on for `patience`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    poll: float = Field(5.0, ge=0)
    growth: float = Field(1.5, ge=1)
    poll_cap: float = Field(60.0, ge=0)
    backoff: float = Field(1.0, ge=0)
    backoff_cap: float = Field(60.0, ge=0)
    attempts: int = Field(6, ge=1)
    patience: float = Field(3600.0, gt=0)
    reading: float = Field(1800.0, gt=0)  # for the provider to read a file through


PATIENT = Pace()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an order is. `order` is a hash of what was asked, `tag` names the job at the provider."""

    order: str
    tag: str
    step: Step = "new"
    file_id: str = ""
    job_id: str = ""
    state: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Progress:
        return cls(**data)


def submit(
    tuner: Tuner,
    tuning: Tuning,
    data: Upload,
    progress: Progress,
    keep: Keep,
    approve: Approve,
    *,
    say: Say = lambda text: None,
    pace: Pace = PATIENT,
    sleep: Sleep = time.sleep,
) -> Progress:
    """Bring an order to a job at the provider; an order that has one is left as it is.

    `keep` writes the progress down before it returns. `approve` hears the provider's own quote (None where it gives
    none) before a job is created, and raises where it is too much.
    """
    if progress.job_id:
        return progress
    again = _Again(pace, say, sleep)
    if progress.step == "creating":
        say(f"{tuner.name}: an earlier run was stopped while it submitted this job; looking for it there")
        found = _find(tuner, progress.tag, again)
        if found is not None:
            return _created(progress, found, keep, say, tuner)
    again(lambda: tuner.check(tuning))
    progress = _sent(tuner, data, progress, keep, say, again)
    approve(again(lambda: tuner.quote(progress.file_id, tuning)))
    progress = replace(progress, step="creating")
    keep(progress)
    return _created(progress, _create(tuner, tuning, progress, again), keep, say, tuner)


def _sent(tuner: Tuner, data: Upload, progress: Progress, keep: Keep, say: Say, again: _Again) -> Progress:
    """The file is at the provider, and has been read through by it."""
    for _ in range(2):
        if not progress.file_id:
            progress = replace(progress, step="sending")
            keep(progress)
            say(f"{tuner.name}: sending {data.rows:,} rows, {data.bytes:,} bytes, sha256 {data.sha256[:16]}…")
            file_id = again(lambda: tuner.upload(data))
            progress = replace(progress, step="sent", file_id=file_id)
            keep(progress)
        began, pause = time.monotonic(), again.pace.poll
        file_id = progress.file_id
        while (ready := again(lambda file_id=file_id: tuner.ready(file_id, data))) is False:  # type: ignore[misc]
            if time.monotonic() - began > again.pace.reading:
                raise MissingResource(
                    f"{tuner.name}: the provider has not read the file through in {again.pace.reading:,.0f} s; the "
                    "same command goes on from here"
                )
            again.sleep(pause)
            pause = min(pause * again.pace.growth, again.pace.poll_cap)
        if ready:
            return progress
        say(f"{tuner.name}: the file {progress.file_id} is no longer there; it is sent again")
        progress = replace(progress, step="new", file_id="")
    raise MissingResource(f"{tuner.name}: the provider does not keep the file that was sent")


def _create(tuner: Tuner, tuning: Tuning, progress: Progress, again: _Again) -> Tuned:
    """Create the job; after an answer that was lost, look for it before another try."""
    last: Transient | None = None
    for attempt in range(again.pace.attempts):
        if last is not None:
            again.wait(attempt - 1, last)
            found = _find(tuner, progress.tag, again)
            if found is not None:
                return found
        try:
            return tuner.create(progress.file_id, tuning, progress.tag)
        except Transient as error:
            last = error
            again.told(error)
    raise MissingResource(
        f"{tuner.name}: no job was created in {again.pace.attempts} tries ({last}); the file is there, and the same "
        "command goes on from here"
    )


def _find(tuner: Tuner, tag: str, again: _Again) -> Tuned | None:
    """The job of this tag. Looked for twice, since a list may lag behind what was just created."""
    found = again(lambda: tuner.find(tag))
    if found is None:
        again.sleep(again.pace.poll)
        found = again(lambda: tuner.find(tag))
    return found


def _created(progress: Progress, job: Tuned, keep: Keep, say: Say, tuner: Tuner) -> Progress:
    progress = replace(progress, step="created", job_id=job.id, state=job.said)
    keep(progress)
    say(f"{tuner.name}: job {job.id} is {job.said}")
    return progress


def follow(
    tuner: Tuner,
    progress: Progress,
    keep: Keep,
    *,
    say: Say = lambda text: None,
    pace: Pace = PATIENT,
    sleep: Sleep = time.sleep,
) -> Tuned:
    """Poll a job until it is over, however it ends; `outcome` says what became of it.

    What passes (a broken connection, 429, 5xx) is waited out for `pace.patience` seconds; the job itself is waited for
    as long as it takes.
    """
    pause, said, quiet_since, failures = pace.poll, progress.state, time.monotonic(), 0
    while True:
        try:
            job = tuner.job(progress.job_id)
        except Transient as error:
            if time.monotonic() - quiet_since > pace.patience:
                raise MissingResource(
                    f"{tuner.name}: nothing was heard of job {progress.job_id} for {pace.patience:,.0f} s ({error}). "
                    "It may be running all the same; the same command asks for it again"
                ) from None
            sleep(error.wait if error.wait is not None else _jitter(pace, failures))
            failures += 1
            continue
        quiet_since, failures = time.monotonic(), 0
        if job.said != said:
            said, pause = job.said, pace.poll
            keep(replace(progress, state=said))
            left = f", about {job.left_s / 60:,.0f} min left" if job.left_s else ""
            say(f"{tuner.name}: job {job.id} is {said}{left}")
        if job.state not in ("waiting", "running"):
            return job
        sleep(pause)
        pause = min(pause * pace.growth, pace.poll_cap)


def outcome(tuner: Tuner, job: Tuned) -> str:
    """The name of the model a job made. Raises the failure as such: exit 2 where the user can mend it, else 4."""
    if job.state == "done":
        if not job.model:
            raise MissingResource(f"{tuner.name}: job {job.id} is done, but the provider names no model; ask it")
        return job.model
    why = f": {job.why}" if job.why else ", and the provider says no more"
    if job.state == "cancelled":
        raise MissingResource(f"{tuner.name}: job {job.id} was cancelled at the provider")
    if job.mine:
        raise InputError(f"{tuner.name}: the provider ended job {job.id} for a reason you can mend{why}")
    raise MissingResource(f"{tuner.name}: job {job.id} failed at the provider{why}")


@dataclass(frozen=True)
class _Again:
    """A request, and again where another try may help."""

    pace: Pace
    say: Say
    sleep: Sleep

    def __call__(self, ask: Callable[[], T]) -> T:
        for attempt in range(self.pace.attempts):
            try:
                return ask()
            except Transient as error:
                if attempt + 1 == self.pace.attempts:
                    raise MissingResource(
                        f"{error}, {self.pace.attempts} times in a row; the same command goes on from here"
                    ) from None
                self.told(error)
                self.wait(attempt, error)
        raise AssertionError("at least one attempt")

    def told(self, error: Transient) -> None:
        self.say(f"{error}; another try follows")

    def wait(self, attempt: int, error: Transient) -> None:
        self.sleep(error.wait if error.wait is not None else _jitter(self.pace, attempt))


def _jitter(pace: Pace, attempt: int) -> float:
    return random.uniform(0, min(pace.backoff * 2 ** min(attempt, 30), pace.backoff_cap))

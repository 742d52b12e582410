"""Accepts transfers: looks the key up, checks the request against the rules, records it, and drives it on.

A request that is refused here leaves nothing behind and does not use up its key. An accepted transfer is on record
before any money moves, and is finished even if nobody waits for it.
"""

import asyncio
from typing import assert_never

import structlog
from msgspec import Struct

from internal_transfer.domain.identifier import TransferId
from internal_transfer.domain.leg import Leg, legs_of
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.domain.request import TransferRequest, differing_fields
from internal_transfer.domain.rules import Admitted, Rules, check_permission, check_rules, daily_limit_exceeded
from internal_transfer.domain.transfer import OPEN, Facts, Hold, Status, Transfer
from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System
from internal_transfer.ports.transfer_store import (
    Accepted,
    DailyLimitExceeded,
    Event,
    IdTaken,
    KeyTaken,
    Proposal,
)
from internal_transfer.services.after_failures import leave_failed_turn
from internal_transfer.services.answer import Answer
from internal_transfer.services.completions import Completions
from internal_transfer.services.driver import Driver, Work
from internal_transfer.services.intake import Intake
from internal_transfer.services.policy_in_force import PolicyInForce
from internal_transfer.services.pressure import Pressure
from internal_transfer.services.reading import RecordReader
from internal_transfer.services.restore.restored_keys import KeyLookup

ID_DRAWS_MAX = 5
"""How often another id is drawn if one is taken; that happens only if two processes share a node."""

_log = structlog.get_logger(__name__)


class _Submission:
    """A request on its way through a batch: what its key stands for, what the rules say, and its answer."""

    __slots__ = ("admitted", "answer", "arrived", "hit", "legs", "request", "waiting", "work")

    def __init__(self, request: TransferRequest, waiting: asyncio.Future[Answer], arrived: float) -> None:
        self.request = request
        self.waiting = waiting
        self.arrived = arrived
        self.hit: KeyTaken | None = None
        self.admitted: Admitted
        self.legs: tuple[Leg, ...]
        self.work: Work | None = None
        self.answer: Answer | None = None

    def refuse(self, refusal: Refusal) -> None:
        self.answer = Answer(refusal=refusal)

    def release(self) -> None:
        """Gives the answer to the caller, if it still waits."""
        assert self.answer is not None
        if not self.waiting.done():
            self.waiting.set_result(self.answer)


class GatewayBounds(Struct, frozen=True, kw_only=True):
    """The length of the queue, the time that a request may wait in it, the size of a batch, and the batches at once.

    Nobody else takes a transfer for `acting_seconds` after it was accepted.
    """

    queue_most: int = 4096
    queue_seconds: float = 5.0
    batch_most: int = 512
    batches_at_once: int = 1
    acting_seconds: float = 3.0


class Gateway:
    """The role that accepts."""

    def __init__(
        self,
        ports: Ports,
        rules: Rules,
        bounds: GatewayBounds,
        *,
        keys: KeyLookup,
        driver: Driver,
        policies: PolicyInForce,
        pressure: Pressure,
        completions: Completions,
    ) -> None:
        self.rules = rules
        self._store = ports.store
        self._limiter = ports.limiter
        self._durability = ports.durability
        self._clock = ports.clock
        self._telemetry = telemetry = ports.telemetry
        self._keys = keys
        self._driver = driver
        self._policies = policies
        self._pressure = pressure
        self._completions = completions
        self._bounds = bounds
        self._intake: Intake[_Submission] = Intake(bounds.queue_most)
        self._reader = RecordReader(ports, most=bounds.queue_most)
        self._depth = telemetry.queue_depth.labels("gateway")
        self._accept_duration = telemetry.stage_duration.labels("accept")
        self._accept_size = telemetry.batch_size.labels("accept")

    async def submit(self, request: TransferRequest, *, wait_seconds: float) -> Answer:
        """Returns when the transfer is final, or after `wait_seconds`, but not before it is on record.

        Raises `Unavailable` if nothing was recorded and `OutcomeUnknown` if that is not known. Giving up on the answer
        does not take the request back.
        """
        answer = await self.offer(request)
        transfer = answer.transfer
        if wait_seconds > 0 and answer.refusal is None and transfer is not None and transfer.status in OPEN:
            return await self.wait(answer, wait_seconds)
        return answer

    def offer(self, request: TransferRequest) -> asyncio.Future[Answer]:
        """Does what `submit` does without waiting for the transfer to become final; fails with the same exceptions."""
        waiting = asyncio.get_running_loop().create_future()
        if not self._intake.offer(_Submission(request, waiting, self._clock.monotonic())):
            waiting.set_result(Answer(refusal=self._overloaded("queue_full")))
        return waiting

    async def run(self) -> None:
        """Works until `close()` is called and the queue is empty."""
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._reader.run())
            async with asyncio.TaskGroup() as working:
                for _ in range(self._bounds.batches_at_once):
                    working.create_task(self._work())
            self._reader.close()
            await reader

    def close(self) -> None:
        """Takes no more requests; `run` returns when those taken are answered."""
        self._intake.close()

    async def _work(self) -> None:
        while batch := await self._intake.take(self._bounds.batch_most):
            self._depth.set(len(self._intake))
            try:
                await self._process(batch)
            except OperatingFailureError as error:
                _fail(batch, error)
            except Exception as error:  # noqa: BLE001 - see below.
                # The outermost loop: a bug must not end the service, and it must not hide either.
                _log.exception("gateway_batch_failed", transfers=len(batch))
                self._telemetry.failures.labels("gateway", type(error).__name__).inc()
                _fail(batch, OutcomeUnknown(System.STORE, "the batch was not finished"))
            else:
                continue
            await leave_failed_turn(self._durability)

    async def _process(self, batch: list[_Submission]) -> None:
        started = self._clock.monotonic()
        fresh = self._drop_stale(batch, started)
        await self._look_up(fresh, settled=False)
        new = [item for item in fresh if item.hit is None]
        for item in new:
            self._check(item)
        await self._limit_rate([item for item in new if item.answer is None])
        refused = [item for item in new if item.answer is not None]
        await self._accept([item for item in new if item.answer is None])
        await self._look_twice(refused)
        self._accept_duration.observe(self._clock.monotonic() - started)
        self._accept_size.observe(len(batch))
        await self._go_on(fresh)
        await self._durability.durable()
        for item in batch:
            item.release()

    def _drop_stale(self, batch: list[_Submission], now: float) -> list[_Submission]:
        """Sheds requests that waited too long: their callers have given up, and nothing is recorded yet."""
        oldest = now - self._bounds.queue_seconds
        if batch[0].arrived >= oldest:
            return batch
        for item in batch:
            if item.arrived < oldest:
                item.refuse(self._overloaded("queue_too_slow"))
        return [item for item in batch if item.answer is None]

    def _overloaded(self, reason: str) -> Refusal:
        self._telemetry.sheds.labels(reason).inc()
        return Refusal(Code.SYSTEM_OVERLOADED, "too many requests are waiting", retry_after_seconds=1.0)

    async def _look_twice(self, refused: list[_Submission]) -> None:
        """Replaces a refusal by the transfer on record if an earlier attempt got through in the meantime."""
        if not refused:
            return
        try:
            await self._look_up(refused, settled=True)
        except OperatingFailureError as error:
            # The look-up waits for accepts of the same owners, and the one that hangs may be an earlier attempt.
            _fail(refused, OutcomeUnknown(error.system, error.message))
            return
        for item in refused:
            if item.hit is not None:
                item.answer = None

    async def _look_up(self, items: list[_Submission], *, settled: bool) -> None:
        keys = [(item.request.caller, item.request.key) for item in items]
        hits = await self._keys.by_keys(keys, settled=settled)
        for item, hit in zip(items, hits, strict=True):
            item.hit = hit

    def _check(self, item: _Submission) -> None:
        request, rules = item.request, self.rules
        checked = check_permission(request, rules) or check_rules(request, rules, self._policies.current)
        if isinstance(checked, Refusal):
            item.refuse(checked)
            return
        item.admitted = checked
        item.legs = legs_of(rules.account_types[request.source.type], rules.account_types[request.target.type])

    async def _limit_rate(self, items: list[_Submission]) -> None:
        """Refuses callers that ask too often, and sheds requests while the service is under pressure."""
        if not items:
            return
        try:
            waits = await self._limiter.take([item.request.caller for item in items])
        except OperatingFailureError:
            # The limiter protects the service, not the money, so requests go on without it (G13).
            waits = [0.0] * len(items)
        passed = 0
        for item, wait in zip(items, waits, strict=True):
            if wait > 0.0:
                item.refuse(Refusal(Code.RATE_LIMITED, "too many transfers", retry_after_seconds=wait))
            elif (shed := self._pressure.shed(item.legs, passed)) is not None:
                item.refuse(shed)
            else:
                passed += 1

    async def _accept(self, items: list[_Submission]) -> None:
        """Records the requests, and draws another id for those whose id is taken."""
        for _ in range(ID_DRAWS_MAX):
            if not items:
                return
            proposals = self._propose(items)
            outcomes = await self._store.accept(proposals)
            again: list[_Submission] = []
            for item, proposal, outcome in zip(items, proposals, outcomes, strict=True):
                match outcome:
                    case Accepted():
                        transfer = proposal.transfer
                        item.work = Work(transfer, Facts(Hold.ABSENT))
                        item.work.events.append(Event(transfer.id, 1, Status.REQUESTING, transfer.created_at, None))
                    case KeyTaken():
                        item.hit = outcome
                    case DailyLimitExceeded():
                        asset = self.rules.assets[item.request.source.asset]
                        item.refuse(daily_limit_exceeded(asset, outcome.remaining_units))
                    case IdTaken():
                        again.append(item)
                    case _:
                        assert_never(outcome)
            self._pressure.accepted(sum(item.work is not None for item in items))
            items = again
        if items:
            raise OutcomeUnknown(System.STORE, "no free transfer id; two processes draw under one node")

    def _propose(self, items: list[_Submission]) -> list[Proposal]:
        now = self._clock.now_ms()
        due = now + int(self._bounds.acting_seconds * 1000)
        proposals = []
        for item, transfer_id in zip(items, self._clock.new_ids(len(items)), strict=True):
            request = item.request
            transfer = Transfer(
                id=transfer_id,
                owner=request.caller,
                key=request.key,
                source=request.source,
                target=request.target,
                amount=item.admitted.units,
                memo=request.memo,
                legs=item.legs,
                created_at=now,
                updated_at=now,
                due_at=due,
            )
            proposals.append(Proposal(transfer, request.fingerprint(), item.admitted.limit.daily_units))
        return proposals

    async def _go_on(self, items: list[_Submission]) -> None:
        """Drives new transfers, and due ones that were asked for again, and puts together the answers to both."""
        works = {item.work.transfer.id: item.work for item in items if item.work is not None}
        replays: list[tuple[_Submission, KeyTaken]] = []
        now = self._clock.now_ms()
        for item in items:
            if item.hit is None:
                continue
            replays.append((item, item.hit))
            transfer = item.hit.transfer
            if transfer.status in OPEN and transfer.due_at <= now and transfer.id not in works:
                facts = Facts(expired=self._driver.is_expired(transfer))
                works[transfer.id] = Work(transfer, facts, scanned=True)
        if works:
            await self._driver.drive(list(works.values()))
            await self._catch_up([work for work in works.values() if work.lost])
        for item in items:
            if item.work is not None:
                item.answer = Answer(item.work.transfer, events=tuple(item.work.events))
        if replays:
            await self._replay(replays, works)

    async def _catch_up(self, lost: list[Work]) -> None:
        """Reads again the transfers that another process went on with in the meantime."""
        if not lost:
            return
        ids = [work.transfer.id for work in lost]
        transfers, events = await self._store.get(ids), await self._store.events(ids)
        for work, transfer, recorded in zip(lost, transfers, events, strict=True):
            work.transfer, work.events = transfer or work.transfer, recorded

    async def _replay(self, replays: list[tuple[_Submission, KeyTaken]], works: dict[TransferId, Work]) -> None:
        """Answers requests whose key existed, with the transfer as it is now or with the fields that differ."""
        events = await self._store.events([hit.transfer.id for _, hit in replays])
        for (item, hit), recorded in zip(replays, events, strict=True):
            work = works.get(hit.transfer.id)
            transfer = work.transfer if work is not None else hit.transfer
            fingerprint = item.request.fingerprint()
            differing = () if fingerprint == hit.fingerprint else differing_fields(hit.fingerprint, fingerprint)
            if not differing:
                item.answer = Answer(transfer, replayed=True, events=tuple(recorded))
                continue
            names = ", ".join(detail.field for detail in differing)
            refusal = Refusal(Code.IDEMPOTENCY_KEY_REUSED, f"the key was used with another {names}", differing)
            item.answer = Answer(transfer, refusal)

    async def wait(self, answer: Answer, seconds: float) -> Answer:
        """Waits at most `seconds` for the open transfer of an answer to become final, and returns it as it is then.

        If nothing newer can be read, returns the answer that was given.
        """
        transfer = answer.transfer
        assert transfer is not None, "there is a transfer to wait for"
        done = self._completions.expect(transfer.id)
        try:
            # Read after the wait is registered, so that no completion falls between the two.
            current = await self._current(answer, transfer)
            if current.transfer is not None and current.transfer.status not in OPEN:
                return current
            await self._completed(done, seconds)
            return await self._current(answer, transfer)
        except OperatingFailureError:
            return answer
        finally:
            self._completions.forget(transfer.id, done)

    @staticmethod
    async def _completed(done: asyncio.Future[None], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await done
        except TimeoutError:
            return  # The caller is told how far the transfer is.

    async def _current(self, answer: Answer, transfer: Transfer) -> Answer:
        now, events = await self._reader.read(transfer.id)
        return Answer(now or transfer, replayed=answer.replayed, events=tuple(events))


def _fail(batch: list[_Submission], error: OperatingFailureError) -> None:
    """Fails every caller in a batch; those whose transfer may be on record get `OutcomeUnknown`."""
    for item in batch:
        if not item.waiting.done():
            is_new = item.work is None and item.hit is None
            kind = type(error) if is_new else OutcomeUnknown
            item.waiting.set_exception(kind(error.system, error.message))

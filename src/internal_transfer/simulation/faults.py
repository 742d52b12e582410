"""Faults in front of any port: calls that fail, arrive late or twice; answers that are lost, late or never given.

`Faults(...).wrap(port)` behaves as the port does, but a plan decides for each call what goes wrong.
"""

import asyncio
import inspect
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, Protocol, TypeVar, assert_never, cast

from msgspec import Struct

from internal_transfer.ports.clock import Clock
from internal_transfer.ports.errors import OutcomeUnknown, System, Unavailable

Port = TypeVar("Port")


class FailBefore(Struct, frozen=True):
    """`Unavailable`: nothing was done."""


class LoseAnswer(Struct, frozen=True):
    """`OutcomeUnknown`: the call was carried out, but its answer is lost."""


class Delay(Struct, frozen=True):
    """Waits before and after the call, in seconds on the clock."""

    before_seconds: float = 0.0
    after_seconds: float = 0.0


class NeverAnswer(Struct, frozen=True):
    """The call is carried out, but its answer waits until `Faults.released` is set."""


class ArriveLate(Struct, frozen=True):
    """`OutcomeUnknown`: the call is still on its way, and `deliver_late` carries it out."""


class Duplicate(Struct, frozen=True):
    """The call is carried out twice, as by a driver that sends again; the answer is the second one's."""


Fault = FailBefore | LoseAnswer | Delay | NeverAnswer | ArriveLate | Duplicate


class FaultPlan(Protocol):
    """Decides what goes wrong."""

    def next_fault(self, method: str) -> Fault | None:
        """Returns the fault of this call, or None for no fault."""
        ...


class ScriptedFaults:
    """A list of faults for each method; None in a list lets a call through, and so does the end of the list."""

    def __init__(self, **scripts: Sequence[Fault | None]) -> None:
        self._scripts = {method: deque(script) for method, script in scripts.items()}

    def next_fault(self, method: str) -> Fault | None:
        """Returns the next one in the method's list."""
        script = self._scripts.get(method)
        return script.popleft() if script else None

    def add(self, method: str, *faults: Fault | None) -> None:
        """Adds to the method's list."""
        self._scripts.setdefault(method, deque()).extend(faults)


class RandomFaults:
    """Faults drawn from a seed by weight; each call fails with a probability until `stop`.

    A method in `spared` never fails.
    """

    def __init__(
        self,
        *,
        seed: int,
        probability: float,
        weights: Mapping[Fault, float],
        spared: frozenset[str] = frozenset(),
    ) -> None:
        self._random = Random(seed)  # noqa: S311 - it has to be repeatable.
        self.probability = probability
        """Can be changed while the faults are in use."""
        self._faults = list(weights)
        self._weights = list(weights.values())
        self._spared = spared

    def next_fault(self, method: str) -> Fault | None:
        """Draws one."""
        if method in self._spared or self._random.random() >= self.probability:
            return None
        return self._random.choices(self._faults, self._weights)[0]

    def stop(self) -> None:
        """Lets every call through from now on."""
        self.probability = 0.0


class Faults:
    """The faults in front of one port, which `wrap` returns."""

    def __init__(self, plan: FaultPlan, clock: Clock, system: System) -> None:
        self._plan = plan
        self._clock = clock
        self._system = system
        self._late: deque[Callable[[], Awaitable[Any]]] = deque()
        self.released = asyncio.Event()
        self.counts: Counter[type[Fault]] = Counter()
        """How often each fault happened, so that a run can show that faults did happen."""

    def wrap(self, inner: Port) -> Port:
        """Returns the port with these faults in front of each asynchronous method."""
        return cast("Port", _Wrapped(inner, self.call))

    async def deliver_late(self) -> int:
        """Carries out the calls that are still on their way, in the order they were made; returns how many.

        Their answers and errors are dropped, since their callers have given up.
        """
        delivered = 0
        while self._late:
            call = self._late.popleft()
            delivered += 1
            try:
                await call()
            except (Unavailable, OutcomeUnknown):
                continue
        return delivered

    async def call(self, method: str, inner: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Makes one call with the fault that the plan gives it."""
        fault = self._plan.next_fault(method)
        if fault is None:
            return await inner(*args, **kwargs)
        self.counts[type(fault)] += 1
        match fault:
            case FailBefore():
                raise Unavailable(self._system, f"fault before {method}")
            case LoseAnswer():
                await inner(*args, **kwargs)
                raise OutcomeUnknown(self._system, f"fault after {method}: the answer is lost")
            case Delay(before_seconds, after_seconds):
                await self._clock.sleep(before_seconds)
                answer = await inner(*args, **kwargs)
                await self._clock.sleep(after_seconds)
                return answer
            case NeverAnswer():
                answer = await inner(*args, **kwargs)
                await self.released.wait()
                return answer
            case ArriveLate():
                self._late.append(lambda: inner(*args, **kwargs))
                raise OutcomeUnknown(self._system, f"fault in {method}: it is still on its way")
            case Duplicate():
                await inner(*args, **kwargs)
                return await inner(*args, **kwargs)
            case _:
                assert_never(fault)


class _Wrapped:
    """Stands in for a port: asynchronous methods go through `around`, everything else is the port's own."""

    def __init__(self, inner: object, around: Callable[..., Awaitable[Any]]) -> None:
        self._inner = inner
        self._around = around

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(attribute):
            return attribute

        async def method(*args: Any, **kwargs: Any) -> Any:
            return await self._around(name, attribute, *args, **kwargs)

        # Kept for the next call.
        self.__dict__[name] = method
        return method

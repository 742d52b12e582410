"""Faults in front of any port: calls that fail, arrive late or come twice, answers that are lost, late or never given.

`Faults(...).wrap(port)` is the port itself as far as its user can tell; a plan decides call by call what goes wrong.
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
    """`OutcomeUnknown`: the call was done, its answer is lost."""


class Delay(Struct, frozen=True):
    """The call waits before and after it is done, in seconds on the clock."""

    before_seconds: float = 0.0
    after_seconds: float = 0.0


class NeverAnswer(Struct, frozen=True):
    """The call is done, but its answer waits until `Faults.released` is set."""


class ArriveLate(Struct, frozen=True):
    """`OutcomeUnknown`, and nothing was done yet: the call is still on its way and is done by `deliver_late`."""


class Duplicate(Struct, frozen=True):
    """The call is done twice, as by a driver that sends again; the answer is the second one's."""


Fault = FailBefore | LoseAnswer | Delay | NeverAnswer | ArriveLate | Duplicate


class FaultPlan(Protocol):
    """Decides what goes wrong."""

    def next_fault(self, method: str) -> Fault | None:
        """The fault of this call, or None where it goes well."""
        ...


class ScriptedFaults:
    """Faults one after the other by method; None in a script lets a call through, and so does its end."""

    def __init__(self, **scripts: Sequence[Fault | None]) -> None:
        self._scripts = {method: deque(script) for method, script in scripts.items()}

    def next_fault(self, method: str) -> Fault | None:
        """The next one of the method's script."""
        script = self._scripts.get(method)
        return script.popleft() if script else None

    def add(self, method: str, *faults: Fault | None) -> None:
        """Adds to a method's script."""
        self._scripts.setdefault(method, deque()).extend(faults)


class RandomFaults:
    """Faults drawn by weight from a seed, for each call with a probability; `stop` ends them.

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
    """The faults in front of one port; make the port itself with `wrap`."""

    def __init__(self, plan: FaultPlan, clock: Clock, system: System) -> None:
        self._plan = plan
        self._clock = clock
        self._system = system
        self._late: deque[Callable[[], Awaitable[Any]]] = deque()
        self.released = asyncio.Event()
        self.counts: Counter[type[Fault]] = Counter()
        """How often each fault happened, so that a run can show that it was no calm one."""

    def wrap(self, inner: Port) -> Port:
        """The port with these faults in front of each of its asynchronous methods."""
        return cast("Port", _Wrapped(inner, self.call))

    async def deliver_late(self) -> int:
        """Does the calls that were still on their way, in the order in which they were made; answers how many.

        What they answer or raise reaches nobody, as with a request whose sender has gone.
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
        """Makes one call with the fault that the plan has for it."""
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
    """Stands for a port: its asynchronous methods go through `around`, everything else is the port's own."""

    def __init__(self, inner: object, around: Callable[..., Awaitable[Any]]) -> None:
        self._inner = inner
        self._around = around

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(attribute):
            return attribute

        async def method(*args: Any, **kwargs: Any) -> Any:
            return await self._around(name, attribute, *args, **kwargs)

        # Kept, so that the next call does not build it again.
        self.__dict__[name] = method
        return method

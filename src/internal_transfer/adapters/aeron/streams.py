"""The publications and subscriptions of an Aeron client: what waits to go out, and what has come in.

They are declared and used in the event loop; the client's thread opens, offers and polls them.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from internal_transfer.ports.errors import OperatingFailureError, OutcomeUnknown, System, Unavailable

Done = tuple[asyncio.Future[None], OperatingFailureError | None]
"""An offer that has ended: who waits for it, and why it failed."""


@dataclass(slots=True, eq=False)
class Offer:
    """Messages for one publication, how many of them the driver has taken, and who waits."""

    outlet: "Outlet"
    messages: Sequence[bytes]
    deadline: float
    future: asyncio.Future[None]
    sent: int = 0

    def failed(self, why: str) -> Done:
        """The offer's end: `Unavailable` where nothing of it was sent, else `OutcomeUnknown`."""
        failure, system = OutcomeUnknown if self.sent else Unavailable, self.outlet.system
        return self.future, failure(system, f"{self.sent} of {len(self.messages)} messages were sent: {why}")


class Outlet:
    """A publication. `is_connected` tells whether a subscriber listens; `system` is blamed when it takes nothing."""

    def __init__(self, channel: str, stream: int, system: System, *, exclusive: bool) -> None:
        self.channel = channel
        self.stream = stream
        self.system = system
        self.is_connected = False
        self.message_bytes_max = 0
        """The largest message that the driver's terms allow; 0 where that is not known."""
        self.waiting: deque[Offer] = deque()
        self._exclusive = exclusive
        self._publication: Any = None

    def open(self, aeron: Any) -> None:
        """In the thread: adds the publication to a client that is connected."""
        if self._exclusive:
            self._publication = aeron.add_exclusive_publication(self.channel, self.stream)
        else:
            self._publication = aeron.add_publication(self.channel, self.stream)
            self.message_bytes_max = self._publication.max_message_length

    def close(self) -> None:
        """In the thread: forgets the publication of a client that is not connected any more."""
        self._publication, self.is_connected = None, False

    def send(self, now: float, done: list[Done]) -> int:
        """In the thread: offers what waits, in order, until the driver takes no more; returns how many it took.

        Offers that have ended go into `done`; those that the driver does not take fail at their deadline.
        """
        publication, waiting = self._publication, self.waiting
        self.is_connected = publication.is_connected
        taken = 0
        while waiting:
            offer = waiting[0]
            is_late = now >= offer.deadline
            if offer.sent == 0 and (is_late or offer.future.cancelled()):
                done.append(waiting.popleft().failed(self._why()))
                continue
            result: Any = True
            while offer.sent < len(offer.messages):
                result = publication.offer(offer.messages[offer.sent])
                if result is not True:
                    break
                offer.sent += 1
                taken += 1
            if result is True:
                done.append((waiting.popleft().future, None))
            elif is_late:
                done.append(waiting.popleft().failed(self._why()))
            else:
                break
        return taken

    def fail(self, why: str) -> list[Done]:
        """Ends every offer that waits."""
        failed = [offer.failed(why) for offer in self.waiting]
        self.waiting.clear()
        return failed

    def _why(self) -> str:
        what = "takes no more" if self._publication.is_connected else "has nobody who listens"
        return f"{self.channel} (stream {self.stream}) {what}"


class Inlet:
    """A subscription. `on_ready` is called in the event loop when messages have come.

    At most `most` messages wait to be taken. At that number the thread stops polling, so that the sender is slowed
    down or, where the subscription is untethered, messages are lost.
    """

    def __init__(self, channel: str, stream: int, *, most: int, on_ready: Callable[[], None]) -> None:
        self.channel = channel
        self.sources = 0
        """How many publications are connected."""
        self._stream = stream
        self._most = most
        self._on_ready = on_ready
        self._subscription: Any = None
        self._messages: deque[bytes] = deque()
        self._received = 0
        self._announced = False

    def pop(self, most: int) -> list[bytes]:
        """Takes at most this many of the messages that have come; in the event loop."""
        messages = self._messages
        return [messages.popleft() for _ in range(min(most, len(messages)))]

    def ready(self) -> None:
        """In the event loop: tells the owner; messages that come from now on are announced again."""
        self._announced = False
        self._on_ready()

    def open(self, aeron: Any) -> None:
        """In the thread: adds the subscription to a client that is connected."""
        self._subscription = aeron.add_subscription(self.channel, self._stream)

    def close(self) -> None:
        """In the thread: forgets the subscription of a client that is not connected any more."""
        self._subscription, self.sources = None, 0

    def poll(self, fragments_most: int) -> tuple[int, bool]:
        """In the thread: takes in what has come; returns how much work it was, and whether to announce it."""
        self.sources = self._subscription.image_count
        room = self._most - len(self._messages)
        if room <= 0:
            return 0, False
        before = self._received
        work: int = self._subscription.poll(self._receive, min(room, fragments_most))
        announce = self._received > before and not self._announced
        if announce:
            self._announced = True
        return work, announce

    def _receive(self, view: Any, _header: Any) -> None:
        self._received += 1
        self._messages.append(bytes(view))

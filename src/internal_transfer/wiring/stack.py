"""The ports of one process, and what comes with the adapters behind them."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from internal_transfer.ports.all_ports import Ports
from internal_transfer.ports.durability import Durability
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.ledger import Ledger
from internal_transfer.ports.trading_core import TradingCore
from internal_transfer.ports.transfer_store import TransferStore

SetCoreMode = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Interposed:
    """What stands between the adapters and their bounds, so that services need no code for injected faults."""

    store: Callable[[TransferStore], TransferStore]
    ledger: Callable[[Ledger], Ledger]
    core: Callable[[TradingCore], TradingCore]


Interpose = Callable[[Durability], Interposed]
"""Makes what is put in front, given the durability of the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The ports, each with the adapter that the settings chose for it, and what comes with the adapters.

    `tending` must run while the stack is used. `checks` return the findings for `doctor`. Each of `failures`
    returns why a system does not work at present, as far as is known without asking it. `set_core_mode` is for
    demonstrations, and only the embedded core has it.
    """

    ports: Ports
    set_core_mode: SetCoreMode | None
    tending: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    checks: Sequence[Callable[[], Awaitable[list[Finding]]]] = ()
    failures: Sequence[Callable[[], str | None]] = ()


class AtOnce:
    """The durability of systems whose answers are durable when they arrive."""

    async def durable(self) -> None:
        """Returns at once."""

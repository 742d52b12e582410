"""The ledger on a TigerBeetle cluster, through the C library of its official client."""

from collections.abc import Sequence

import structlog
from msgspec import Struct
from tigerbeetle import bindings

from internal_transfer.adapters.tigerbeetle.encoding import (
    check_layout,
    decode_account_outcomes,
    decode_accounts,
    decode_transfer_outcomes,
    decode_transfers,
    encode_accounts,
    encode_filter,
    encode_ids,
    encode_transfers,
)
from internal_transfer.adapters.tigerbeetle.session import (
    CLIENT_RELEASE,
    Session,
    SessionRefusedError,
    TooMuchDataError,
    WrongReleaseError,
)
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.ports.ledger import (
    BATCH_MAX,
    AccountOutcome,
    LedgerAccount,
    LedgerTransfer,
    TransferOutcome,
)
from internal_transfer.ports.ledger_checks import check_most

_CREATE_ACCOUNTS = int(bindings.Operation.CREATE_ACCOUNTS)
_CREATE_TRANSFERS = int(bindings.Operation.CREATE_TRANSFERS)
_LOOKUP_ACCOUNTS = int(bindings.Operation.LOOKUP_ACCOUNTS)
_LOOKUP_TRANSFERS = int(bindings.Operation.LOOKUP_TRANSFERS)
_QUERY_TRANSFERS = int(bindings.Operation.QUERY_TRANSFERS)

_TIMESTAMP_MAX = 2**63 - 1
_NOBODY = [0] * BATCH_MAX
"""Ids that no account has, as many as one call may hold."""

_log = structlog.get_logger(__name__)


class TigerBeetleSettings(Struct, frozen=True, kw_only=True):
    """How to reach a cluster. TigerBeetle has neither passwords nor TLS: its network must keep others out."""

    cluster_id: int
    addresses: tuple[str, ...]
    """IP address and port of each replica, in the order of the replicas; names are not resolved."""
    call_seconds: float = 10.0
    """How long a call waits for its answer; TigerBeetle may still carry the call out later."""
    start_seconds: float = 10.0
    """How long the start waits for the first answer."""
    calls_max: int = 4_096
    """The most calls that may wait at once."""
    abandoned_max: int = 64
    """No call is sent while this many were given up and may still be carried out."""


class TigerBeetleLedger:
    """The ledger on a cluster, with one session for the whole process; any number of processes may have one each.

    A server accepts about 32 sessions at a time, unless it was started to accept more; others wait without an answer.
    When TigerBeetle ends a session, waiting calls get `OutcomeUnknown`, and the next call opens a new session.
    """

    def __init__(self, settings: TigerBeetleSettings) -> None:
        self._settings = settings
        self._where = f"cluster {settings.cluster_id} at {','.join(settings.addresses)}"
        self._session: Session | None = None
        self._is_closed = False

    @property
    def in_flight(self) -> int:
        """The number of calls that were sent and not answered, including abandoned ones."""
        return 0 if self._session is None else self._session.in_flight

    @property
    def abandoned(self) -> int:
        """The number of calls that were given up and that TigerBeetle may still carry out."""
        return 0 if self._session is None else self._session.abandoned

    async def start(self) -> None:
        """Connects; raises `StartRefusedError` with what to do where calls cannot work."""
        assert self._session is None, "started twice"
        check_layout()
        try:
            self._session = self._open()
        except SessionRefusedError as error:
            raise StartRefusedError(error.message) from error
        try:
            # The most ids that a call may hold, so that a server that accepts fewer is found now.
            await self._session.request(_LOOKUP_ACCOUNTS, encode_ids(_NOBODY), self._settings.start_seconds)
        except WrongReleaseError as error:
            await self.close()
            raise StartRefusedError(f"{self._where}: {error.message}") from error
        except TooMuchDataError as error:
            await self.close()
            raise StartRefusedError(
                f"{self._where} takes fewer than {BATCH_MAX} events in a call: start it without --development"
            ) from error
        except OperatingFailureError as error:
            await self.close()
            raise StartRefusedError(
                f"{self._where} did not answer within {self._settings.start_seconds:g} s. Either no server runs there"
                " (check the addresses), or it has another cluster id, or it has no place left for another client:"
                f" TigerBeetle does not answer in any of these cases. ({error.message})"
            ) from error

    async def close(self) -> None:
        """Ends the session; waiting calls get `OutcomeUnknown`. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    async def check(self) -> list[Finding]:
        """Returns the findings that `doctor` prints."""
        checks = [
            Finding("tigerbeetle limits", *self._check_limits()),
            Finding(
                "tigerbeetle permissions",
                True,
                "TigerBeetle does not authenticate clients: see that only this service's machines reach its ports",
            ),
            Finding(
                "tigerbeetle clients",
                True,
                "about 32 processes can be connected; another one gets no answer. The number connected cannot be seen",
            ),
        ]
        try:
            await self._call(_LOOKUP_ACCOUNTS, encode_ids(_NOBODY))
        except OperatingFailureError as error:
            return [Finding("tigerbeetle connection", False, f"{self._where}: {error.message}"), *checks]
        return [
            Finding("tigerbeetle connection", True, f"{self._where} answers, and takes {BATCH_MAX} events in a call"),
            Finding("tigerbeetle version", True, f"the server accepts this client, release {CLIENT_RELEASE}"),
            *checks,
        ]

    def _check_limits(self) -> tuple[bool, str]:
        most, given_up_most = self._settings.calls_max, self._settings.abandoned_max
        message = f"{self.in_flight} of {most} calls under way, {self.abandoned} of {given_up_most} given up"
        return self.abandoned < given_up_most and self.in_flight < most, message

    async def create_accounts(self, accounts: Sequence[LedgerAccount]) -> list[AccountOutcome]:
        """See the port."""
        payload = encode_accounts(accounts)
        return decode_account_outcomes(await self._call(_CREATE_ACCOUNTS, payload), accounts) if payload else []

    async def create_transfers(self, transfers: Sequence[LedgerTransfer]) -> list[TransferOutcome]:
        """See the port."""
        payload = encode_transfers(transfers)
        return decode_transfer_outcomes(await self._call(_CREATE_TRANSFERS, payload), transfers) if payload else []

    async def lookup_accounts(self, ids: Sequence[int]) -> list[LedgerAccount]:
        """See the port."""
        payload = encode_ids(ids)
        return decode_accounts(await self._call(_LOOKUP_ACCOUNTS, payload)) if payload else []

    async def lookup_transfers(self, ids: Sequence[int]) -> list[LedgerTransfer]:
        """See the port."""
        payload = encode_ids(ids)
        return decode_transfers(await self._call(_LOOKUP_TRANSFERS, payload)) if payload else []

    async def transfers_after(self, timestamp: int, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        if most == 0 or timestamp >= _TIMESTAMP_MAX:
            return []
        query = encode_filter(timestamp_min=max(timestamp, 0) + 1, most=most, newest_first=False)
        return decode_transfers(await self._call(_QUERY_TRANSFERS, query))

    async def newest_transfers(self, most: int) -> list[LedgerTransfer]:
        """See the port."""
        check_most(most)
        if most == 0:
            return []
        query = encode_filter(timestamp_min=0, most=most, newest_first=True)
        return decode_transfers(await self._call(_QUERY_TRANSFERS, query))

    async def _call(self, operation: int, payload: bytes) -> bytes:
        """Sends one request to the cluster; raises `Unavailable` before sending where too many are under way."""
        session = self._living_session()
        settings = self._settings
        if session.abandoned >= settings.abandoned_max:
            raise Unavailable(
                System.LEDGER,
                f"TigerBeetle does not answer: {session.abandoned} calls were given up and may still be carried out",
            )
        if session.in_flight >= settings.calls_max:
            raise Unavailable(System.LEDGER, f"{session.in_flight} calls already wait for TigerBeetle")
        return await session.request(operation, payload, settings.call_seconds)

    def _living_session(self) -> Session:
        if self._is_closed:
            raise Unavailable(System.LEDGER, "the ledger was closed")
        assert self._session is not None, "not started"
        if self._session.ended is not None:
            _log.warning("tigerbeetle_session_replaced", reason=self._session.ended)
            self._session = self._open()
        return self._session

    def _open(self) -> Session:
        return Session(cluster_id=self._settings.cluster_id, addresses=",".join(self._settings.addresses))

"""Services that answer what a test tells them to, tokens to call them with, and a clock that stands still."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from internal_transfer.api.authentication import Authenticator
from internal_transfer.api.routes import create_app
from internal_transfer.api.submission import ApiContext
from internal_transfer.domain.account import Account, AccountType, Asset, Holder, Owner
from internal_transfer.domain.identifier import TransferId, snowflake
from internal_transfer.domain.refusal import Code
from internal_transfer.domain.rules import Limit, Route, Rules
from internal_transfer.domain.transfer import Status, Transfer
from internal_transfer.ports.transfer_store import Event, HistoryPage
from internal_transfer.services.answer import Answer, Preview
from internal_transfer.settings.issuers import read_issuer
from internal_transfer.telemetry import Telemetry

NOW_MS = 1_795_512_600_120  # 2026-11-24T09:30:00.120Z
ISSUER = "https://id.example.com"
AUDIENCE = "internal-transfer"
SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRANSFERS = "/api/v1/user/internal_transfer"
ID = snowflake(at_ms=NOW_MS, node=3, counter=7)
BODY = {
    "from_account": {"account_type": "funding", "asset": "USDT"},
    "to_account": {"account_type": "spot", "asset": "USDT"},
    "amount": "12.5",
}
RULES = Rules(
    assets={
        "USDT": Asset("USDT", 1, 6, 6),
        "BTC": Asset("BTC", 2, 8, 8),
        "JPY": Asset("JPY", 3, 0, 0),
        "OLD": Asset("OLD", 4, 2, 2, closed=True),
    },
    account_types={
        "funding": AccountType("funding", 1, Holder.LEDGER),
        "spot": AccountType("spot", 2, Holder.CORE, "core"),
        "gone": AccountType("gone", 3, Holder.LEDGER, closed=True),
    },
    routes=frozenset({Route("funding", "spot"), Route("spot", "funding"), Route("funding", "gone")}),
    limits={"standard": {"USDT": Limit(10_000, 10**12, 10**13), "OLD": Limit(1, 2, 3)}, "vip": {}},
    sub_accounts={},
)


class StillClock:
    """Time stands still until a test moves it, and the jitter is what the test says."""

    def __init__(self) -> None:
        self.ms = NOW_MS
        self.jitter_value = 0.0

    def now_ms(self) -> int:
        """Wall time."""
        return self.ms

    def monotonic(self) -> float:
        """The same time in seconds."""
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        """Moves the time on."""
        self.ms += int(seconds * 1000)

    def jitter(self) -> float:
        """What the test says."""
        return self.jitter_value

    def new_ids(self, count: int) -> list[TransferId]:
        """Rising ids."""
        return [TransferId(ID + number) for number in range(count)]


class Services:
    """The gateway and the inquiry in one: answers, or raises, what it was told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked = []
        self.answer: object = Answer(transfer())
        self.never = False

    async def _say(self, *question):
        self.asked.append(question)
        if self.never:
            await asyncio.get_running_loop().create_future()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def submit(self, request, *, wait_seconds):
        """As the gateway."""
        return await self._say(request, wait_seconds)

    async def get(self, owner, transfer_id):
        """As the inquiry."""
        return await self._say(owner, transfer_id)

    async def by_key(self, owner, key):
        """As the inquiry."""
        return await self._say(owner, key)

    async def history(self, query):
        """As the inquiry."""
        return await self._say(query)

    async def balances(self, owner):
        """As the inquiry."""
        return await self._say(owner)

    async def preview(self, request):
        """As the inquiry."""
        return await self._say(request)


def transfer(status: Status = Status.SUCCESS, **changes) -> Transfer:
    fields = {
        "id": ID,
        "owner": Owner("alice"),
        "key": "k1",
        "source": Account(Owner("alice"), "funding", "USDT"),
        "target": Account(Owner("alice"), "spot", "USDT"),
        "amount": 12_500_000,
        "memo": None,
        "legs": (),
        "created_at": NOW_MS,
        "updated_at": NOW_MS + 11,
        "due_at": NOW_MS,
        "status": status,
        "failure": Code.INSUFFICIENT_BALANCE if status is Status.FAILED else None,
    }
    return Transfer(**(fields | changes))


def events(*statuses: Status) -> tuple[Event, ...]:
    return tuple(
        Event(ID, number, status, NOW_MS + number, Code.CORE_REFUSED if status is Status.FAILED else None)
        for number, status in enumerate(statuses, start=1)
    )


def page(count: int = 1, next_after: int | None = None) -> HistoryPage:
    return HistoryPage([transfer(id=TransferId(ID - number)) for number in range(count)], 900, next_after)


def allowed() -> Preview:
    return Preview(None, 87_500_000, RULES.limits["standard"]["USDT"], 12_500_000)


def token(*, key=SIGNING_KEY, algorithm="EdDSA", headers=None, **claims) -> str:
    now = NOW_MS // 1000
    filled = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 3600, "iat": now} | claims
    payload = json.dumps({name: value for name, value in filled.items() if value is not None}).encode()
    return jwt.PyJWS().encode(payload, key, algorithm, headers)


def public_jwk(key=SIGNING_KEY, **more) -> dict:
    return json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key())) | more


def write_keys(directory: Path, *keys: dict) -> Path:
    file = directory / "keys.json"
    file.write_text(json.dumps({"keys": list(keys)}))
    return file


class Stand:
    """The application with scripted services behind it and a client in front of it."""

    def __init__(self, directory: Path, *, deadline_seconds: float = 20.0, pages=()) -> None:
        self.clock = StillClock()
        self.services = Services()
        self.telemetry = Telemetry()
        issuer = read_issuer(issuer=ISSUER, audience=AUDIENCE, keys_file=write_keys(directory, public_jwk()))
        context = ApiContext(rules=RULES, clock=self.clock, telemetry=self.telemetry, deadline_seconds=deadline_seconds)
        self.app = create_app(
            context,
            gateway=self.services,
            inquiry=self.services,
            authenticator=Authenticator([issuer], self.clock),
            pages=pages,
        )
        self.headers = {"authorization": f"Bearer {token()}"}

    async def ask(self, method: str, path: str, *, app: Callable | None = None, **options) -> httpx.Response:
        """One request with a valid token; header values of None are left out."""
        headers = {**self.headers, **options.pop("headers", {})}
        transport = httpx.ASGITransport(app=app or self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            sent = {name: value for name, value in headers.items() if value is not None}
            return await client.request(method, path, headers=sent, **options)

    async def create(self, body=BODY, **headers) -> httpx.Response:
        """A POST of a transfer; header names with underscores for hyphens."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", "idempotency-key": "k1"} | given
        return await self.ask("POST", TRANSFERS, content=content, headers=sent)

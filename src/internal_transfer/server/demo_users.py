"""The users of a demonstration: their money, and a first call to try."""

from pathlib import Path

import structlog

from internal_transfer.domain.account import Account, Owner
from internal_transfer.domain.refusal import Refusal
from internal_transfer.services.operators.cash import Cash
from internal_transfer.settings.demo_issuer import DemoIssuer
from internal_transfer.wiring.service import Service

DEMO_BALANCES = {"USDT": "10000", "BTC": "1.5", "ETH": "20", "EUR": "5000"}
DEMO_USERS = ("alice", "bob", "carol")

_log = structlog.get_logger(__name__)


async def give_demo_balances(service: Service) -> None:
    """Deposits the demo users' money, once per directory: the references repeat."""
    for user in DEMO_USERS:
        for asset, amount in DEMO_BALANCES.items():
            cash = Cash(
                account=Account(Owner(user), "funding", asset),
                amount=amount,
                reference=f"demo-{user}-{asset}",
                reason="balances of the demonstration",
            )
            answer = await service.teller.deposit(cash, actor="demo")
            if isinstance(answer, Refusal):
                _log.info("demo_balance_not_given", user=user, asset=asset, reason=answer.message)


def first_call(service: Service, data: Path, *, host: str, port: int) -> str:
    """Returns a `curl` line with which the first of the users moves money."""
    token = DemoIssuer.read(data).token(
        Owner(DEMO_USERS[0]), roles=("user",), tier="standard", now_seconds=service.ports.clock.now_ms() // 1000
    )
    return (
        f"curl -s http://{host}:{port}/api/v1/user/internal_transfer"
        f" -H 'Authorization: Bearer {token}'"
        " -H 'Content-Type: application/json'"
        f" -H 'Idempotency-Key: first-{service.ports.clock.now_ms()}'"
        ' -d \'{"from_account":{"account_type":"funding","asset":"USDT"},'
        '"to_account":{"account_type":"spot","asset":"USDT"},"amount":"1.5"}\''
    )

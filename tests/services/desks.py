"""The operators' services on a stack."""

from typing import Any

from starlette.applications import Starlette

from internal_transfer.api.operators.routes import AdminApi, OperatorServices
from internal_transfer.domain.account import Account, Owner
from internal_transfer.services.operators.audit import Act
from internal_transfer.services.operators.cash import Cash
from services.stack import Stack

ACTOR = "local:1000"


class Desks:
    """Every desk on one running stack; its ports are those that faults of the stack sit in front of."""

    def __init__(self, stack: Stack, **bounds: Any) -> None:
        self.stack = stack
        service = self.service = stack.build(**bounds) if bounds else stack.service
        self.audit = service.audit
        self.desk = service.desk
        self.cash = service.teller
        self.policies = service.policy_editor
        self.reconciliation = service.reconciliation

    def admin_app(self, **values: Any) -> Starlette:
        """The operators' interface on these desks."""
        stack = self.stack
        given = {"actor_of": lambda _: ACTOR} | values
        services = OperatorServices(
            desk=self.desk,
            cash=self.cash,
            reconciliation=self.reconciliation,
            policies=self.policies,
            keys=self.service.api_keys,
            audit=self.audit,
            ports=stack.ports,
            rules=stack.rules,
        )
        return AdminApi(services, **given).app()

    async def fund(self, owner: str, amount: str, *, reference: str = "", account_type: str = "funding") -> None:
        """Deposits money that has to be taken."""
        act = await self.cash.deposit(
            cash(owner, amount, reference=reference or f"{owner}-{amount}", account_type=account_type), actor=ACTOR
        )
        assert isinstance(act, Act), act

    async def entries(self) -> list[tuple[str, str, str]]:
        """The audit chain: action, subject and outcome of each entry."""
        links = await self.stack.operations.audit(after=0, most=1000)
        return [(link.entry.action, link.entry.subject, link.entry.outcome) for link in links]


def cash(
    owner: str, amount: str, *, reference: str, account_type: str = "funding", asset: str = "USDT", reason: str = "wire"
) -> Cash:
    """A deposit or withdrawal."""
    return Cash(account=Account(Owner(owner), account_type, asset), amount=amount, reference=reference, reason=reason)

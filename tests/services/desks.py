"""The operators' services on a stack."""

from typing import Any

from starlette.applications import Starlette

from internal_transfer.api.operators.routes import AdminApi, OperatorServices
from internal_transfer.domain.account import Account, Owner
from internal_transfer.services.operators.audit import Act, AuditTrail
from internal_transfer.services.operators.cash import Cash, Teller
from internal_transfer.services.operators.desk import Desk
from internal_transfer.services.operators.evidence import Examiner
from internal_transfer.services.operators.keys import ApiKeys
from internal_transfer.services.operators.policy import PolicyEditor
from internal_transfer.services.reconciliation.reconciliation import Reconciliation
from services.stack import Stack

ACTOR = "local:1000"


class Desks:
    """Every desk on one running stack; its ports are those that faults of the stack sit in front of."""

    def __init__(self, stack: Stack, **reconciliation: Any) -> None:
        self.stack = stack
        driver, store, ledger, core = (
            stack.driver,
            stack.driver._store,
            stack.driver._ledger,
            stack.driver._core,
        )
        operations = stack.policies._operations
        durability = stack.driver._durability
        self.audit = AuditTrail(operations=operations, clock=stack.clock)
        self.examiner = Examiner(store=store, ledger=ledger, core=core, driver=driver, durability=durability)
        self.desk = Desk(
            examiner=self.examiner,
            store=store,
            driver=driver,
            audit=self.audit,
            durability=durability,
            clock=stack.clock,
        )
        self.cash = Teller(
            ledger=ledger,
            driver=driver,
            audit=self.audit,
            durability=durability,
            rules=stack.rules,
            telemetry=stack.telemetry,
        )
        self.policies = PolicyEditor(
            operations=operations,
            policies=stack.policies,
            audit=self.audit,
            durability=durability,
            rules=stack.rules,
        )
        self.reconciliation = Reconciliation(
            store=store,
            ledger=ledger,
            core=core,
            operations=operations,
            driver=driver,
            durability=durability,
            clock=stack.clock,
            rules=stack.rules,
            telemetry=stack.telemetry,
            **reconciliation,
        )

    def admin_app(self, **values: Any) -> Starlette:
        """The operators' interface on these desks."""
        stack = self.stack
        keys = ApiKeys(
            operations=stack.operations,
            audit=self.audit,
            durability=stack.database,
            clock=stack.clock,
            tiers=frozenset(stack.rules.limits),
            draw=lambda count: bytes(range(count)),
        )
        given = {"actor_of": lambda _: ACTOR} | values
        services = OperatorServices(
            desk=self.desk,
            cash=self.cash,
            reconciliation=self.reconciliation,
            policies=self.policies,
            keys=keys,
            operations=stack.policies._operations,
            audit=self.audit,
            durability=stack.database,
            clock=stack.clock,
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

"""A user of the service, as a client that sends requests and reads answers."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx

from internal_transfer.api.paths import BALANCES, TRANSFERS
from internal_transfer.simulation.scenarios.expectation import expect, expect_status

WAIT_SECONDS = 15
"""How long a request waits until the transfer is final, unless a scenario says otherwise."""


def transfer_body(source: str, target: str, amount: str, *, asset: str = "USDT") -> dict[str, Any]:
    """Returns the body of a transfer between two of the user's accounts."""
    return {
        "from_account": {"account_type": source, "asset": asset},
        "to_account": {"account_type": target, "asset": asset},
        "amount": amount,
    }


class User:
    """A client with a token; `http` returns the HTTP client of the server as it runs now."""

    def __init__(self, http: Callable[[], httpx.AsyncClient], name: str, token: str) -> None:
        self.name = name
        self.token = token
        self._http = http

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request by the user."""
        return {"authorization": f"Bearer {self.token}"}

    async def move(
        self,
        source: str,
        target: str,
        amount: str,
        *,
        key: str,
        asset: str = "USDT",
        wait_seconds: int = WAIT_SECONDS,
    ) -> httpx.Response:
        """Asks for a transfer, and waits for it to become final."""
        headers = self.headers | {"idempotency-key": key, "prefer": f"wait={wait_seconds}"}
        return await self.post(transfer_body(source, target, amount, asset=asset), headers)

    async def post(self, body: dict[str, Any] | bytes, headers: dict[str, str]) -> httpx.Response:
        """Posts a body (bytes are sent as they are) with these headers."""
        if isinstance(body, bytes):
            return await self._http().post(
                TRANSFERS, content=body, headers={"content-type": "application/json", **headers}
            )
        return await self._http().post(TRANSFERS, json=body, headers=headers)

    async def get(self, path: str = "", *, accept: str = "application/json", **parameters: str) -> httpx.Response:
        """Reads something below the collection of transfers."""
        return await self._http().get(TRANSFERS + path, params=parameters, headers=self.headers | {"accept": accept})

    async def transfer(self, request_id: str) -> dict[str, Any]:
        """Returns the transfer with this id."""
        return expect_status(await self.get(f"/{request_id}"), 200)

    async def is_recorded(self, key: str) -> bool:
        """Tells whether the key stands for a transfer."""
        response = await self.get(idempotency_key=key)
        expect(response.status_code in {200, 404}, f"the key's look-up answered {response.status_code}")
        return response.status_code == 200

    async def history(self, *, limit: int = 100, **parameters: str) -> list[dict[str, Any]]:
        """Returns all transfers, from all pages of the history."""
        transfers: list[dict[str, Any]] = []
        while True:
            page = expect_status(await self.get("/history", limit=str(limit), **parameters), 200)
            transfers += page["transfers"]
            if page["next_cursor"] is None:
                return transfers
            parameters["cursor"] = page["next_cursor"]

    async def balances(self, asset: str = "USDT") -> dict[str, Decimal | None]:
        """Returns the posted balance by account type; None while the core that holds it is away."""
        response = await self._http().get(BALANCES, headers=self.headers)
        return {
            entry["account_type"]: None if entry["posted"] is None else Decimal(entry["posted"])
            for entry in expect_status(response, 200)["balances"]
            if entry["asset"] == asset
        }

    async def expect_balances(self, *, held: str = "0", **posted: str) -> None:
        """Raises `ScenarioFailedError` unless exactly this is posted in USDT, and this much held in total."""
        response = await self._http().get(BALANCES, headers=self.headers)
        entries = [entry for entry in expect_status(response, 200)["balances"] if entry["asset"] == "USDT"]
        seen = {entry["account_type"]: entry["posted"] for entry in entries if Decimal(entry["posted"] or 0)}
        wanted = {name: amount for name, amount in posted.items() if Decimal(amount)}
        same = {name: Decimal(amount) for name, amount in seen.items()} == {
            name: Decimal(amount) for name, amount in wanted.items()
        }
        expect(same, f"{self.name} has {seen} instead of {wanted}")
        held_sum = sum((Decimal(entry["held"] or 0) for entry in entries), Decimal(0))
        expect(held_sum == Decimal(held), f"{held_sum} of {self.name}'s money is held instead of {held}")

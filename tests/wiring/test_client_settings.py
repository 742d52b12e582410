"""What the settings say reaches the clients of the systems."""

from msgspec.structs import replace

from internal_transfer.settings.load import load
from internal_transfer.settings.settings import Secrets
from internal_transfer.wiring.client_settings import (
    cql_settings,
    kafka_connection,
    postgresql_settings,
    tigerbeetle_settings,
    valkey_settings,
)


def test_adapters_give_up_within_the_bound_of_their_port():
    """Each client's own time follows the setting of its port, and is shorter, since its failure says more."""
    shipped = load(None, {})
    bounds = replace(
        shipped.bounds,
        store_seconds=4.0,
        ledger_seconds=2.0,
        core_seconds=6.0,
        events_seconds=8.0,
        rate_limiter_seconds=0.2,
    )
    secrets = Secrets(postgres_url="postgresql://u:p@h/d", redis_url="valkey://h", kafka_password="p", cql_password="p")
    settings = replace(shipped, bounds=bounds, secrets=secrets)
    assert postgresql_settings(settings).deadline_seconds == 3.6
    assert postgresql_settings(settings).connect_seconds == 3.6
    assert cql_settings(settings).request_seconds == 2.0
    assert tigerbeetle_settings(settings).call_seconds == 1.8
    assert kafka_connection(settings).delivery_seconds == 3.0
    assert valkey_settings(settings).deadline_seconds == 0.1

import httpx
import pytest

from internal_transfer.api.health import create_health_app
from internal_transfer.telemetry import Telemetry


async def get(app, path, **headers):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://admin") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(("reason", "status"), [(None, 200), ("the ledger does not answer", 503)])
async def test_health(reason, status):
    """A process is alive as long as it answers; it is ready only where nothing speaks against it, else it says what."""

    async def readiness():
        return reason

    app = create_health_app(readiness=readiness, registry=Telemetry().registry)
    assert (await get(app, "/healthz")).json() == {"alive": True}
    response = await get(app, "/readyz")
    assert (response.status_code, response.json()) == (status, {"ready": reason is None, "reason": reason})
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("accept", "content_type", "is_openmetrics"),
    [
        ("*/*", "application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", True),
        ("text/plain", "text/plain", False),
    ],
)
async def test_metrics(accept, content_type, is_openmetrics):
    """Metrics are OpenMetrics, or the older text format for those who ask only for that."""

    async def readiness():
        return None

    telemetry = Telemetry()
    telemetry.requests.labels("transfers", "answered", "").inc()
    response = await get(create_health_app(readiness=readiness, registry=telemetry.registry), "/metrics", accept=accept)
    assert response.headers["content-type"].startswith(content_type)
    assert 'internal_transfer_requests_total{code="",outcome="answered",route="transfers"} 1.0' in response.text
    assert response.text.endswith("# EOF\n") is is_openmetrics

import pytest
import structlog


@pytest.fixture(autouse=True, scope="session")
def _no_log():
    """Tests read facts, not logs; those that test the log configure it themselves."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
    )

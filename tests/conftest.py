"""What holds for every test run: its log, what only a full run plays, and which skips are known."""

import os
import re

import pytest
import structlog

KNOWN_SKIPS = (
    r"tigerbeetle is missing: ",  # No package registry has its server.
    r"there is no Python 3\.\d+",  # Other versions than that of the run; the service needs only one.
    r"this Python ran the suite itself",
    r"this Python is not too old",
    r"needs mount ",  # A container may forbid its root to mount.
    r"no small file system may be mounted here",
)
"""Reasons why a test may be skipped where servers are required; any other skip fails there."""


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also play what is marked `full`: all that CI only samples")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: only played with --full; `make test-full`, not `make test`")
    config.addinivalue_line("markers", "slow: not played by `make test-fast`")


def pytest_collection_modifyitems(config, items):
    if config.getoption("full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


def _fail_unknown_skip(report):
    """Turns a skip that nobody knows into a failure where servers are required, as in CI."""
    if os.environ.get("REQUIRE_SERVERS") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not any(re.search(known, reason) for known in KNOWN_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, and the reason is not in KNOWN_SKIPS of tests/conftest.py: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    _fail_unknown_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _fail_unknown_skip(report)
    return report


@pytest.fixture(autouse=True, scope="session")
def _no_log():
    """Tests read facts, not logs; those that test the log configure it themselves."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
    )


@pytest.fixture(scope="session")
def is_full(pytestconfig):
    """Whether this run plays everything."""
    return pytestconfig.getoption("full")

"""The lock files: tests run with what is installed, and nothing is installed that was not checked."""

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
LOCKS = sorted(REQUIREMENTS.glob("*.lock"))
PINNED = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)[^\n]*\n(?P<rest>(?: +[^\n]*\n?)*)", re.MULTILINE)


def versions(lock):
    """Returns the version of each package in a lock file."""
    return {found["name"]: found["version"] for found in PINNED.finditer(lock.read_text())}


def test_tests_run_with_the_versions_that_are_installed():
    """Every package of run.lock has the same version in dev.lock."""
    run, dev = versions(REQUIREMENTS / "run.lock"), versions(REQUIREMENTS / "dev.lock")
    assert len(run) > 20
    assert {name: dev.get(name) for name in run} == run


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_with_hashes_and_without_an_address(lock):
    """A lock file has a hash for each package, and names no index."""
    text = lock.read_text()
    assert all("--hash=sha256:" in found["rest"] for found in PINNED.finditer(text))
    assert len(list(PINNED.finditer(text))) == len(re.findall(r"^\S", text, re.MULTILINE))
    assert "://" not in text
    assert "index" not in text

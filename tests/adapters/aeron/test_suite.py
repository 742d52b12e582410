"""Runs the tests of Aeron with a Python that its client supports, where this one is too old for it.

`make test` runs on Python 3.11 too, and pyaeron needs 3.12. So the suite gets an environment of its own under
`.servers`, with the versions of everything else that this one has.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from servers import place
from servers.pythons import python

from internal_transfer.adapters.aeron.settings import load_library
from internal_transfer.ports.errors import StartRefusedError

CHECKOUT = Path(__file__).resolve().parents[3]
PYAERON = "pyaeron==0.1.0"
SAME_AS_HERE = (
    "apsw",
    "confluent-kafka",
    "cryptography",
    "hypothesis",
    "msgspec",
    "psutil",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "structlog",
)

pytestmark = pytest.mark.skipif(find_spec("pyaeron") is not None, reason="this Python ran the suite itself")


def supported_python() -> str | None:
    """Returns a Python from 3.12 to 3.15, if this machine has one."""
    return next(filter(None, map(python, range(12, 16))), None)


def environment() -> Path:
    """The Python of an environment with pyaeron; made on first use, and anew when the versions change."""
    folder = place.root() / "aeron-venv"
    interpreter = folder / "bin" / "python"
    wanted = [PYAERON, *(f"{name}=={version(name)}" for name in SAME_AS_HERE)]
    mark = folder / "installed.json"
    with place.locked("aeron-venv"):
        if mark.exists() and json.loads(mark.read_text()) == wanted:
            return interpreter
        base = supported_python()
        if base is None:
            # Not even where servers are required: the service itself runs on older ones.
            pytest.skip("Aeron's client is missing: there is no Python 3.12 to 3.15 on the path or under pyenv")
        mark.unlink(missing_ok=True)
        for command in (
            [base, "-m", "venv", "--clear", str(folder)],
            [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                _do_without(f"{' '.join(command[:4])} failed: {done.stderr[-500:]}")
        mark.write_text(json.dumps(wanted))
    return interpreter


def _do_without(reason: str) -> None:
    if os.environ.get("REQUIRE_SERVERS") == "1":
        pytest.fail(f"REQUIRE_SERVERS=1, and Aeron's client is missing: {reason}")
    pytest.skip(f"Aeron's client is missing: {reason}")


@pytest.mark.timeout(600)
def test_the_suite_with_a_supported_python():
    """The contracts and faults of Aeron pass with a Python that its client supports."""
    interpreter = environment()
    done = subprocess.run(
        [str(interpreter), "-m", "pytest", "tests/adapters/aeron/suite", "-p", "no:cacheprovider"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "src")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python is not too old")
def test_a_python_that_is_too_old():
    """With a Python that Aeron's client does not support a start is refused, and says what to do."""
    with pytest.raises(StartRefusedError, match=r"Aeron needs Python 3\.12 or newer"):
        load_library()

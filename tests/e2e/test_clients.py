"""Runs the tests of ccxt and python-okx in their own environment: ccxt pins versions of libraries we use too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers.environment import locked_environment

from real_servers import Missing, do_without

ROOT = Path(__file__).parents[2]
SUITE = Path(__file__).parent / "clients_suite"


@pytest.mark.timeout(1200)  # With the installation.
def test_the_suite_with_the_unmodified_clients():
    """The classes of ccxt and python-okx, as published, move money here and understand every answer."""
    try:
        python = locked_environment("clients", ROOT / "requirements" / "clients.lock")
    except Missing as reason:
        do_without("ccxt and python-okx", reason)
    command = [str(python), "-m", "pytest", "-c", str(SUITE / "pytest.ini"), "--confcutdir", str(SUITE), str(SUITE)]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env=os.environ | {"SERVICE_PROGRAMS": str(Path(sys.executable).parent)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout

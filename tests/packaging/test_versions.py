"""Every Python that the package says it supports passes the tests that need no servers."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from servers.environment import install, locked_environment
from servers.pythons import MINORS, python

from real_servers import Missing, do_without

ROOT = Path(__file__).parents[2]


def test_every_version_that_is_promised_is_tried():
    """The versions of the tests are those of the package's classifiers."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    promised = [each for each in classifiers if each.startswith("Programming Language :: Python :: 3.")]
    assert promised == [f"Programming Language :: Python :: 3.{minor}" for minor in MINORS]


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("minor", [minor for minor in MINORS if minor != sys.version_info[1]])
def test_another_python(minor):
    """`make test-fast` passes on another Python, with the same locked versions."""
    base = python(minor)
    if base is None:
        pytest.skip(f"there is no Python 3.{minor} on the path or under pyenv")
    try:
        interpreter = locked_environment(f"dev-3.{minor}", ROOT / "requirements" / "dev.lock", base)
        install(interpreter, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    except Missing as reason:
        do_without(f"an environment for Python 3.{minor}", reason)
    fast = subprocess.run(["make", "-s", "fast-words"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    done = subprocess.run(
        [str(interpreter), "-m", "pytest", "-p", "no:cacheprovider", *fast.split(), "-m", "not slow"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]

"""The habits of a test run: a full run plays more, and an unknown skip fails where servers are required."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_always(): ...

@pytest.mark.full
def test_full(): ...

def test_known(): pytest.skip("tigerbeetle is missing: get it")

def test_unknown(): pytest.skip("the moon is full")

@pytest.mark.skipif(True, reason="this, too")
def test_marked(): ...

@pytest.mark.xfail(raises=ValueError)
def test_expected(): raise ValueError
"""


@pytest.fixture
def run(tmp_path):
    """Runs those tests with our conftest.py, and returns the exit code and the last lines."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -ra --strict-markers\n")

    def run(*words, tests=TESTS, required="0"):
        (tmp_path / "test_it.py").write_text(tests)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
            cwd=tmp_path,
            env=os.environ | {"REQUIRE_SERVERS": required, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            check=False,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout

    return run


def test_skips_say_why_at_the_end(run):
    """A run ends with the reason of each skip, and a test marked `full` is left out."""
    code, said = run()
    assert code == 0
    assert "2 passed" not in said
    assert "1 passed, 3 skipped, 1 deselected, 1 xfailed" in said
    assert all(reason in said for reason in ("tigerbeetle is missing: get it", "the moon is full", "this, too"))


def test_a_full_run_leaves_nothing_out(run):
    """With --full the marked tests are played."""
    assert "2 passed, 3 skipped, 1 xfailed" in run("--full")[1]


def test_an_unknown_skip_fails_where_servers_are_required(run):
    """Only skips whose reason is on the list are let through in CI; an expected failure is no skip."""
    code, said = run(required="1")
    assert code == 1
    assert "1 failed, 1 passed, 1 skipped, 1 deselected, 1 xfailed, 1 error" in said
    assert "KNOWN_SKIPS of tests/conftest.py: the moon is full" in said


def test_a_module_that_skips_itself_fails_where_servers_are_required(run):
    """A module that leaves itself out is a skip like any other."""
    module = "import pytest\npytest.importorskip('no_such_library')\n"
    assert run(tests=module)[0] == 5
    code, said = run(tests=module, required="1")
    assert code != 5
    assert "KNOWN_SKIPS of tests/conftest.py: could not import 'no_such_library'" in said

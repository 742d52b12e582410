"""What is published: wheel and sdist, installed outside the checkout, do what the checkout does."""

import json
import os
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest
from servers.environment import install, new_environment
from servers.pythons import MINORS, python

from real_servers import Missing, do_without

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "internal_transfer"
READY = "internal-transfer is ready on "
STOP_SECONDS = 60


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution of this checkout, built by the locked hatchling."""
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from what is in the source distribution and nothing else."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def build(kind, source, folder):
    """Builds a distribution of a source tree and returns its file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [built] = folder.iterdir()
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel):
    """Modules, py.typed, settings, statements, pages and scripts are in the wheel, and nothing else is."""
    here = {
        f"internal_transfer/{path.relative_to(PACKAGE)}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert there == here
    assert "internal_transfer/py.typed" in there
    kinds = {Path(name).suffix for name in there if not name.endswith("py.typed")}
    assert {".py", ".toml", ".sql", ".cql", ".lua", ".html", ".css", ".mako"} <= kinds


@pytest.mark.timeout(1200)  # With the installation.
@pytest.mark.parametrize(
    "minor",
    [each if each == sys.version_info[1] else pytest.param(each, marks=pytest.mark.full) for each in MINORS],
)
def test_the_installed_wheel_serves(wheel, minor, tmp_path):
    """Away from the checkout, on the locked versions, `serve --demo` makes a transfer, and `doctor` finds no fault."""
    base = python(minor)
    if base is None:
        pytest.skip(f"there is no Python 3.{minor} on the path or under pyenv")
    try:
        interpreter = new_environment(tmp_path / "environment", ROOT / "requirements" / "run.lock", base)
        install(interpreter, "--no-deps", "--no-index", str(wheel))
    except Missing as reason:
        do_without(f"an environment for Python 3.{minor}", reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program = [str(interpreter.with_name("internal-transfer"))]
    data = ["--data", str(tmp_path / "data")]
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(
            [*program, "serve", "--demo", *data, "--port", "0", "--admin-port", "0"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        told = [serving.stdout.readline() for _ in range(2)]
        assert told[1].startswith(READY), (tmp_path / "log").read_text()
        transfer = post_as_curl_would(told[0])
        assert (transfer["status"], transfer["amount"]) == ("SUCCESS", "1.5")
        doctor = subprocess.run(
            [*program, "doctor", *data, "--json"],
            cwd=tmp_path,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        found = json.loads(doctor.stdout)["checks"]
        assert [finding for finding in found if not finding["ok"]] == []
        assert doctor.returncode == 0
    finally:
        serving.terminate()
        serving.communicate(timeout=STOP_SECONDS)
    assert serving.returncode == 0


def post_as_curl_would(line):
    """Sends the request of a printed `curl` line, and returns the body of the answer."""
    curl, _, address, *rest = shlex.split(line)
    options = list(zip(rest[::2], rest[1::2], strict=True))
    assert (curl, {option for option, _ in options}) == ("curl", {"-H", "-d"})
    headers = dict(value.split(": ", 1) for option, value in options if option == "-H")
    [body] = [value for option, value in options if option == "-d"]
    response = httpx.post(address, content=body, headers=headers, trust_env=False, timeout=30)
    assert response.status_code == 201, response.text
    return response.json()

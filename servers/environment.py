"""Python environments for tests, with locked versions, for packages that cannot share the service's environment."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from servers import place
from servers.trouble import Missing

_INSTALL_SECONDS = 900


def locked_environment(name: str, lock: Path, python: str = sys.executable) -> Path:
    """Returns the Python of an environment that holds a lock file's packages; made again when either input changes.

    Raises:
        Missing: it could not be made; the message ends with what pip said.
    """
    folder = place.root() / f"{name}-venv"
    mark = folder / "made-from"
    wanted = f"{python} {sha256(lock.read_bytes()).hexdigest()}"
    with place.locked(f"{name}-venv"):
        if not mark.exists() or mark.read_text() != wanted:
            mark.unlink(missing_ok=True)
            new_environment(folder, lock, python)
            mark.write_text(wanted)
    return _interpreter(folder)


def new_environment(folder: Path, lock: Path, python: str = sys.executable) -> Path:
    """Makes an environment in a folder, with what a lock file names, and returns its Python. Raises Missing."""
    _run(python, "-m", "venv", "--clear", str(folder))
    install(_interpreter(folder), "--require-hashes", "-r", str(lock))
    return _interpreter(folder)


def install(interpreter: Path, *words: str) -> None:
    """Installs into an environment with pip. Raises Missing."""
    _run(str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_INSTALL_SECONDS)  # noqa: S603
    if done.returncode:
        raise Missing(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout)[-500:]}")


def _interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"

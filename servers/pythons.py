"""The Pythons of this machine, by version."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import which

MINORS = (11, 12, 13)
"""The versions that the package says it supports, 3.11 and so on."""


def python(minor: int) -> str | None:
    """Returns a Python 3.`minor` that works: this one, one on the path, one beside this one, or one of pyenv's."""
    if sys.version_info[:2] == (3, minor):
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    beside = [
        f"{path}"
        for root in (Path(sys.base_prefix).parent, versions)
        for path in sorted(root.glob(f"3.{minor}.*/bin/python"))
    ]
    for candidate in (*beside, which(f"python3.{minor}")):
        if candidate is not None and _is_version(candidate, minor):
            return candidate
    return None


def _is_version(candidate: str, minor: int) -> bool:
    check = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, {minor}))"
    return subprocess.run([candidate, "-c", check], check=False, capture_output=True).returncode == 0  # noqa: S603

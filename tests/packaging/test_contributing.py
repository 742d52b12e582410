"""CONTRIBUTING.md names what there is."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:[a-z_]+/)*(?:[A-Za-z_.-]+\.[a-z]+|[a-z_]+/))`", PAGE)))


def test_the_page_names_many_paths():
    """The pattern of this file finds the paths of the page."""
    assert len(PATHS) > 25


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path):
    """A file or folder that the page names is in the checkout, or below the package."""
    assert any((root / path).exists() for root in (ROOT, ROOT / "src" / "internal_transfer"))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)", PAGE))))
def test_every_target_can_be_made(target):
    """`make` knows each target that the page names."""
    subprocess.run(["make", "--dry-run", "--silent", target], cwd=ROOT, check=True, capture_output=True)

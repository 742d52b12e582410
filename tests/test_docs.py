"""The documents name what the program has, and nothing that it has not."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from internal_transfer.api.problems import status_of
from internal_transfer.domain.refusal import CATALOGUE, Code
from internal_transfer.telemetry import Telemetry

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_every_code_is_in_the_error_catalogue_as_it_is_served():
    """docs/errors.md has one row per code, with its status, category and retry."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \| (\w+) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    served = [(code, str(status_of(code)), CATALOGUE[code].category, CATALOGUE[code].retry) for code in Code]
    assert rows == served


def test_every_metric_is_documented_and_every_documented_one_exists():
    """docs/guides/metrics.md names the metrics that the registry exports."""
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/guides/metrics.md").read_text(), re.MULTILINE))
    exported = {
        metric.name + ("_total" if metric.type == "counter" else "") for metric in Telemetry().registry.collect()
    }
    assert documented == exported


def test_every_section_of_the_settings_is_documented():
    """docs/guides/settings.md names each table of the shipped settings."""
    shipped = tomllib.loads((resources.files("internal_transfer.settings") / "defaults.toml").read_text())
    guide = (ROOT / "docs/guides/settings.md").read_text()
    missing = [name for name in shipped if f"[{name}" not in guide]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    """Every relative link names a file that exists."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target

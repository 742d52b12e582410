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
PACKAGE = ROOT / "src/internal_transfer"
PLACES = [ROOT / name for name in ("docs/ARCHITECTURE.md", "CONTRIBUTING.md", "README.md")]
PLACEHOLDERS = {"SYSTEM"}
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


@pytest.mark.parametrize("document", PLACES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_newcomer_is_shown_exists(document):
    """What these pages name as a path is in the repository or the package; a word in capitals stands for any name."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for path in re.findall(r"`([\w./-]+(?:/|\.(?:py|toml|md|yaml)))`", prose):
        if not set(path.split("/")) & PLACEHOLDERS:
            assert any((folder / path).exists() for folder in (ROOT, PACKAGE)), path


def test_the_tree_in_the_architecture_has_every_room():
    """The tree of docs/ARCHITECTURE.md names each room of the package and each room of an adapter, and no other."""
    tree = re.search(r"```\nsrc/internal_transfer/\n(.*?)```", (ROOT / "docs/ARCHITECTURE.md").read_text(), re.DOTALL)
    rooms = set(re.findall(r"^  ([a-z]+)/", tree[1], re.MULTILINE))
    assert rooms == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    adapters = tree[1].partition("  adapters/")[2].partition("\n  wire/")[0]
    assert set(re.findall(r"([a-z_]+)/", adapters)) == {
        path.parent.name for path in PACKAGE.glob("adapters/*/__init__.py")
    }


def test_decisions_are_numbered_without_a_gap():
    """Each decision has the next number, the same in its name and its title."""
    for number, page in enumerate(sorted(ROOT.glob("docs/decisions/*.md")), start=1):
        assert page.name.startswith(f"{number:04}-"), page.name
        assert page.read_text().startswith(f"# {number}. "), page.name

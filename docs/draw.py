"""Draws the pictures of docs/ARCHITECTURE.md from what they show, between the marks `<!-- drawn: NAME -->`.

`python docs/draw.py` writes them; `python docs/draw.py --check` ends with 1 where the page is out of date.
"""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from internal_transfer.domain.transfer import TRANSITIONS, Status

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/ARCHITECTURE.md"

CAUSES = {
    (Status.REQUESTING, Status.PENDING): "the ledger holds the amount",
    (Status.REQUESTING, Status.FAILED): "the ledger refuses, or the hold's id is burnt",
    (Status.PENDING, Status.SUCCESS): "every leg is confirmed: posted",
    (Status.PENDING, Status.FAILED): "a core refuses: reversed, then voided",
}
"""What each change of status means; as many as the table has."""


def states() -> str:
    """The transition table as a state diagram."""
    changes = [(before, after) for before in Status for after in Status if after in TRANSITIONS[before]]
    assert set(changes) == set(CAUSES), "a change of status without a cause, or a cause without a change"
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", f"    [*] --> {Status.REQUESTING}: accepted"]
    lines += [f"    {before} --> {after}: {CAUSES[before, after]}" for before, after in changes]
    lines += [f"    {status} --> [*]" for status in Status if not TRANSITIONS[status]]
    return "\n".join([*lines, "```"])


def layers() -> str:
    """The rungs of the layer contract, highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    [contract] = [each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]
    rungs = [rung.replace("internal_transfer.", "") for rung in contract["layers"]]
    return "\n".join(
        ["```", *(f"{number}  {rung}" for number, rung in zip(range(len(rungs), 0, -1), rungs, strict=True)), "```"]
    )


PICTURES: dict[str, Callable[[], str]] = {"states": states, "layers": layers}


def drawn(page: str) -> str:
    """The page with its pictures drawn anew."""
    for name, draw in PICTURES.items():
        begin, end = f"<!-- drawn: {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        assert found, f"{PAGE.name} has no place for {name}"
        assert closed, f"{PAGE.name} does not end the place for {name}"
        page = before + begin + draw() + "\n" + end + after
    return page


def main() -> int:
    """Writes or checks the page."""
    page = PAGE.read_text("utf-8")
    fresh = drawn(page)
    if "--check" in sys.argv[1:]:
        if fresh != page:
            sys.stderr.write(f"{PAGE}: its pictures are out of date; run: python docs/draw.py\n")
        return int(fresh != page)
    PAGE.write_text(fresh, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

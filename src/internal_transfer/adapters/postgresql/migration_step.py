"""Runs one step of the schema: the SQL file of the same name as its Python file."""

from pathlib import Path

from alembic import op


def run(step: str, *, runs_from: int) -> None:
    """Runs a step's SQL, then records the step and the oldest step whose release still works on it (`runs_from`)."""
    file = Path(step)
    number = int(file.stem.partition("_")[0])
    # The driver's own cursor runs a whole script, and does not interpret colons and percent signs in it.
    cursor = op.get_bind().connection.cursor()
    cursor.execute(file.with_suffix(".sql").read_text(encoding="utf-8"))
    cursor.execute("UPDATE schema_version SET step = %s, runs_from = %s", (number, runs_from))

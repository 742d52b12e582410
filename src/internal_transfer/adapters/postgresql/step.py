"""One step of the schema: the SQL file beside its Python file."""

from pathlib import Path

from alembic import op


def run(step: str, *, runs_from: int) -> None:
    """Runs a step's SQL and notes the step, and the oldest step whose release may run on it."""
    file = Path(step)
    number = int(file.stem.partition("_")[0])
    # The driver's own cursor takes a whole script, and leaves colons and percent signs in it alone.
    cursor = op.get_bind().connection.cursor()
    cursor.execute(file.with_suffix(".sql").read_text(encoding="utf-8"))
    cursor.execute("UPDATE schema_version SET step = %s, runs_from = %s", (number, runs_from))

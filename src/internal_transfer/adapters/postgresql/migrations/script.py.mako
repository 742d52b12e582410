"""${message}"""

from internal_transfer.adapters.postgresql.migration_step import run

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Runs the SQL file of the same name; `runs_from` is the oldest step whose release works on this one."""
    run(__file__, runs_from=1)

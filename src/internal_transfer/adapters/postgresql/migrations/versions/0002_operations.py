"""What operators decide, with the audit chain."""

from internal_transfer.adapters.postgresql.migration_step import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the tables of the operations."""
    run(__file__, runs_from=2)

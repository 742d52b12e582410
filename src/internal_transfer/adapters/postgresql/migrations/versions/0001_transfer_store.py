"""The transfer store's tables and functions."""

from internal_transfer.adapters.postgresql.migration_step import run

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables of the transfer store."""
    run(__file__, runs_from=1)

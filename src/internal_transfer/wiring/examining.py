"""Gives `doctor` the adapters' own examinations; none of them opens a port or changes anything."""

from internal_transfer.adapters.sqlite.examination import DatabaseExamination
from internal_transfer.settings.data_directory import DataDirectory


def examine_database(directory: DataDirectory) -> DatabaseExamination:
    """The examination of the embedded database of a directory, which need not be acquired."""
    return DatabaseExamination(directory.database)

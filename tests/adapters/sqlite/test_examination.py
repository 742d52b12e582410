import apsw
import pytest

from internal_transfer.adapters.sqlite.database import Database
from internal_transfer.adapters.sqlite.examination import DatabaseExamination
from internal_transfer.adapters.sqlite.operations import SqliteOperations
from internal_transfer.ports.errors import StartRefusedError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "db"


def test_a_database_that_is_missing_or_empty_is_in_order(path):
    """Before the first start there is nothing to examine, and examining creates nothing."""
    examination = DatabaseExamination(path)
    assert ("does not exist yet" in examination.state(), examination.pins(), path.exists()) == (True, None, False)
    path.touch()
    assert ("is empty" in examination.state(), examination.pins()) == (True, None)


async def test_a_database_in_use_is_examined(path):
    """The state names the schema of each part, and the pins are those recorded, while the database is open."""
    database = Database(path)
    operations = SqliteOperations(database)
    await operations.pin({"assets.USDT.scale": "6"})
    await database.durable()
    examination = DatabaseExamination(path)
    assert "operations" in examination.state()
    assert examination.pins() == {"assets.USDT.scale": "6"}
    database.close()


def test_what_cannot_be_read_is_refused(path, monkeypatch):
    """A file that is no database, and a release of SQLite that corrupts databases, are each refused with a reason."""
    path.write_bytes(b"no database at all" * 100)
    examination = DatabaseExamination(path)
    with pytest.raises(StartRefusedError, match="not a database"):
        examination.state()
    with pytest.raises(StartRefusedError, match="not a database"):
        examination.pins()
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.45.1")
    with pytest.raises(StartRefusedError, match=r"install apsw with SQLite 3\.51\.3 or later"):
        examination.release()

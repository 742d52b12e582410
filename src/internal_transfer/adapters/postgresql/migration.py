"""Migrates the schema. Only the command that migrates imports this module, since Alembic is large."""

from importlib.resources import as_file, files
from threading import Lock
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, exc, make_url

from internal_transfer.adapters.postgresql.schema import HEAD
from internal_transfer.adapters.postgresql.settings import PostgresqlSettings
from internal_transfer.ports.errors import StartRefusedError

# Alembic keeps its state in module variables.
_ONE_AT_A_TIME = Lock()


def migrate(settings: PostgresqlSettings) -> int:
    """Brings the schema to `HEAD`, from nothing or from an earlier step; returns the step that it is at afterwards.

    Blocks, so call it from the command line or on a thread. Any number of processes may call it at once: they take
    turns. All steps run in one transaction. A newer schema is left as it is. Raises `StartRefusedError`.
    """
    with _ONE_AT_A_TIME, as_file(files(__package__).joinpath("migrations")) as directory:
        config = Config()
        config.set_main_option("script_location", str(directory).replace("%", "%%"))
        config.attributes["url"] = _for_migrations(settings)
        config.attributes["schema"] = settings.schema
        try:
            command.upgrade(config, f"{HEAD:04}")
        except exc.DBAPIError as error:
            raise StartRefusedError(f"PostgreSQL at {settings.place}: the migration failed: {error.orig}") from error
        except CommandError as error:
            raise StartRefusedError(
                f"PostgreSQL at {settings.place}: the schema is of a newer release than this one: {error}"
            ) from error
    step: int = config.attributes["step"]
    return step


def _for_migrations(settings: PostgresqlSettings) -> URL:
    """The URL for psycopg, the driver that migrates because it can run whole scripts."""
    parts = urlsplit(settings.url)
    netloc, query = parts.netloc, dict(parse_qsl(parts.query))
    login, _, hosts = netloc.rpartition("@")
    if "," in hosts:
        pairs = [each.rpartition(":") if ":" in each else (each, ":", "5432") for each in hosts.split(",")]
        query |= {"host": ",".join(pair[0] for pair in pairs), "port": ",".join(pair[2] for pair in pairs)}
        query.setdefault("target_session_attrs", "read-write")
        netloc = f"{login}@" if login else ""
    url = make_url(urlunsplit(("postgresql+psycopg", netloc, parts.path, urlencode(query), "")))
    return url if settings.password is None else url.set(password=settings.password)

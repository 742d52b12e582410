"""The exit codes, and the one place that turns failures into them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError
from internal_transfer.server.supervisor import ServiceFailedError

FAILED = 1
"""Refused, failed, or not finished. Typer itself exits with 2 for a wrong command line."""

UNREACHABLE = 3
"""A system or the service does not answer; the same command may work later."""

FAILURES: tuple[type[Exception], ...] = (StartRefusedError, OperatingFailureError, ServiceFailedError)


def _tell(message: str) -> None:
    typer.echo(f"internal-transfer: {message}", err=True)


@contextmanager
def failures_end(
    code: int = FAILED, *, tell: Callable[[str], None] = _tell, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Ends the command with the code if the block raises one of `FAILURES` or `also`.

    The message goes to standard error unless `tell` puts it elsewhere; no traceback is shown.
    """
    try:
        yield
    except FAILURES + also as error:
        tell(str(error))
        raise typer.Exit(code) from error

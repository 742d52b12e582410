"""How a command reaches the service: over a running server's socket, over HTTP, or through the files themselves.

The files are opened only if no server holds the directory, under its lock, and behind the same operators' application:
nothing is implemented twice.
"""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import typer
from msgspec import to_builtins

from internal_transfer.api.paths import ADMIN
from internal_transfer.cli.exits import FAILED, UNREACHABLE
from internal_transfer.cli.output import print_json, print_problem
from internal_transfer.domain.refusal import Code, Refusal
from internal_transfer.ports.errors import OperatingFailureError, StartRefusedError
from internal_transfer.settings.data_directory import DataDirectory
from internal_transfer.telemetry import configure_logging

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_SOCKET_PATH_BYTES_MAX = 100
"""Every system's socket addresses hold a little more."""


@dataclass(frozen=True, slots=True)
class Access:
    """Which service a command talks to, and how it prints the answer."""

    data: Path
    url: str | None
    token: str | None
    config: Path | None
    as_json: bool


_PARAMETERS = {
    "data": (Annotated[Path, typer.Option(help="The data directory of the service.", file_okay=False)], Path("data")),
    "url": (Annotated[str | None, typer.Option(help="The address of a service elsewhere; needs --token.")], None),
    "token": (Annotated[str | None, typer.Option(help="An operator's token for --url.")], None),
    "config": (
        Annotated[
            Path | None, typer.Option(help="The server's settings (TOML); needed if no server runs.", dir_okay=False)
        ],
        None,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")], False),
}
assert list(_PARAMETERS) == [field.name for field in fields(Access)]


def takes_access(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that choose the service; it receives them as its first argument."""
    own = list(inspect.signature(command).parameters.values())[1:]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _PARAMETERS.items()
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        access = Access(**{name: given.pop(name) for name in _PARAMETERS})
        if access.url is not None and access.token is None:
            raise typer.BadParameter("needs --token", param_hint="--url")
        command(access, **given)

    parameters = [*own, *common]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def call(
    access: Access,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, str] | None = None,
    answer_seconds: float = _ANSWER_SECONDS,
) -> dict[str, Any]:
    """Returns the service's answer; prints why and ends the command if it refuses, fails or cannot be reached."""

    async def ask() -> httpx.Response:
        async with _client(access, answer_seconds) as client:
            return await client.request(method, ADMIN + path, json=body, params=query)

    try:
        response = asyncio.run(ask())
        answer = response.json()
    except (httpx.TransportError, httpx.InvalidURL, StartRefusedError, OperatingFailureError, OSError) as error:
        _give_up(access, str(error) or type(error).__name__)
    except ValueError:
        _give_up(access, "another program answers there, not this service")
    if not isinstance(answer, dict):
        _give_up(access, "another program answers there, not this service")
    if response.status_code >= 400:
        print_problem(answer, as_json=access.as_json)
        raise typer.Exit(FAILED)
    return answer


def require_running(access: Access) -> None:
    """Refuses to steer a core that is not running; does not open the files, which may be a core's own."""
    directory = DataDirectory(access.data)
    try:
        if access.url is not None or not directory.path.is_dir() or directory.is_held:
            return
    except StartRefusedError as error:
        _give_up(access, str(error))
    from internal_transfer.api.problems import problem_of  # noqa: PLC0415 - slow to import.

    message = f"nothing runs on {access.data}: a core can be steered only while it, or its service, runs with --demo"
    problem = problem_of(Refusal(Code.PERMISSION_DENIED, message))
    print_problem(to_builtins(problem), as_json=access.as_json)
    raise typer.Exit(FAILED)


def ask_holder(directory: DataDirectory, path: str) -> dict[str, Any]:
    """Returns the answer of the server that holds a directory; raises `StartRefusedError` if there is none."""

    async def ask() -> httpx.Response:
        with short_name(directory.admin_socket) as socket:
            transport = httpx.AsyncHTTPTransport(uds=socket)
            async with httpx.AsyncClient(
                base_url="http://admin", transport=transport, timeout=_CONNECT_SECONDS
            ) as client:
                return await client.get(ADMIN + path)

    try:
        answer = asyncio.run(ask()).raise_for_status().json()
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise StartRefusedError(f"the server does not answer on {directory.admin_socket}: {error}") from error
    if not isinstance(answer, dict):
        raise StartRefusedError(f"another program answers on {directory.admin_socket}, not this service")
    return answer


def part(text: str) -> str:
    """Quotes a text as one part of a path, even `.` and `..`, which would otherwise name directories."""
    return quote(text, safe=":") if text.strip(".") else "%2E" * len(text)


@asynccontextmanager
async def _client(access: Access, answer_seconds: float) -> AsyncIterator[httpx.AsyncClient]:
    timeout = httpx.Timeout(answer_seconds, connect=_CONNECT_SECONDS)
    if access.url is not None:
        headers = {"authorization": f"Bearer {access.token}"}
        async with httpx.AsyncClient(base_url=access.url, headers=headers, timeout=timeout) as client:
            yield client
        return
    directory = DataDirectory(access.data)
    if not directory.path.is_dir():
        raise StartRefusedError(
            f"there is no data directory {directory.path}; name it with --data, or start the server"
        )
    if directory.is_held:
        with short_name(directory.admin_socket) as socket:
            transport: httpx.AsyncBaseTransport = httpx.AsyncHTTPTransport(uds=socket)
            async with httpx.AsyncClient(base_url="http://admin", transport=transport, timeout=timeout) as client:
                yield client
        return
    # The whole service is slow to import, and only this branch needs it.
    from internal_transfer.server.process import open_offline  # noqa: PLC0415

    # The answer already says what the service would log.
    configure_logging(level="error")
    async with open_offline(access.data, access.config) as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(base_url="http://admin", transport=transport, timeout=timeout) as client:
            yield client


@contextmanager
def short_name(socket: Path) -> Iterator[str]:
    """Gives the socket a name that fits into an address, even in a deep directory."""
    if len(os.fsencode(socket)) <= _SOCKET_PATH_BYTES_MAX:
        yield str(socket)
        return
    handle = os.open(socket.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{socket.name}"
    finally:
        os.close(handle)


def _give_up(access: Access, message: str) -> NoReturn:
    where = access.url if access.url is not None else f"the service on {access.data}"
    if access.as_json:
        print_json(
            {
                "type": "/docs#STORE_UNAVAILABLE",
                "title": "The service cannot be reached.",
                "status": 503,
                "detail": message,
                "code": "STORE_UNAVAILABLE",
                "category": "unavailable",
                "recorded": None,
                "retry": "same_key",
                "details": [],
            }
        )
    else:
        typer.echo(f"internal-transfer: {where} cannot be reached: {message}", err=True)
    raise typer.Exit(UNREACHABLE)

"""The Starlette application behind the users' endpoints, which turns every error into a problem."""

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from internal_transfer.api.paths import DOCUMENTATION
from internal_transfer.api.problems import Problems, Reply


def create_pages(routes: Sequence[BaseRoute], problems: Problems) -> Starlette:
    """Makes an application of these routes; unknown paths, wrong methods and bugs become problems."""
    pages = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _no_such_path(problems), Exception: _internal(problems)},
    )
    pages.router.redirect_slashes = False
    return pages


def _no_such_path(problems: Problems) -> Callable[[Request, Exception], Response]:
    def reply(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        rule = error.detail
        if error.status_code == 404:
            rule = f"is not served here; {DOCUMENTATION} lists the paths that are"
        return http_problem(problems, error, "path", rule)

    return reply


def _internal(problems: Problems) -> Callable[[Request, Exception], Response]:
    # Starlette raises the error again after this reply, so that the server logs it.
    return lambda _request, error: response_of(problems.failure(error, records=False))


def http_problem(problems: Problems, error: HTTPException, field: str, rule: str) -> Response:
    """Returns the problem for an error of Starlette's, with the headers that the error carries."""
    headers = (
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (error.headers or {}).items()
    )
    return response_of(problems.request(error.status_code, field, rule, *headers))


def response_of(reply: Reply) -> Response:
    """Returns a reply as Starlette's response."""
    response = Response(reply.body, status_code=reply.status)
    response.raw_headers = reply.headers
    return response

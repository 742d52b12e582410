"""Serves the contract, and a page made from it for people, which runs no scripts and loads nothing."""

import base64
import json
from hashlib import sha256
from importlib.resources import files
from typing import Any

import msgspec
from jinja2 import Environment, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from internal_transfer.api.openapi import document
from internal_transfer.api.paths import CONTRACT, DOCUMENTATION
from internal_transfer.api.problems import status_of
from internal_transfer.domain.refusal import CATALOGUE

_PAGE = "docs.html"
_STYLE = "docs.css"


def documentation_routes() -> list[Route]:
    """Returns the routes of `/openapi.json` and `/docs`, which are rendered once."""
    contract = document()
    as_json = msgspec.json.encode(contract)
    style = files(__package__).joinpath(_STYLE).read_text("utf-8")
    page = render_page(contract, style).encode()
    digest = base64.b64encode(sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-top-navigation"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    async def contract_page(_: Request) -> Response:
        return Response(as_json, media_type="application/json", headers={"x-content-type-options": "nosniff"})

    async def documentation_page(_: Request) -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    return [Route(CONTRACT, contract_page), Route(DOCUMENTATION, documentation_page)]


def render_page(contract: dict[str, Any], style: str) -> str:
    """Renders an OpenAPI document as a page, and escapes all of its text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["as_json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.filters["schema_name"] = lambda schema: schema.get("$ref", "").rpartition("/")[2]
    template = environment.from_string(files(__package__).joinpath(_PAGE).read_text("utf-8"))
    problems = [
        {
            "code": code.value,
            "status": status_of(code),
            "category": meaning.category.value,
            "retry": meaning.retry.value,
            "title": meaning.title,
        }
        for code, meaning in CATALOGUE.items()
    ]
    return template.render(contract=contract, style=style, problems=problems)

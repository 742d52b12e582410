"""Reads the settings from TOML, once at start, and checks all of them.

A user's file is merged into the shipped `defaults.toml`: tables merge key by key, so the file needs only the keys that
differ; lists (`[[routes]]`, `[[issuers]]`, `[[sub_accounts]]`) replace the shipped list. `shipped_assets = false` omits
the shipped assets and their limits, for users who number their own. Any fault raises `StartRefusedError`, which names
the key: `assets.USDT.scale: must be a whole number <= 30`.

Secrets come from the environment alone; `SECRETS` lists them.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, fields

from internal_transfer.domain.account import AccountType, Asset, Holder, Owner, is_account_type, is_asset, is_owner
from internal_transfer.domain.amount import AMOUNT_UNITS_MAX, AmountPrecisionError, is_amount, parse_amount
from internal_transfer.domain.rules import Limit, Route, Rules
from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.settings import Issuer, Secrets, Settings

SECRETS = {
    "INTERNAL_TRANSFER_POSTGRES_URL": "the address of PostgreSQL, with user and password",
    "INTERNAL_TRANSFER_REDIS_URL": "the address of Valkey or Redis, with its password",
    "INTERNAL_TRANSFER_KAFKA_PASSWORD": "the SASL password of Kafka",
    "INTERNAL_TRANSFER_CQL_PASSWORD": "the password of ScyllaDB or Cassandra",
}
"""The environment variables that are read. Any other with the same prefix is refused as a mistake."""

_PREFIX = "INTERNAL_TRANSFER_"
ACCOUNT_CODE_MAX = 64_999
"""Larger codes (up to 65,535) are for the service's own accounts, such as those of deposits and withdrawals."""


class _Asset(Struct, frozen=True, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    scale: Annotated[int, Meta(ge=0, le=30)]
    precision: Annotated[int, Meta(ge=0, le=30)]
    closed: bool = False


class _AccountType(Struct, frozen=True, forbid_unknown_fields=True):
    code: Annotated[int, Meta(ge=1, le=ACCOUNT_CODE_MAX)]
    holder: str
    core: Annotated[str, Meta(pattern=r"^([a-z][a-z0-9_-]{0,31})?$")] = ""
    closed: bool = False


class _Route(Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "target": "to"}):
    source: str
    target: str


class _Limit(Struct, frozen=True, forbid_unknown_fields=True):
    min: str
    max: str
    daily: str


class _Tier(Struct, frozen=True, forbid_unknown_fields=True):
    limits: dict[str, Any]


class _SubAccounts(Struct, frozen=True, forbid_unknown_fields=True):
    master: str
    subs: Annotated[list[str], Meta(min_length=1)]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole settings file, one level deep; each table in it is read separately, so that errors name its path."""

    assets: dict[str, Any]
    account_types: dict[str, Any]
    tiers: dict[str, Any]
    server: Any
    transfers: Any
    scanner: Any
    retries: Any
    alerts: Any
    bounds: Any
    rate_limit: Any
    systems: Any
    postgresql: Any
    cassandra: Any
    tigerbeetle: Any
    ledger_socket: Any
    kafka: Any
    aeron: Any
    valkey: Any
    routes: list[Any]
    issuers: list[Any] = []
    sub_accounts: list[Any] = []
    shipped_assets: bool = True


_TABLES: dict[str, type[Struct]] = {
    field.name: field.type
    for field in fields(Settings)
    if field.name in _File.__struct_fields__ and isinstance(field.type, type) and issubclass(field.type, Struct)
}
"""The tables that are read as they are, into the field of `Settings` with the same name."""

T = TypeVar("T", bound=Struct)


def load(path: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads the shipped settings, a user's file over them, and the secrets in the environment.

    Raises `StartRefusedError`, which names the key and what it must be.
    """
    shipped = tomllib.loads(resources.files(__package__).joinpath("defaults.toml").read_text("utf-8"))
    if path is None:
        return parse(shipped, directory=Path(), environment=environment)
    try:
        given = tomllib.loads(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartRefusedError(f"{path}: cannot be read as TOML: {error}") from error
    _check_top_keys(given, "")
    if given.get("shipped_assets") is False:
        shipped = shipped | {"assets": {}, "tiers": {}}
    return parse(_merge(shipped, given, ""), directory=path.parent, environment=environment)


def parse(document: dict[str, Any], *, directory: Path, environment: Mapping[str, str]) -> Settings:
    """Returns the settings in a whole document; the files that it names are relative to `directory`."""
    file = _read(document, _File, "")
    assets = _assets(file.assets)
    account_types = _account_types(file.account_types)
    tables: dict[str, Any] = {name: _read(getattr(file, name), kind, name) for name, kind in _TABLES.items()}
    settings = Settings(
        rules=Rules(
            assets=assets,
            account_types=account_types,
            routes=_routes(file.routes, account_types),
            limits={tier: _limits(tier, table, assets) for tier, table in file.tiers.items()},
            sub_accounts=_sub_accounts(file.sub_accounts),
        ),
        tiers=frozenset(file.tiers),
        issuers=_issuers(file.issuers, directory),
        secrets=_secrets(environment),
        **tables,
    )
    settings.systems.check()
    for section, smaller, larger in (
        ("retries", "first_seconds", "longest_seconds"),
        ("alerts", "stuck_seconds", "alert_seconds"),
        ("alerts", "alert_seconds", "critical_seconds"),
    ):
        values = asdict(getattr(settings, section))
        _require(
            values[smaller] <= values[larger], f"{section}.{larger}", f"must be at least {smaller} ({values[smaller]})"
        )
    return settings


def _merge(shipped: dict[str, Any], given: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(shipped)
    for key, value in given.items():
        below = merged.get(key)
        if isinstance(below, dict):
            _require(isinstance(value, dict), path + key, "must be a table")
            merged[key] = _merge(below, value, f"{path}{key}.")
        else:
            merged[key] = value
    return merged


def _check_top_keys(tables: Any, path: str) -> None:
    """Refuses a key for the whole file that is below a table: in TOML it would be part of that table."""
    entries = tables.items() if isinstance(tables, dict) else enumerate(tables)
    for key, value in entries:
        where = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else str(key)
        _require(
            key != "shipped_assets" or not path, where, "belongs at the top of the file, above the first table ([...])"
        )
        if isinstance(value, dict | list):
            _check_top_keys(value, where)


def _assets(tables: dict[str, Any]) -> dict[str, Asset]:
    assets: dict[str, Asset] = {}
    numbers: dict[int, str] = {}
    for code, table in tables.items():
        path = f"assets.{code}"
        _require(is_asset(code), path, "must be named by 1 to 32 of A-Z 0-9 _ . -, a letter or digit first")
        asset = Asset(code, **asdict(_read(table, _Asset, path)))
        _require(asset.precision <= asset.scale, f"{path}.precision", f"must be at most the scale ({asset.scale})")
        other = numbers.setdefault(asset.number, code)
        _require(other == code, f"{path}.number", f"must be unique: {asset.number} is already {other}'s")
        assets[code] = asset
    return assets


def _account_types(tables: dict[str, Any]) -> dict[str, AccountType]:
    kinds: dict[str, AccountType] = {}
    codes: dict[int, str] = {}
    for name, table in tables.items():
        path = f"account_types.{name}"
        _require(is_account_type(name), path, "must be named by 1 to 32 of a-z 0-9 _, a letter first")
        given = _read(table, _AccountType, path)
        _require(given.holder in tuple(Holder), f"{path}.holder", 'must be "ledger" or "core"')
        holder = Holder(given.holder)
        _require(
            holder is Holder.CORE or not given.core,
            f"{path}.core",
            "must be left out: the ledger holds this type",
        )
        core = (given.core or "core") if holder is Holder.CORE else ""
        other = codes.setdefault(given.code, name)
        _require(other == name, f"{path}.code", f"must be unique: {given.code} is already {other}'s")
        kinds[name] = AccountType(name, given.code, holder, core, given.closed)
    return kinds


def _routes(entries: list[Any], kinds: dict[str, AccountType]) -> frozenset[Route]:
    routes: set[Route] = set()
    for index, entry in enumerate(entries):
        path = f"routes[{index}]"
        given = _read(entry, _Route, path)
        for key, name in (("from", given.source), ("to", given.target)):
            _require(name in kinds, f"{path}.{key}", f"must be an account type; {name!r} is not one")
        _require(given.source != given.target, f"{path}.to", "must differ from `from`; the same type needs no route")
        route = Route(given.source, given.target)
        _require(route not in routes, path, f"must not repeat the route from {given.source} to {given.target}")
        routes.add(route)
    return frozenset(routes)


def _limits(tier: str, table: Any, assets: dict[str, Asset]) -> dict[str, Limit]:
    path = f"tiers.{tier}"
    _require(is_account_type(tier), path, "must be named by 1 to 32 of a-z 0-9 _, a letter first")
    limits: dict[str, Limit] = {}
    for code, entry in _read(table, _Tier, path).limits.items():
        where = f"{path}.limits.{code}"
        asset = assets.get(code)
        if asset is None:
            raise StartRefusedError(f"{where}: must be an asset in [assets]")
        given = _read(entry, _Limit, where)
        least, most, daily = (
            _units(value, asset, f"{where}.{key}")
            for key, value in (("min", given.min), ("max", given.max), ("daily", given.daily))
        )
        _require(least <= most, f"{where}.max", f"must be at least min ({given.min})")
        _require(most <= daily, f"{where}.daily", f"must be at least max ({given.max})")
        limits[code] = Limit(least, most, daily)
    return limits


def _units(text: str, asset: Asset, path: str) -> int:
    _require(is_amount(text), path, 'must be a decimal string such as "0.01"')
    try:
        units = parse_amount(text, scale=asset.scale, precision=asset.precision)
    except AmountPrecisionError as error:
        raise StartRefusedError(f"{path}: must have at most {asset.precision} decimal places") from error
    _require(0 < units <= AMOUNT_UNITS_MAX, path, "must be more than zero and less than 2^112 smallest units")
    return units


def _sub_accounts(entries: list[Any]) -> dict[Owner, frozenset[Owner]]:
    by_master: dict[Owner, frozenset[Owner]] = {}
    masters: dict[str, str] = {}
    for index, entry in enumerate(entries):
        path = f"sub_accounts[{index}]"
        given = _read(entry, _SubAccounts, path)
        for key, owner in (("master", given.master), *(("subs", sub) for sub in given.subs)):
            _require(is_owner(owner), f"{path}.{key}", "must be 1 to 64 of A-Z a-z 0-9 _ . : -")
        _require(given.master not in by_master, f"{path}.master", f"must not repeat {given.master!r}")
        for sub in given.subs:
            _require(sub != given.master, f"{path}.subs", "must not name the master")
            _require(
                sub not in masters, f"{path}.subs", f"must not repeat {sub!r}, a sub-account of {masters.get(sub)!r}"
            )
            masters[sub] = given.master
        by_master[Owner(given.master)] = frozenset(map(Owner, given.subs))
    return by_master


def _issuers(entries: list[Any], directory: Path) -> tuple[Issuer, ...]:
    issuers: dict[str, Issuer] = {}
    for index, entry in enumerate(entries):
        path = f"issuers[{index}]"
        given = _read(entry, Issuer, path)
        keys_file = directory / given.keys_file
        _require(given.issuer not in issuers, f"{path}.issuer", f"must not repeat {given.issuer!r}")
        _require(keys_file.is_file(), f"{path}.keys_file", f"must be a file; {keys_file} is not one")
        issuers[given.issuer] = Issuer(given.issuer, str(keys_file), given.audience)
    return tuple(issuers.values())


def _secrets(environment: Mapping[str, str]) -> Secrets:
    found: dict[str, str] = {}
    for name, value in environment.items():
        if name.startswith(_PREFIX):
            _require(name in SECRETS, name, f"is not read; these are: {', '.join(SECRETS)}")
            _require(bool(value.strip()), name, "must not be empty; unset it instead")
            found[name.removeprefix(_PREFIX).lower()] = value
    return Secrets(**found)


def _require(holds: bool, path: str, rule: str) -> None:  # noqa: FBT001 - reads as a sentence.
    if not holds:
        raise StartRefusedError(f"{path}: {rule}")


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text in quotes",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WHERE = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


def _read(table: Any, kind: type[T], path: str) -> T:
    """Returns the table as a struct; errors name the key below `path`, in the words of a settings file."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        names = [field.encode_name for field in fields(kind)]
        raise StartRefusedError(_in_words(str(error), path, names)) from error


def _in_words(message: str, path: str, names: list[str]) -> str:
    where = _WHERE.search(message)
    keys = [key for key in (path, where.group(1) if where else "") if key]
    message = message[: where.start()] if where else message
    if unknown := _UNKNOWN.fullmatch(message):
        close = get_close_matches(unknown.group(1), names, n=1)
        advice = f"did you mean {close[0]!r}?" if close else "the shipped defaults.toml has all of them"
        return f"{'.'.join([*keys, unknown.group(1)])}: is not a setting; {advice}"
    if missing := _MISSING.fullmatch(message):
        return f"{'.'.join([*keys, missing.group(1)])}: must be given"
    for name, word in _KINDS.items():
        message = message.replace(f"`{name}`", word)
    message = message.replace("Expected", "must be", 1).replace(", got", ", not").replace("`", "")
    return f"{'.'.join(keys)}: {message}"

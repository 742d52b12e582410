"""The settings that must never change once money was recorded under them, such as numbers, codes and scales."""

import re
from collections.abc import Mapping

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.ports.ledger import account_flags
from internal_transfer.settings.settings import Settings

_PINNED_TABLE = re.compile(r"(assets\..+)\.number|(account_types\..+)\.code")


def pins(settings: Settings) -> dict[str, str]:
    """Returns the values to pin at first use by their keys, for `Operations.pin`.

    Numbers and codes are pinned in both directions, so that the number of a deleted asset is never given to another.
    """
    pinned: dict[str, str] = {}
    for asset in settings.rules.assets.values():
        pinned[f"assets.{asset.code}.number"] = str(asset.number)
        pinned[f"assets.{asset.code}.scale"] = str(asset.scale)
        pinned[f"numbers.{asset.number}"] = asset.code
    for kind in settings.rules.account_types.values():
        pinned[f"account_types.{kind.name}.code"] = str(kind.code)
        pinned[f"account_types.{kind.name}.holder"] = kind.holder.value
        pinned[f"account_types.{kind.name}.core"] = kind.core
        pinned[f"account_types.{kind.name}.flags"] = str(account_flags(kind))
        pinned[f"codes.{kind.code}"] = kind.name
    return pinned


def check_pins(wanted: Mapping[str, str], pinned: Mapping[str, str]) -> None:
    """Raises `StartRefusedError`, which names the keys, for values that differ from the pinned ones, and for pinned
    assets and account types that are missing.
    """
    differing = {key for key, value in pinned.items() if wanted.get(key, value) != value}
    # The core and the ledger flags of an account type follow from its holder.
    for key in [key for key in differing if key.endswith(".holder")]:
        differing -= {key.replace(".holder", f".{follows}") for follows in ("core", "flags")}
    faults = [
        f"{key}: is {wanted[key]!r} in the settings, but was {pinned[key]!r} when first used: put the old value back"
        for key in sorted(differing)
    ]
    missing = sorted(
        match[1] or match[2]
        for key in pinned.keys() - wanted.keys()
        if (match := _PINNED_TABLE.fullmatch(key)) is not None
    )
    if missing:
        faults.append(
            f"{', '.join(missing)}: missing from the settings, but in use before: restore "
            f"{'it' if len(missing) == 1 else 'them'}, with `closed = true` where retired"
        )
    if faults:
        raise StartRefusedError("; ".join(faults))

"""Assets, account types and accounts, and an account's id in the ledger."""

import re
from enum import StrEnum
from hashlib import blake2b
from typing import NewType

from msgspec import Struct

Owner = NewType("Owner", str)
"""An opaque user id, `[A-Za-z0-9_.:-]{1,64}`."""

_OWNER = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
_ACCOUNT_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_ASSET = re.compile(r"[A-Z0-9][A-Z0-9_.-]{0,31}", re.ASCII)


def is_owner(text: str) -> bool:
    """Tells whether the text is a well-formed owner."""
    return _OWNER.fullmatch(text) is not None


def is_account_type(text: str) -> bool:
    """Tells whether the text is a well-formed name of an account type: `[a-z][a-z0-9_]{0,31}`."""
    return _ACCOUNT_TYPE.fullmatch(text) is not None


def is_asset(text: str) -> bool:
    """Tells whether the text is a well-formed asset code: `[A-Z0-9][A-Z0-9_.-]{0,31}`."""
    return _ASSET.fullmatch(text) is not None


def asset_fault(text: str) -> str:
    """Says what is wrong with a text that is not a well-formed asset code."""
    return "must be upper case" if is_asset(text.upper()) and text.isascii() else "is not an asset code"


class Holder(StrEnum):
    """Who owns the balance of an account type."""

    LEDGER = "ledger"
    CORE = "core"


class Asset(Struct, frozen=True):
    """What is moved: its code, its ledger number (1 to 2^32-1), and its decimal places.

    The ledger holds `scale` places, of which a request may use `precision`. A closed asset takes no new transfers.
    """

    code: str
    number: int
    scale: int
    precision: int
    closed: bool = False


class AccountType(Struct, frozen=True):
    """A kind of account: its ledger code (1 to 2^16-1) and who holds its balance.

    `core` names the trading core of a core-held type and is empty for a ledger-held one.
    """

    name: str
    code: int
    holder: Holder
    core: str = ""
    closed: bool = False


class Account(Struct, frozen=True):
    """One balance of one owner."""

    owner: Owner
    type: str
    asset: str


def ledger_account_id(account: Account) -> int:
    """The ledger's id of an account: a 128-bit hash of the length-prefixed owner, type and asset.

    The length prefixes keep ("a", "bc") and ("ab", "c") apart. The ids 0 and 2^128-1, which a ledger refuses, are as
    unlikely as any collision.
    """
    digest = blake2b(digest_size=16, person=b"account")
    for part in (account.owner, account.type, account.asset):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(2, "big") + encoded)
    return int.from_bytes(digest.digest(), "big")

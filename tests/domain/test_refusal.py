from internal_transfer.domain.refusal import CATALOGUE, Category, Code, Detail, Refusal, Retry

DOCUMENTED = [
    "INVALID_REQUEST",
    "INVALID_AMOUNT",
    "INVALID_ASSET",
    "INVALID_ACCOUNT",
    "ASSET_MISMATCH",
    "SAME_ACCOUNT",
    "INVALID_PRECISION",
    "AMOUNT_TOO_SMALL",
    "AMOUNT_TOO_LARGE",
    "DAILY_LIMIT_EXCEEDED",
    "IDEMPOTENCY_KEY_REQUIRED",
    "IDEMPOTENCY_KEY_REUSED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "ACCOUNT_FROZEN",
    "ROUTE_PAUSED",
    "INSUFFICIENT_BALANCE",
    "TRANSFER_NOT_FOUND",
    "INVALID_STATE_TRANSITION",
    "EXPIRED",
    "CORE_REFUSED",
    "VOIDED_BY_OPERATOR",
    "RATE_LIMITED",
    "SYSTEM_OVERLOADED",
    "LEDGER_UNAVAILABLE",
    "STORE_UNAVAILABLE",
    "CORE_UNAVAILABLE",
    "TIMEOUT",
    "INTERNAL",
]


def test_the_catalogue_is_complete():
    """Exactly the documented codes have a meaning, and each is its own text on the wire."""
    assert [code.value for code in CATALOGUE] == DOCUMENTED
    assert [code.name for code in Code] == [code.value for code in Code] == DOCUMENTED


def test_every_meaning_is_one_sentence():
    """Each code has one sentence for people, and no two share one."""
    titles = [meaning.title for meaning in CATALOGUE.values()]
    assert all(title[0].isupper() and title.endswith(".") and title.count(". ") == 0 for title in titles)
    assert len(set(titles)) == len(titles)


def test_every_category_and_advice_is_used():
    """Exactly the categories and retry advice of the wire are in use."""
    assert {meaning.category for meaning in CATALOGUE.values()} == set(Category)
    assert {meaning.retry for meaning in CATALOGUE.values()} == set(Retry)
    assert [category.value for category in Category] == [
        "validation",
        "authentication",
        "permission",
        "policy",
        "limit",
        "funds",
        "conflict",
        "core",
        "unavailable",
        "internal",
    ]


def test_a_recorded_failure_is_never_retried_under_its_key():
    """A failed transfer stays failed under its key, so the codes of recorded failures ask for a new key."""
    for code in (Code.INSUFFICIENT_BALANCE, Code.EXPIRED, Code.CORE_REFUSED, Code.VOIDED_BY_OPERATOR):
        assert CATALOGUE[code].retry is Retry.NEW_KEY


def test_what_is_unavailable_is_retried_under_its_key():
    """After an unknown outcome only the same key is safe."""
    for code, meaning in CATALOGUE.items():
        if meaning.category is Category.UNAVAILABLE and code is not Code.EXPIRED:
            assert meaning.retry is Retry.SAME_KEY


def test_a_refusal_is_a_value():
    """Two refusals with the same content are equal, and neither is an exception."""
    assert Refusal(Code.INVALID_AMOUNT, "m", (Detail("amount", "rule"),)) == Refusal(
        Code.INVALID_AMOUNT, "m", (Detail("amount", "rule"),), retry_after_seconds=None
    )

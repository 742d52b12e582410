"""The paths of the users' and the operators' interfaces."""

from internal_transfer.domain.policy_change import PolicyAction, Subject

TRANSFERS = "/api/v1/user/internal_transfer"
TRANSFER_PREFIX = TRANSFERS + "/"
HISTORY = TRANSFERS + "/history"
PREVIEW = TRANSFERS + "/preview"
OPTIONS = TRANSFERS + "/options"
BALANCES = "/api/v1/user/balances"
ADMIN = "/api/v1/admin"
CONTRACT = "/openapi.json"
DOCUMENTATION = "/docs"


def policy_path(kind: Subject, subject: str, word: str) -> str:
    """Returns the path of a change of policy, below `ADMIN`."""
    return f"/policy/{word}" if kind is Subject.ALL else f"/{kind}s/{subject}/{word}"


def policy_word(kind: Subject, action: PolicyAction) -> str:
    """Returns the last part of that path: the action, without the kind of subject, which the path names before it."""
    return action.removesuffix(f"_{kind}")

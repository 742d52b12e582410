"""What can go wrong with a server for tests."""


class Missing(Exception):  # noqa: N818 - it is a reason to skip, not a failure.
    """Something that the server needs is not on this machine; the message says what, and how to get it."""


class FailedError(Exception):
    """A server that should run does not; the message holds the end of its log."""

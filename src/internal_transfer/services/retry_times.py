"""When a transfer is taken up again: after a step, and after a failure; and when it expires."""

from msgspec import Struct


class RetryTimes(Struct, frozen=True, kw_only=True):
    """In seconds. A transfer being worked on is due again after `acting_seconds`, in case its process dies.

    Failures back off from `first_seconds` to `longest_seconds`. A transfer without a hold expires after
    `expiry_seconds`.
    """

    acting_seconds: float = 3.0
    first_seconds: float = 1.0
    longest_seconds: float = 300.0
    expiry_seconds: float = 900.0

    def pause_seconds(self, attempts: int, jitter: float) -> float:
        """Returns the pause after this many failed attempts (from 1), which doubles; jitter takes up to half of it off.

        `jitter` is at least 0 and below 1.
        """
        full = min(self.longest_seconds, self.first_seconds * 2.0 ** min(attempts - 1, 30))
        return full * (0.5 + 0.5 * jitter)

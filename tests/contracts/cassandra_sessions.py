"""Driver's sessions with faults before a real Cassandra, and a clock on which something happens between two tries."""

from cassandra import ConsistencyLevel, OperationTimedOut
from cassandra.cluster import NoHostAvailable
from cassandra.query import BatchStatement

from internal_transfer.adapters.system.clock import SystemClock


def _text(request):
    """The text of a statement; batches have none."""
    return "" if isinstance(request, BatchStatement) else request.prepared_statement.query_string


class Meanwhile(SystemClock):
    """A clock on which waiting takes no time; during the first wait something else happens."""

    def __init__(self, happening):
        super().__init__()
        self._happening = happening

    async def sleep(self, _seconds):
        """Lets happen what happens meanwhile."""
        happening, self._happening = self._happening, None
        if happening is not None:
            await happening()


class LosesFirst:
    """Gives no answer to the first conditional write of a kind, which is carried out before that or not."""

    def __init__(self, session, kind, *, executed):
        self._session = session
        self._kind = kind
        self._executed = executed
        self.lost = False

    def execute_async(self, request):
        """Sends a request."""
        if not self.lost and self._kind in _text(request):
            self.lost = True
            if self._executed:
                self._session.execute(request)
            raise OperationTimedOut
        return self._session.execute_async(request)


class CommitsTooFew:
    """Commits every conditional write on two replicas where there is one, the first time it is sent: so it is decided,
    and told as failed.
    """

    def __init__(self, session):
        self._session = session
        self._sent = []

    @property
    def failed(self):
        """How many were told so."""
        return len(self._sent)

    def execute_async(self, request):
        """Sends a request."""
        if " IF " in _text(request):
            is_new = not any(request is each for each in self._sent)
            request.consistency_level = ConsistencyLevel.TWO if is_new else None
            if is_new:
                self._sent.append(request)
        return self._session.execute_async(request)


class GoneAfter:
    """Reaches nobody any more after so many requests, which are answered one after the other."""

    def __init__(self, session, requests):
        self._session = session
        self._left = requests

    def execute_async(self, request):
        """Sends a request."""
        self._left -= 1
        if self._left < 0:
            raise NoHostAvailable("nobody", {})
        sent = self._session.execute_async(request)
        sent.result()
        return sent


class Watched:
    """Keeps the consistency of every read of a table."""

    def __init__(self, session, table):
        self._session = session
        self._table = f".{table} "
        self.read_at = []

    def execute_async(self, request):
        """Sends a request."""
        if _text(request).startswith("SELECT") and self._table in _text(request):
            self.read_at.append(request.consistency_level)
        return self._session.execute_async(request)

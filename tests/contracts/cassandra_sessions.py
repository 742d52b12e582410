"""Driver sessions that put faults in front of a real Cassandra, and a clock that acts while the store waits."""

from cassandra import ConsistencyLevel, OperationTimedOut
from cassandra.cluster import NoHostAvailable
from cassandra.query import BatchStatement
from msgspec.structs import replace

from internal_transfer.adapters.cassandra.cluster import connect
from internal_transfer.adapters.cassandra.session import Cql
from internal_transfer.adapters.system.clock import SystemClock


class Connection:
    """The connection of one process: `cql` for the adapters, and `driver`, the driver's session.

    Requests go through the session that `put_before` was given last, so that a test can add a fault.
    """

    def __init__(self, settings, *, system):
        self.cql = Cql(settings, SystemClock(), system=system, connect=self._connect)
        self.driver = self._front = None

    def _connect(self, settings):
        connected = connect(settings)
        self.driver = self._front = connected.session
        return replace(connected, session=self)

    def put_before(self, front):
        """Sends all requests through `front` from now on; pass `driver` to end that."""
        self._front = front
        return front

    def execute_async(self, request):
        """Sends a request."""
        return self._front.execute_async(request)

    def __getattr__(self, name):
        return getattr(self.driver, name)


def _text(request):
    """The text of a statement; a batch has none."""
    return "" if isinstance(request, BatchStatement) else request.prepared_statement.query_string


class Meanwhile(SystemClock):
    """A clock on which waiting takes no time; during the first wait it runs `happening`."""

    def __init__(self, happening):
        super().__init__()
        self._happening = happening

    async def sleep(self, _seconds):
        """Runs `happening`, once."""
        happening, self._happening = self._happening, None
        if happening is not None:
            await happening()


class LosesFirst:
    """Loses the answer to the first conditional write with `kind` in its text, or loses the write itself."""

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
    """Requires two replicas for the commit of every conditional write the first time it is sent. There is only one, so
    the write is decided and then fails.
    """

    def __init__(self, session):
        self._session = session
        self._sent = []

    @property
    def failed(self):
        """How many writes failed so."""
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
    """Reaches no node after a number of requests, which it answers one after the other."""

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
    """Records the consistency level of every read of a table."""

    def __init__(self, session, table):
        self._session = session
        self._table = f".{table} "
        self.read_at = []

    def execute_async(self, request):
        """Sends a request."""
        if _text(request).startswith("SELECT") and self._table in _text(request):
            self.read_at.append(request.consistency_level)
        return self._session.execute_async(request)

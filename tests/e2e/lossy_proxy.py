"""A proxy that passes requests on and, when it is told to, keeps their answers."""

import http.client
import threading
from collections import deque
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fate(Enum):
    """What becomes of the answer to a POST that the server has carried out.

    LOST: the connection is closed without it. HUNG: it never comes, until the client gives up.
    """

    LOST = "lost"
    HUNG = "hung"


class LossyProxy:
    """A proxy on loopback in front of a server; answers to GETs are always passed on."""

    def __init__(self, upstream_port: int) -> None:
        self.fates: deque[Fate] = deque()
        """The fates of the answers to the next POSTs; those after them are passed on."""
        self.posts: list[tuple[int, bytes]] = []
        """The status and body of every answer that the server gave to a POST, passed on or not."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            """One connection of a client."""

            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Passes the request on, and its answer back."""
                self._answer(*self._pass_on(b""))

            def do_POST(self) -> None:
                """Passes the request on; its answer has the next fate."""
                status, headers, body = self._pass_on(self.rfile.read(int(self.headers["content-length"])))
                proxy.posts.append((status, body))
                match proxy.fates.popleft() if proxy.fates else None:
                    case Fate.LOST:
                        self.close_connection = True
                    case Fate.HUNG:
                        self.close_connection = True
                        self.rfile.read(1)  # Comes back when the client closes the connection.
                    case None:
                        self._answer(status, headers, body)

            def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                upstream = http.client.HTTPConnection("127.0.0.1", upstream_port)
                try:
                    upstream.request(self.command, self.path, body, dict(self.headers.items()))
                    response = upstream.getresponse()
                    return response.status, response.getheaders(), response.read()
                finally:
                    upstream.close()

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in {"connection", "transfer-encoding"}:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Takes no more connections."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

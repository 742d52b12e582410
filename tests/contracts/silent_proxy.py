"""A proxy before a server that can be told to keep the answers to itself."""

import asyncio


class SilentProxy:
    """Passes bytes on in both directions; while `silent`, what the server says is dropped and noted in `dropped`.

    `instead` is pairs of what the server says and, as long, what its clients hear.
    """

    def __init__(self, port, *, instead=()):
        self._target = port
        self._instead = instead
        self._writers = []
        self._tasks = set()
        self.silent = False
        self.dropped = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self):
        """Breaks all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, to_server]
        try:
            await asyncio.gather(
                self._pass(reader, to_server, answers=False), self._pass(from_server, writer, answers=True)
            )
        finally:
            writer.transport.abort()
            to_server.transport.abort()

    async def _pass(self, reader, writer, *, answers):
        try:
            while data := await reader.read(65_536):
                for said, heard in self._instead if answers else ():
                    data = data.replace(said, heard)
                if answers and self.silent:
                    self.dropped.set()
                else:
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        writer.transport.abort()

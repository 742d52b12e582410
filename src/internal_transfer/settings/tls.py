"""The files of TLS, for the clients of every system."""

import ssl
from pathlib import Path

from msgspec import Struct

from internal_transfer.ports.errors import StartRefusedError


class TlsFiles(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """PEM files; an empty name stands for none.

    `ca_file` is the authority that signed the server's certificate; without it the system's authorities count.
    `cert_file` and `key_file` are this client's own, for a server that asks for them.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def check(self, system: str) -> None:
        """Raises `StartRefusedError` for the first file that cannot be read; `system` says what it is for."""
        for name in filter(None, (self.ca_file, self.cert_file, self.key_file)):
            try:
                Path(name).open("rb").close()
            except OSError as error:
                raise StartRefusedError(f"the TLS file {name} for {system} cannot be read: {error.strerror}") from error

    def context(self, system: str) -> ssl.SSLContext:
        """Returns a client's context; raises `StartRefusedError` for files that cannot be read or used."""
        self.check(system)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except ssl.SSLError as error:
            raise StartRefusedError(f"the TLS files for {system} cannot be used: {error}") from error
        return context


class Tls(TlsFiles, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of a system's table that are about TLS: whether the connection is encrypted, and the files."""

    tls: bool = False

    @property
    def files(self) -> TlsFiles:
        """The files alone."""
        return TlsFiles(ca_file=self.ca_file, cert_file=self.cert_file, key_file=self.key_file)

"""The files of TLS: those that cannot be read, and those that are no certificates."""

import pytest

from internal_transfer.ports.errors import StartRefusedError
from internal_transfer.settings.tls import TlsFiles


@pytest.mark.parametrize("key", ["ca_file", "cert_file", "key_file"])
def test_a_file_that_cannot_be_read(tmp_path, key):
    """A file that is not there refuses the start, which names it and the system."""
    files = TlsFiles(**{key: str(tmp_path / "none.pem")})
    with pytest.raises(StartRefusedError, match=r"TLS file .*none\.pem for Kafka cannot be read: No such file"):
        files.check("Kafka")


@pytest.mark.parametrize("key", ["ca_file", "cert_file"])
def test_a_file_that_is_no_certificate(tmp_path, key):
    """A file without a certificate refuses the start."""
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(StartRefusedError, match="the TLS files for Cassandra cannot be used"):
        TlsFiles(**{key: str(tmp_path / "text.pem")}).context("Cassandra")


def test_no_files():
    """Without files the authorities of the system count, and there is nothing to read."""
    TlsFiles().check("Kafka")
    assert TlsFiles().context("Kafka").check_hostname

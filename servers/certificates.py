"""Certificates for one server and its clients, signed by an authority of their own. For trials only."""
# ruff: noqa: TID251 - real servers check validity by the real clock.

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from servers import process

_VALID = timedelta(days=365)


class Certificates(msgspec.Struct, frozen=True):
    """PEM files: what a server shows, what a client shows, and the authority (CA) that both trust."""

    authority: Path
    server: Path
    server_key: Path
    server_both: Path
    """Key and certificate in one file, as Java wants them."""
    client: Path
    client_key: Path


def certificates(folder: Path) -> Certificates:
    """The certificates in `folder`, made when it is not there yet."""
    made = Certificates(
        authority=folder / "ca.pem",
        server=folder / "server.pem",
        server_key=folder / "server-key.pem",
        server_both=folder / "server-both.pem",
        client=folder / "client.pem",
        client_key=folder / "client-key.pem",
    )
    # Written last, so that an interrupted start makes all of them again.
    if not made.authority.exists():
        folder.mkdir(exist_ok=True)
        _make(made)
    return made


def _make(files: Certificates) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("trial authority")
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    authority = (
        _builder(authority_name, authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    for common_name, purpose, certificate_file, key_file in (
        ("localhost", ExtendedKeyUsageOID.SERVER_AUTH, files.server, files.server_key),
        ("trial-client", ExtendedKeyUsageOID.CLIENT_AUTH, files.client, files.client_key),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        certificate = (
            _builder(_name(common_name), authority_name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        # PostgreSQL and libpq refuse keys that others can read.
        key_file.chmod(0o600)
    process.give(files.server_key)
    files.server_both.write_bytes(files.server_key.read_bytes() + files.server.read_bytes())
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )

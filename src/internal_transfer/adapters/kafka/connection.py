"""How a Kafka cluster is reached: addresses, TLS, log-in, and the settings that all clients share."""

from enum import StrEnum
from typing import Any

import structlog
from confluent_kafka import KafkaError
from msgspec import Struct

from internal_transfer.settings.tls import TlsFiles

_log = structlog.get_logger(__name__)

_WARNING = 30
"""The number of `logging.WARNING`."""


class Mechanism(StrEnum):
    """How a client proves who it is (SASL)."""

    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


class KafkaLogin(Struct, frozen=True, kw_only=True):
    """A user and a password, which its text does not show."""

    user: str
    password: str
    mechanism: Mechanism = Mechanism.SCRAM_SHA_512

    def __repr__(self) -> str:
        return f"KafkaLogin(user={self.user!r}, mechanism={self.mechanism.value!r})"


class KafkaConnection(Struct, frozen=True, kw_only=True):
    """A cluster, and as whom to speak to it. `bootstrap` is `host:port`, several separated by commas.

    `session_seconds` is how long a consumer may be silent before its partitions are given to another;
    `delivery_seconds` how long a message may be on its way before it is given up.
    """

    bootstrap: str
    client_name: str = "internal-transfer"
    tls: TlsFiles | None = None
    login: KafkaLogin | None = None
    session_seconds: float = 10.0
    delivery_seconds: float = 5.0

    def client_settings(self) -> dict[str, Any]:
        """What every client of the cluster is told; raises `StartRefusedError` for files that cannot be read."""
        settings: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap,
            "client.id": self.client_name,
            "security.protocol": _PROTOCOLS[self.tls is not None, self.login is not None],
            "reconnect.backoff.ms": 500,
            "reconnect.backoff.max.ms": 2_000,
            "socket.keepalive.enable": True,
            "socket.timeout.ms": 10_000,
            "socket.connection.setup.timeout.ms": 5_000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "topic.metadata.propagation.max.ms": 2_000,
            "allow.auto.create.topics": False,
        }
        if self.tls is not None:
            self.tls.check("Kafka")
            files = {
                "ssl.ca.location": self.tls.ca_file,
                "ssl.certificate.location": self.tls.cert_file,
                "ssl.key.location": self.tls.key_file,
            }
            settings |= {name: file for name, file in files.items() if file}
        if self.login is not None:
            settings |= {
                "sasl.mechanism": self.login.mechanism.value,
                "sasl.username": self.login.user,
                "sasl.password": self.login.password,
            }
        return settings


_PROTOCOLS = {
    (False, False): "PLAINTEXT",
    (True, False): "SSL",
    (False, True): "SASL_PLAINTEXT",
    (True, True): "SASL_SSL",
}

REFUSED = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError._SSL,  # noqa: SLF001
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
    }
)
"""What the client says where the cluster does not want us; trying again does not help until somebody changes that."""


class ClientLog:
    """Takes the client library's own log lines, as its `logger`."""

    def log(self, level: int, message: str, *args: object) -> None:
        """Writes one line; the library speaks printf.

        It tells of every attempt to connect; the clients' own log tells once that brokers are away, and once that they
        are back.
        """
        text = message % args if args else message
        write = _log.warning if level >= _WARNING and not text.startswith("FAIL") else _log.debug
        write("kafka_client", message=text)

"""How to reach a Kafka cluster: addresses, TLS, log-in, and the settings that all clients share."""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec
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
    """A user and a password; the password does not appear in its text."""

    user: str
    password: str
    mechanism: Mechanism = Mechanism.SCRAM_SHA_512

    def __repr__(self) -> str:
        return f"KafkaLogin(user={self.user!r}, mechanism={self.mechanism.value!r})"


class KafkaConnection(Struct, frozen=True, kw_only=True):
    """A cluster and the identity to use there. `bootstrap` is `host:port`, several separated by commas.

    A consumer that is silent for `session_seconds` loses its partitions to other members; a message that is not
    confirmed within `delivery_seconds` is given up.
    """

    bootstrap: str
    client_name: str = "internal-transfer"
    tls: TlsFiles | None = None
    login: KafkaLogin | None = None
    session_seconds: float = 10.0
    delivery_seconds: float = 5.0

    def client_settings(self) -> dict[str, Any]:
        """The settings of every client of the cluster; raises `StartRefusedError` for files that cannot be read."""
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
"""The client's errors if the cluster refuses us; trying again does not help until somebody changes its settings."""


class ClientLog:
    """Takes the client library's own log lines, as its `logger`."""

    def log(self, level: int, message: str, *args: object) -> None:
        """Writes one line; the library speaks printf.

        The library reports every attempt to connect, which is for debugging only: our own log says once that the
        brokers are away and once that they are back.
        """
        text = message % args if args else message
        write = _log.warning if level >= _WARNING and not text.startswith("FAIL") else _log.debug
        write("kafka_client", message=text)


def call_in_loop(
    loop: asyncio.AbstractEventLoop | None, listener: Callable[[Any], None], what: object, *, topic: str
) -> None:
    """Calls a listener in the event loop, from a reader's thread; only logs it where the loop has ended."""
    assert loop is not None, "the thread starts with a loop"
    try:
        loop.call_soon_threadsafe(listener, what)
    except RuntimeError:
        _log.warning("kafka_message_after_the_loop_ended", topic=topic)


class _Broker(Struct, frozen=True):
    """A broker in a client's figures; the addresses from the settings have negative numbers."""

    nodeid: int
    state: str


class _Figures(Struct, frozen=True):
    """The part of a client's figures that is read."""

    brokers: dict[str, _Broker]


_figures_decoder = msgspec.json.Decoder(_Figures)


def reaches_a_broker(figures: str) -> bool:
    """Tells from a client's figures (`stats_cb`) whether it is connected to a broker; nothing else says so."""
    brokers = _figures_decoder.decode(figures).brokers.values()
    return any(broker.nodeid >= 0 and broker.state == "UP" for broker in brokers)

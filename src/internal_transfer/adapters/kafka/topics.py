"""The topics: their names and settings, and how they are made and checked."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]
from msgspec import Struct

from internal_transfer.adapters.kafka.producer import OVERHEAD_BYTES
from internal_transfer.adapters.kafka.settings import REFUSED, ClientLog, KafkaConnection
from internal_transfer.ports.errors import StartRefusedError, System, Unavailable
from internal_transfer.ports.finding import Finding
from internal_transfer.wire.core_messages import MESSAGE_BYTES_MAX

_log = structlog.get_logger(__name__)

_SLICES = 10
_SETTLING_SECONDS = 0.1
_DAY_MS = 86_400_000


class Topics(Struct, frozen=True):
    """The names of all topics, under one prefix."""

    prefix: str = "internal-transfer"

    @property
    def commands(self) -> str:
        """Commands to the trading core, by transfer id."""
        return f"{self.prefix}.core.commands"

    @property
    def verdicts(self) -> str:
        """The core's verdicts, by transfer id."""
        return f"{self.prefix}.core.verdicts"

    @property
    def queries(self) -> str:
        """Queries to the core, by correlation id."""
        return f"{self.prefix}.core.queries"

    @property
    def replies(self) -> str:
        """The core's replies, by correlation id."""
        return f"{self.prefix}.core.replies"

    @property
    def events(self) -> str:
        """The events of transfers, for other programs, by transfer id."""
        return f"{self.prefix}.transfers.events"

    @property
    def dead_letters(self) -> str:
        """Messages that could not be decoded, with the reason."""
        return f"{self.prefix}.dead-letters"

    @property
    def all(self) -> dict[str, Mapping[str, str]]:
        """Every topic and the settings to make it with. None is compacted, which would lose messages."""
        kept: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": str(7 * _DAY_MS)}
        asked: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": str(_DAY_MS // 24)}
        long: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS)}
        return {
            self.commands: kept,
            self.verdicts: kept,
            self.queries: asked,
            self.replies: asked,
            self.events: kept,
            self.dead_letters: long,
        }


class Cluster:
    """Makes and checks the topics of one prefix. Every call waits at most `call_seconds` for the brokers."""

    def __init__(self, connection: KafkaConnection, topics: Topics, *, call_seconds: float = 10.0) -> None:
        self._connection = connection
        self._topics = topics
        self._call_seconds = call_seconds

    async def create_topics(self, *, partitions: int = 12, copies: int = -1) -> list[str]:
        """Makes the topics that are missing and returns their names; `copies` of -1 means the cluster's default.

        Raises `Unavailable` where the cluster cannot be reached, and `StartRefusedError` where it refuses.
        """
        return await asyncio.to_thread(self._create, partitions, copies)

    async def require(self) -> None:
        """Checks that the cluster can be used.

        Raises `Unavailable` where it cannot be reached, and `StartRefusedError`, saying what to do, where it refuses
        us, a topic is missing, or a topic has the wrong settings.
        """
        for name, ok, message in await asyncio.to_thread(self._look):
            if not ok:
                raise StartRefusedError(f"Kafka, {name}: {message}")

    async def check(self) -> list[Finding]:
        """The findings of `doctor` on connection, log-in, topics and limits; never raises."""
        try:
            return await asyncio.to_thread(self._look)
        except Unavailable as error:
            return [Finding("kafka connection", False, error.message)]
        except StartRefusedError as error:
            return [Finding("kafka connection", False, str(error))]

    def _admin(self) -> tuple[AdminClient, Any]:
        """A client that has reached the cluster, and the metadata it got."""
        refusals: list[KafkaError] = []

        def heard(error: KafkaError) -> None:
            if error.code() in REFUSED:
                refusals.append(error)

        admin = AdminClient(self._connection.client_settings() | {"error_cb": heard}, logger=ClientLog())
        # In slices, so that a refusal ends the waiting: the client only reports it, and goes on trying.
        for _ in range(_SLICES):
            try:
                return admin, admin.list_topics(timeout=self._call_seconds / _SLICES)
            except KafkaException as error:
                admin.poll(0)
                failure: KafkaError = refusals[0] if refusals else error.args[0]
                if refusals:
                    break
        raise self._failure(failure)

    def _failure(self, error: KafkaError) -> Exception:
        where = self._connection.bootstrap
        if error.code() in REFUSED:
            user = "no user" if self._connection.login is None else f"user {self._connection.login.user}"
            return StartRefusedError(
                f"Kafka at {where} refuses us ({user}): {error.str()}; check the user, the password, the mechanism, "
                "the TLS files and the user's permissions (docs/guides/kafka.md)"
            )
        return Unavailable(
            System.BUS,
            f"Kafka at {where} does not answer: {error.str()} (check the address, and whether it wants TLS or a user)",
        )

    def _create(self, partitions: int, copies: int) -> list[str]:
        admin, known = self._admin()
        missing = [
            NewTopic(name, num_partitions=partitions, replication_factor=copies, config=dict(config))
            for name, config in self._topics.all.items()
            if name not in known.topics
        ]
        if not missing:
            return []
        made = []
        for name, future in admin.create_topics(missing, request_timeout=self._call_seconds).items():
            try:
                future.result(timeout=self._call_seconds)
                made.append(name)
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise StartRefusedError(
                        f"Kafka does not let us make the topic {name}: {reason.str()}; "
                        "make it by hand (docs/guides/kafka.md), or permit it"
                    ) from error
        self._wait_until_usable(admin)
        _log.info("kafka_topics_made", topics=made)
        return made

    def _wait_until_usable(self, admin: AdminClient) -> None:
        """Waits until the brokers know of the topics, and which of them leads each partition."""
        for _ in range(round(self._call_seconds / _SETTLING_SECONDS)):
            known = admin.list_topics(timeout=self._call_seconds).topics
            found = [known.get(name) for name in self._topics.all]
            if all(
                topic is not None
                and topic.error is None
                and all(each.leader >= 0 for each in topic.partitions.values())
                for topic in found
            ):
                return
            admin.poll(_SETTLING_SECONDS)
        raise Unavailable(System.BUS, f"the topics under {self._topics.prefix} were made, but have no leaders yet")

    def _look(self) -> list[Finding]:
        admin, known = self._admin()
        findings = [Finding("kafka connection", True, f"{len(known.brokers)} brokers at {self._connection.bootstrap}")]
        present = []
        for name in self._topics.all:
            topic = known.topics.get(name)
            if topic is None or topic.error is not None:
                why = "does not exist" if topic is None else topic.error.str()
                advice = "make the topics (docs/guides/kafka.md) and permit their use"
                findings.append(Finding(f"topic {name}", False, f"{why}; {advice}"))
            else:
                present.append(name)
                findings.append(Finding(f"topic {name}", True, f"{len(topic.partitions)} partitions"))
        return [*findings, *self._look_at_settings(admin, present)]

    def _look_at_settings(self, admin: AdminClient, present: list[str]) -> Iterator[Finding]:
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in present]
        futures = admin.describe_configs(resources, request_timeout=self._call_seconds) if resources else {}
        for resource, future in futures.items():
            name, bytes_least = f"settings of {resource.name}", MESSAGE_BYTES_MAX + OVERHEAD_BYTES
            try:
                config = future.result(timeout=self._call_seconds)
            except KafkaException as error:
                # A topic whose settings we may not read can still be used.
                yield Finding(name, True, f"cannot be read: {error.args[0].str()}")
                continue
            if "compact" in config["cleanup.policy"].value:
                yield Finding(name, False, "it is compacted and loses messages: cleanup.policy=delete")
            if int(config["max.message.bytes"].value) < bytes_least:
                yield Finding(name, False, f"max.message.bytes has to be at least {bytes_least}")

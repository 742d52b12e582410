"""Apache Kafka, one node that is broker and controller (KRaft), from its jars on Maven Central."""

import secrets
from base64 import urlsafe_b64encode

import msgspec

from servers import jars, process
from servers.server import HOST, PASSWORD, Server, Tls, write_properties


class KafkaAddress(msgspec.Struct, frozen=True):
    """A Kafka of one broker."""

    port: int
    user: str | None = None
    password: str | None = None
    """Given for SASL PLAIN. The user `limited` has the same password and may do nothing."""
    tls: Tls | None = None
    """The listener for SASL PLAIN over TLS."""
    host: str = HOST

    @property
    def bootstrap(self) -> str:
        """The value of `bootstrap.servers`."""
        return f"{self.host}:{self.port}"


class Kafka(Server[KafkaAddress]):
    """One Kafka. Topics are made on first use with one partition; make them with as many as a test needs."""

    name = "kafka"
    ready_text = "Kafka Server started"
    start_seconds = 120
    stop_seconds = 60

    def ports_needed(self) -> int:
        """For clients, for the controller, and when secured for clients by TLS."""
        return 3 if self.secured else 2

    def install(self) -> None:
        """Finds Java, and the jars."""
        self._java = jars.java(least=17, most=99)
        self._classes = f"{jars.library('kafka')}/*"

    def configure(self) -> list[str]:
        """Writes server.properties and formats the data folder once."""
        data = self.folder / "data"
        settings = self.folder / "server.properties"
        write_properties(
            self.folder / "log4j2.properties",
            {
                "status": "error",
                "appender.out.type": "Console",
                "appender.out.name": "out",
                "appender.out.layout.type": "PatternLayout",
                "appender.out.layout.pattern": "%d %p %m (%c{1})%n%throwable",
                "rootLogger.level": "info",
                "rootLogger.appenderRef.out.ref": "out",
            },
        )
        write_properties(
            settings,
            {
                "process.roles": "broker,controller",
                "node.id": 1,
                "controller.listener.names": "CONTROLLER",
                "inter.broker.listener.name": "CLIENT",
                **(self._secured_listeners() if self.secured else self._open_listeners()),
                "log.dirs": data,
                # One node can hold only one copy of anything.
                "offsets.topic.replication.factor": 1,
                "offsets.topic.num.partitions": 4,
                "transaction.state.log.replication.factor": 1,
                "transaction.state.log.min.isr": 1,
                "transaction.state.log.num.partitions": 4,
                "share.coordinator.state.topic.replication.factor": 1,
                "share.coordinator.state.topic.min.isr": 1,
                "group.initial.rebalance.delay.ms": 0,
                # A killed broker can register again only after its old session has expired, 9 s by default.
                "broker.session.timeout.ms": 4_000,
                "broker.heartbeat.interval.ms": 1_000,
                # The cleaner's buffer is what takes most of a small broker's heap.
                "log.cleaner.dedupe.buffer.size": 16_777_216,
            },
        )
        if not (data / "meta.properties").exists():
            cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
            # One word, since an id may begin with a dash.
            tool = [
                *self._machine(),
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster}",
                "-c",
                f"{settings}",
            ]
            process.run(tool, seconds=60)
        return [*self._machine(), "kafka.Kafka", f"{settings}"]

    def address(self) -> KafkaAddress:
        """Where clients connect."""
        if not self.secured:
            return KafkaAddress(port=self.ports[0])
        return KafkaAddress(port=self.ports[0], user="admin", password=PASSWORD, tls=self.tls(self.ports[2]))

    def _open_listeners(self) -> dict[str, object]:
        port, controller_port = self.ports
        return {
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "listeners": f"CLIENT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"CLIENT://{HOST}:{port}",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        }

    def _secured_listeners(self) -> dict[str, object]:
        port, controller_port, tls_port = self.ports
        self.speaks_tls = True
        files = self.certificates()
        login = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="admin" password="{PASSWORD}" user_admin="{PASSWORD}" user_limited="{PASSWORD}";'
        )
        return {
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "listeners": f"CLIENT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port},TLS://{HOST}:{tls_port}",
            "advertised.listeners": f"CLIENT://{HOST}:{port},TLS://{HOST}:{tls_port}",
            "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SASL_SSL",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": login,
            "listener.name.tls.plain.sasl.jaas.config": login,
            "listener.name.tls.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": files.server_both,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": files.authority,
            # The controller's listener asks for no login, so the node itself connects as ANONYMOUS.
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:admin;User:ANONYMOUS",
        }

    def _machine(self) -> list[str]:
        limits = ["-Xms128m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:MaxDirectMemorySize=64m"]
        return [
            self._java,
            *limits,
            f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties",
            "-cp",
            self._classes,
        ]

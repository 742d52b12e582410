"""Apache Cassandra, one node, from its jars on Maven Central: the stand-in for every CQL database."""

import msgspec

from servers import jars
from servers.server import HOST, Server, Tls


class CassandraAddress(msgspec.Struct, frozen=True):
    """A Cassandra of one node."""

    port: int
    user: str | None = None
    password: str | None = None
    tls: Tls | None = None
    """On the same port, which takes both."""
    host: str = HOST
    datacenter: str = "datacenter1"


# Cassandra creates this role when there is none, with the role's name as its password.
_SUPERUSER = "cassandra"

# What Cassandra 5.0's conf/jvm17-server.options opens.
_EXPORTS = (
    "java.base/jdk.internal.misc",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.rmi/sun.rmi.transport.tcp",
    "java.sql/java.sql",
    "java.base/java.lang.ref",
    "java.base/sun.nio.ch",
    "jdk.unsupported/sun.misc",
)
_OPENS = (
    "java.base/java.lang.module",
    "java.base/java.net",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "java.management/com.sun.jmx.remote.security",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/sun.nio.ch",
)

_LOGBACK = """<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%date %level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="OUT"/></root>
</configuration>
"""


class Cassandra(Server[CassandraAddress]):
    """One Cassandra that acknowledges a write only once it is on disk."""

    name = "cassandra"
    ready_text = "Starting listening for CQL clients"
    start_seconds = 180
    stop_seconds = 60

    def ports_needed(self) -> int:
        """One for clients, one for the nodes among themselves."""
        return 2

    def install(self) -> None:
        """Finds Java 17, and the jars."""
        # Cassandra 5.0 needs Java's security manager, which later versions of Java no longer have.
        self._java = jars.java(least=17, most=17)
        self._classes = f"{jars.library('cassandra')}/*"

    def configure(self) -> list[str]:
        """Writes cassandra.yaml (as JSON, which is YAML) and the configuration of the log."""
        port, storage_port = self.ports
        settings = self.folder / "cassandra.yaml"
        settings.write_bytes(msgspec.json.encode(self._settings(port, storage_port)))
        (self.folder / "logback.xml").write_text(_LOGBACK, encoding="utf-8")
        return [
            self._java,
            *(f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTS),
            *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS),
            "-Xms512m",
            "-Xmx1g",
            "-Xss256k",
            "-XX:+UseSerialGC",
            "-XX:MaxDirectMemorySize=128m",
            "-Djdk.attach.allowAttachSelf=true",
            "-Dio.netty.tryReflectionSetAccessible=true",
            f"-Dlogback.configurationFile={self.folder}/logback.xml",
            f"-Dcassandra.config=file://{settings}",
            f"-Dcassandra.storagedir={self.folder}/data",
            "-Dcassandra-foreground=yes",
            "-Dcassandra.superuser_setup_delay_ms=0",
            "-Dcassandra.ring_delay_ms=0",
            "-Dcassandra.skip_wait_for_gossip_to_settle=0",
            "-cp",
            self._classes,
            "org.apache.cassandra.service.CassandraDaemon",
        ]

    def address(self) -> CassandraAddress:
        """Where clients connect."""
        port = self.ports[0]
        if not self.secured:
            return CassandraAddress(port=port)
        return CassandraAddress(port=port, user=_SUPERUSER, password=_SUPERUSER, tls=self.tls(port))

    def is_ready(self) -> bool:
        """Whether it takes connections and has its superuser, which it creates afterwards."""
        made = self.folder / "superuser-made"
        if self.secured and not made.exists():
            if not self.has_logged("Created default superuser role"):
                return False
            made.touch()
        return super().is_ready()

    def _settings(self, port: int, storage_port: int) -> dict[str, object]:
        patience = "10s"
        return {
            "cluster_name": f"trial-{self.instance}",
            "num_tokens": 1,
            "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
            "endpoint_snitch": "SimpleSnitch",
            "seed_provider": [
                {
                    "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                    "parameters": [{"seeds": f"{HOST}:{storage_port}"}],
                }
            ],
            "listen_address": HOST,
            "rpc_address": HOST,
            "storage_port": storage_port,
            "native_transport_port": port,
            "start_native_transport": True,
            # The default, periodic, acknowledges a write up to ten seconds before it is on disk.
            "commitlog_sync": "batch",
            "commitlog_disk_access_mode": "auto",
            # Direct writes, where the file system has them, and the newer Paxos save a third of a conditional write.
            # (`auto` falls back by itself.) Cassandra's many threads cost two processors more than they give.
            "paxos_variant": "v2",
            "concurrent_reads": 4,
            "concurrent_writes": 16,
            "native_transport_max_threads": 32,
            "commitlog_segment_size": "16MiB",
            "commitlog_total_space": "1GiB",
            "memtable_heap_space": "256MiB",
            "memtable_offheap_space": "128MiB",
            "file_cache_size": "32MiB",
            "key_cache_size": "8MiB",
            "auto_snapshot": False,
            # A busy small machine answers late, and a time-out would be an unknown outcome.
            "read_request_timeout": patience,
            "range_request_timeout": patience,
            "write_request_timeout": patience,
            "cas_contention_timeout": patience,
            "truncate_request_timeout": "60s",
            "request_timeout": patience,
            **(self._guards() if self.secured else {}),
        }

    def _guards(self) -> dict[str, object]:
        self.speaks_tls = True
        files = self.certificates()
        return {
            "authenticator": "PasswordAuthenticator",
            "authorizer": "CassandraAuthorizer",
            "role_manager": "CassandraRoleManager",
            "client_encryption_options": {
                "enabled": True,
                "optional": True,
                "require_client_auth": True,
                "ssl_context_factory": {"class_name": "org.apache.cassandra.security.PEMBasedSslContextFactory"},
                "keystore": f"{files.server_both}",
                "truststore": f"{files.authority}",
            },
        }

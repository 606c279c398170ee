"""Apache Cassandra on loopback: one node, which keeps its data in its folder.

Writes are synced before they are acknowledged; by default Cassandra leaves that to its replicas.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

from services.java import jars, java
from services.process import HOST, Server, free_port

_MAIN = "org.apache.cassandra.service.CassandraDaemon"
_SECONDS_TO_START = 180

_SETTINGS = Template("""\
cluster_name: profilehouse
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "$host:$storage_port"}]
listen_address: $host
rpc_address: $host
storage_port: $storage_port
native_transport_port: $port
data_file_directories: [$folder/data]
commitlog_directory: $folder/commitlog
saved_caches_directory: $folder/saved_caches
hints_directory: $folder/hints
cdc_raw_directory: $folder/cdc
commitlog_sync: batch
commitlog_segment_size: 8MiB
memtable_heap_space: 128MiB
auto_snapshot: false
""")

_LOGGING = """\
<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{HH:mm:ss.SSS} %level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="out"/></root>
</configuration>
"""

_EXPORTS = """
java.base/java.lang.ref java.base/java.lang.reflect java.base/jdk.internal.misc
java.base/jdk.internal.ref java.base/sun.nio.ch
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry
java.rmi/sun.rmi.server java.sql/java.sql jdk.unsupported/sun.misc
"""
_OPENS = """
java.base/java.io java.base/java.lang java.base/java.lang.module java.base/java.lang.reflect
java.base/java.nio java.base/java.util java.base/java.util.concurrent
java.base/java.util.concurrent.atomic java.base/jdk.internal.loader java.base/jdk.internal.math
java.base/jdk.internal.module java.base/jdk.internal.ref java.base/jdk.internal.reflect
java.base/jdk.internal.util.jar java.base/sun.nio.ch
jdk.management/com.sun.management.internal
"""


class CassandraNode(Server):
    """One node."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet; see Server."""
        super().__init__(folder)
        self._storage_port = free_port()

    @property
    def address(self) -> str:
        """HOST:PORT of the node."""
        return f"{HOST}:{self._port}"

    def url(self, keyspace: str) -> str:
        """What PROFILEHOUSE_PROFILES must be; see `make_keyspace`."""
        return f"cassandra://{self.address}/{keyspace}"

    def make_keyspace(self, keyspace: str) -> None:
        """Make an empty keyspace without replicas."""
        with self.session() as session:
            session.execute(
                f"CREATE KEYSPACE {keyspace} WITH replication ="
                " {'class': 'SimpleStrategy', 'replication_factor': 1}"
            )

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A session of the driver, to look into the server with."""
        from cassandra import ProtocolVersion  # noqa: PLC0415
        from cassandra.cluster import (  # noqa: PLC0415
            EXEC_PROFILE_DEFAULT,
            Cluster,
            ExecutionProfile,
        )
        from cassandra.policies import RoundRobinPolicy  # noqa: PLC0415

        cluster = Cluster(
            [HOST],
            self._port,
            protocol_version=ProtocolVersion.V4,
            execution_profiles={EXEC_PROFILE_DEFAULT: ExecutionProfile(RoundRobinPolicy())},
        )
        with cluster, cluster.connect() as session:
            yield session

    def start(self) -> None:
        """Start it; it takes requests afterwards."""
        settings, logging = self._folder / "cassandra.yaml", self._folder / "logback.xml"
        settings.write_text(
            _SETTINGS.substitute(
                host=HOST, port=self._port, storage_port=self._storage_port, folder=self._folder
            )
        )
        logging.write_text(_LOGGING)
        libraries = jars("cassandra")
        agent = next(jar for jar in libraries if jar.name.startswith("jamm-"))
        command = [
            str(java()),
            "-Xms512m",
            "-Xmx1g",
            "-XX:+UseSerialGC",
            "-Xss512k",
            "-Djdk.attach.allowAttachSelf=true",
            *(f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTS.split()),
            *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS.split()),
            f"-javaagent:{agent}",
            f"-Dcassandra.config=file://{settings}",
            f"-Dcassandra.storagedir={self._folder}",
            f"-Dlogback.configurationFile=file:{logging}",
            "-Dcassandra-foreground=yes",
            "-Dcassandra.skip_wait_for_gossip_to_settle=0",
            "-Dcassandra.ring_delay_ms=1000",
            "-Dcassandra.superuser_setup_delay_ms=0",
            "-Djava.net.preferIPv4Stack=true",
            "-cp",
            ":".join(map(str, libraries)),
            _MAIN,
        ]
        self._run(command, "cassandra.log", _SECONDS_TO_START)

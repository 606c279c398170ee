"""A Kafka broker on loopback: one node in KRaft mode, from the jars of services/jars/kafka.txt."""

from __future__ import annotations

import base64
import os
import subprocess
import time
import uuid
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from services.java import jars, java
from services.process import HOST, Server, free_port

_HEAP = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC")
_SECONDS_TO_START = 120
_SECONDS_TO_ANSWER = 30

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
"""

_LOGGING = """\
rootLogger.level=info
rootLogger.appenderRefs=console
rootLogger.appenderRef.console.ref=console
appender.console.name=console
appender.console.type=Console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n
"""


class KafkaBroker(Server):
    """One broker, its own controller."""

    def __init__(self, folder: Path) -> None:
        """Prepare the folder of a new broker; see Server."""
        super().__init__(folder)
        self._format(controller_port=free_port())

    @property
    def address(self) -> str:
        """HOST:PORT of the broker."""
        return f"{HOST}:{self._port}"

    def url(self, topic: str) -> str:
        """What PROFILEHOUSE_LOG must be for a topic of this broker."""
        return f"kafka://{self.address}/{topic}"

    def start(self) -> None:
        """Run the broker and return once it answers.

        Raises:
            RuntimeError: where it does not come up; with the last lines of its log.
        """
        command = [str(java()), *_HEAP, "-Djava.net.preferIPv4Stack=true", *self._classpath()]
        self._run([*command, "kafka.Kafka", str(self._properties)], "broker.log", _SECONDS_TO_START)
        self._admin().list_topics(timeout=_SECONDS_TO_ANSWER)

    def create_topic(self, name: str, partitions: int = 4) -> None:
        """Create a topic whose records carry the time at which the broker took them."""
        topic = NewTopic(name, partitions, 1, config={"message.timestamp.type": "LogAppendTime"})
        admin = self._admin()
        admin.create_topics([topic])[name].result(_SECONDS_TO_ANSWER)
        _wait_until_known(admin, name, known=True)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with all its records."""
        admin = self._admin()
        admin.delete_topics([name])[name].result(_SECONDS_TO_ANSWER)
        _wait_until_known(admin, name, known=False)

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.address})

    def _classpath(self) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.properties'}"
        return [logging, "-cp", os.pathsep.join(map(str, jars("kafka")))]

    def _format(self, controller_port: int) -> None:
        (self._folder / "log4j2.properties").write_text(_LOGGING)
        self._properties.write_text(
            _PROPERTIES.format(
                host=HOST, port=self._port, controller_port=controller_port, folder=self._folder
            )
        )
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        command = [str(java()), "-Xmx128m", "-XX:+UseSerialGC", *self._classpath()]
        command += ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"]
        done = subprocess.run(
            [*command, "-c", str(self._properties)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS_TO_START,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"Kafka's folder cannot be prepared:\n{done.stdout[-2000:]}")


def _wait_until_known(admin: AdminClient, topic: str, *, known: bool) -> None:
    """The broker learns a little later what its controller has decided."""
    deadline = time.monotonic() + _SECONDS_TO_ANSWER
    while (topic in admin.list_topics(timeout=_SECONDS_TO_ANSWER).topics) != known:
        if time.monotonic() > deadline:
            raise RuntimeError(f"topic {topic}: the broker did not follow its controller")
        time.sleep(0.05)

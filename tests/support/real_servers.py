"""Provides real MinIO and Elasticsearch servers for a run of the tests, from the first source that is available.

The order is: addresses in the environment; containers by testcontainers; the programs of tests/servers/. If no source is available, the
last line of the run says so; with CI=true this is an error.
"""

import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

SERVERS = Path(__file__).parents[1] / "servers"
S3, ELASTICSEARCH = "GANTRY_TEST_S3_ENDPOINT", "GANTRY_TEST_ELASTICSEARCH_URL"
MINIO_IMAGE = "minio/minio:RELEASE.2025-09-07T16-13-09Z"
ES_JAVA_OPTS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Options for a JVM that lives for minutes: without the second compiler and parallel garbage collection, its start costs half the CPU."""
ELASTICSEARCH_IMAGE = "docker.elastic.co/elasticsearch/elasticsearch:8.19.0"


class RealServers:
    """The servers of this run: where they came from, or why they are missing."""

    def __init__(self) -> None:
        self.source = ""
        self.missing = ""
        self._ends: list[Callable[[], object]] = []

    def ensure(self) -> None:
        """Find or start both servers, and put their addresses into the environment."""
        if S3 in os.environ and ELASTICSEARCH in os.environ:
            self.source = "the environment"
        elif _engine_answers() and self._containers():
            self.source = "containers"
        elif all(shutil.which(program) for program in ("go", "javac", "mvn")) and self._programs():
            self.source = "tests/servers"
        else:
            self.missing = "real S3 and Elasticsearch servers were NOT tested: no address set, no container engine, no Go, JDK and Maven"
            return
        for name, path in ((S3, "/minio/health/ready"), (ELASTICSEARCH, "/_cluster/health")):
            try:
                urllib.request.urlopen(os.environ[name] + path, timeout=10).close()
            except OSError as error:
                self.missing = f"real servers were NOT tested: {name}={os.environ[name]} does not answer ({error})"
                del os.environ[name]

    def _containers(self) -> bool:
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.wait_strategies import HttpWaitStrategy

        try:
            minio = (
                DockerContainer(MINIO_IMAGE)
                .with_command("server /data")
                .with_env("MINIO_ROOT_USER", "gantry")
                .with_env("MINIO_ROOT_PASSWORD", "gantry-secret")
                .with_exposed_ports(9000)
                .waiting_for(HttpWaitStrategy(9000, "/minio/health/ready"))
            )
            elasticsearch = (
                DockerContainer(ELASTICSEARCH_IMAGE)
                .with_env("discovery.type", "single-node")
                .with_env("xpack.security.enabled", "false")
                .with_env("ES_JAVA_OPTS", f"-Xms512m -Xmx512m {ES_JAVA_OPTS}")
                .with_exposed_ports(9200)
                .waiting_for(HttpWaitStrategy(9200, "/_cluster/health").with_startup_timeout(120))
            )
            for container in (minio, elasticsearch):
                container.start()
                self._ends.append(container.stop)
        except Exception as error:
            print(f"containers could not be started: {type(error).__name__}: {error}"[:300])
            self.stop()
            return False
        os.environ[S3] = f"http://{minio.get_container_host_ip()}:{minio.get_exposed_port(9000)}"
        os.environ["GANTRY_TEST_S3_ACCESS_KEY"], os.environ["GANTRY_TEST_S3_SECRET_KEY"] = "gantry", "gantry-secret"
        os.environ[ELASTICSEARCH] = f"http://{elasticsearch.get_container_host_ip()}:{elasticsearch.get_exposed_port(9200)}"
        return True

    def _programs(self) -> bool:
        directory = tempfile.mkdtemp(prefix="gantry-servers-")
        environment = {"ES_JAVA_OPTS": ES_JAVA_OPTS} | os.environ
        started = subprocess.run(
            ["bash", str(SERVERS / "up.sh"), directory], stdout=subprocess.PIPE, text=True, check=False, env=environment
        )
        if started.returncode != 0:
            return False
        # Ends them when this process has ended, however it did.
        ending = f'tail --pid={os.getpid()} -f /dev/null; bash "{SERVERS}/down.sh" "{directory}"; rm -rf "{directory}"'
        subprocess.Popen(["bash", "-c", ending], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.environ.update(re.findall(r"^export (\w+)=(\S+)$", started.stdout, re.MULTILINE))
        return True

    def stop(self) -> None:
        """Stop the containers that were started, the last one first."""
        while self._ends:
            self._ends.pop()()


def _engine_answers() -> bool:
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    try:
        import docker

        docker.from_env(timeout=5).ping()
    except Exception:
        return False
    return True

"""The cluster that `tests/chaos.py` kills, by nodes and by processes. It is seen by nobody else on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path
from typing import Any

import raymask

# A node that is gone is missed after two seconds, not after fifteen as by default, and a process that was killed before
# it was up after fifteen, not after sixty.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "worker_register_timeout_seconds": 15,
}

HERE = {"node_ip_address": "127.0.0.1"}


def prepare_environment(place: Path) -> None:
    """For all processes of Ray that are begun after this: others on this machine do not see them, and need a token."""
    paths = [str(Path(raymask.__file__).parents[1]), str(Path(__file__).parent)]
    os.environ.update(
        PYTHONPATH=os.pathsep.join(paths),
        CHAOS_POINTS=str(place / "points"),
        RAY_TMPDIR=str(place),
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # which means: on 127.0.0.1
        RAY_num_workers_soft_limit="16",
        RAY_USAGE_STATS_ENABLED="0",
    )


class Nodes:
    """A cluster: a head, which lives as long as the cluster, and two nodes that are replaced after they were killed."""

    def __init__(self) -> None:
        self._cluster: Any = None

    def start(self) -> None:
        from ray.cluster_utils import Cluster  # Ray reads the environment as it is imported

        head = {**HERE, "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self.fill_up()

    def fill_up(self) -> None:
        """A new node in place of each that was killed."""
        while len(self._cluster.worker_nodes) < 2:
            self._cluster.add_node(**HERE, num_cpus=1, wait=False)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def raylets(self) -> dict[int, Any]:
        """Process id of the raylet -> node, for the nodes that may be killed."""
        return {_raylet(node): node for node in self._cluster.worker_nodes}

    def workers(self) -> list[int]:
        """Process ids of whatever runs Ray's tasks and actors, or waits to."""
        raylets = {_raylet(node) for node in self._cluster.list_all_nodes()}
        return [pid for pid in _processes() if parent(pid) in raylets and _is_worker(_command(pid))]

    def has_witness(self, raylet: int) -> bool:
        """Whether the witness of a run lives on this node."""
        return any("Witness" in _command(pid) for pid in _processes() if parent(pid) == raylet)

    def kill(self, raylet: int) -> None:
        node = self.raylets()[raylet]
        os.kill(raylet, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_all(self) -> None:
        """The cluster with its head, as when the power fails."""
        for node in self._cluster.list_all_nodes() if self._cluster else ():
            self._cluster.remove_node(node, allow_graceful=False)


def orphans() -> list[str]:
    """Decoders that were begun here and whose worker is no more."""
    here = str(Path(__file__).parent)  # which is among the places of their modules
    decoders = [pid for pid in _processes() if "raymask.sandbox" in _command(pid) and here in _command(pid)]
    return [f"{pid}, child of {parent(pid)}" for pid in decoders if not _command(parent(pid)).startswith("ray::")]


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_worker(command: str) -> bool:
    return command.startswith("ray::") and "Agent" not in command  # an agent is a part of its raylet


def _processes() -> list[int]:
    return sorted(int(folder.name) for folder in Path("/proc").glob("[0-9]*"))


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    return ""


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0

"""`raymask segment` on several nodes of Ray of one core each: their rates, one that joins, one that is lost, and pixels
over a network.

    python benchmarks/several_nodes.py [throughput] [joining] [losing] [apart]

The model finds nothing and takes 20 ms of a core for an image (`watched_model.py`). Nodes of the first three are
raylets beside each other, each with an object store of its own. The driver and Ray's head need some of a core too, so
two nodes cannot be twice as fast on a machine of two. For `apart` every node has a network, a /tmp and a /dev/shm of
its own, by Linux namespaces, and images and tables are in a store that is reached by that network alone; it needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from measure import print_table, save
from watched_model import notes
from workload import DATA, photo_folder

HERE = Path(__file__).parent
SIZE_HW = (480, 640)
MODEL_S = 0.02
STORE_BYTES = 256 * 1024 * 1024
HEALTH = {"health_check_period_ms": 500, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
WAIT_S = 100.0

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], help="all of them if none is named")
    parser.add_argument("--photos", type=int, default=600)
    args = parser.parse_args()
    photos = photo_folder(args.photos, SIZE_HW)
    with own_ray():
        for name in args.parts or PARTS:
            rows = PARTS[name](photos)
            print(f"\n{name}, {args.photos} photos of {SIZE_HW[1]} x {SIZE_HW[0]}")
            print_table(list(rows[0]), [[text(value) for value in row.values()] for row in rows])
            save(f"nodes_{name}", rows, photos=args.photos, size_hw=SIZE_HW, model_s=MODEL_S)


@contextlib.contextmanager
def own_ray() -> Iterator[None]:
    """An environment in which Ray and its clusters are of this program alone; it reads some of it but once."""
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as names of sockets must be
    os.environ.update(
        PYTHONPATH=os.pathsep.join([str(HERE.parent), str(HERE)]),
        RAY_TMPDIR=place,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # which means: on 127.0.0.1
        RAY_USAGE_STATS_ENABLED="0",
        RAY_num_workers_soft_limit="16",
    )
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


def text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# ----------------------------------------------------------------------------------------------------- on one machine


def throughput(photos: Path) -> list[dict[str, Any]]:
    """Images a second between the first that a model is given and the last, on one node and on two."""
    rows = []
    for count in (1, 2):
        with cluster() as nodes:
            for _ in range(count):
                nodes.add()
            with run(photos, nodes.environment) as (driver, noted):
                finish(driver)
        predicted = of(noted(), "predict")
        images = sum(note["images"] for note in predicted)
        rate = images / (predicted[-1]["at"] - predicted[0]["at"])
        rows.append({"nodes": count, "images": images, "images_per_s": rate})
        rows[-1]["times"] = rate / rows[0]["images_per_s"]
    return rows


def joining(photos: Path) -> list[dict[str, Any]]:
    """Seconds from the moment that Ray counts a second node among its own to the first image that it works on."""
    with cluster() as nodes:
        nodes.add()
        with run(photos, nodes.environment) as (driver, noted):
            first = soon(lambda: of(noted(), "predict"), driver)[0]["node"]
            soon(lambda: images_in(noted()) >= len(list(photos.iterdir())) // 6, driver)
            nodes.add()
            joined = time.time()
            finish(driver)
    there = [note for note in noted() if note["node"] != first]
    row: dict[str, Any] = {"images": images_in(noted()), "of them on the second": images_in(there)}
    for what in ("decode", "worker", "predict"):
        row[f"first {what}, s"] = of(there, what)[0]["at"] - joined
    return [row]


def losing(photos: Path) -> list[dict[str, Any]]:
    """What a node costs that is lost in the middle: images that a model is given twice, and time."""
    with cluster() as nodes:
        for _ in range(2):
            nodes.add()
        with run(photos, nodes.environment) as (driver, noted):
            soon(lambda: images_in(noted()) >= len(list(photos.iterdir())) // 2, driver)
            node = nodes.lose()
            lost = time.time()
            finish(driver)
            ended = time.time()
    twice = images_in(noted()) - len(list(photos.iterdir()))
    done_there = images_in([note for note in noted() if note["node"] == node])
    return [{"images": images_in(noted()) - twice, "done by the lost": done_there, "done twice": twice,
             "from the loss to the end, s": ended - lost}]  # fmt: skip


class Nodes:
    """A cluster whose nodes have a core each, but for the head, which has none. environment: for its drivers."""

    def __init__(self, environment: dict[str, str]) -> None:
        from ray.cluster_utils import Cluster  # Ray reads the environment as it is imported

        self.environment = environment
        head = {"node_ip_address": "127.0.0.1", "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self.environment["RAY_ADDRESS"] = str(self._cluster.address)
        self._nodes: list[Any] = []

    def add(self) -> None:
        """One node more, once Ray counts it among its own."""
        self._nodes.append(
            self._cluster.add_node(node_ip_address="127.0.0.1", num_cpus=1, object_store_memory=STORE_BYTES)
        )

    def lose(self) -> str:
        """End the last one as a power cut would; returns its id."""
        node = self._nodes.pop()
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id)

    def end(self) -> None:
        for node in self._cluster.list_all_nodes():
            self._cluster.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def cluster() -> Iterator[Nodes]:
    nodes = Nodes(dict(os.environ))
    try:
        yield nodes
    finally:
        nodes.end()


# ---------------------------------------------------------------------------------------------- machines by themselves


def apart(photos: Path) -> list[dict[str, Any]]:
    """A head, a node that decodes and one that has the model, with nothing in common but a network and a store."""
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Machine.begun(None, 0))
        switch.do("ip", "link", "add", "br0", "type", "bridge")
        switch.do("ip", "link", "set", "br0", "up")
        head, decoding, model = (stack.enter_context(Machine.begun(switch, number)) for number in (1, 2, 3))
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ALONE},
            "RAY_ADDRESS": f"{head.address}:6379",
            "AWS_ENDPOINT_URL": f"http://{head.address}:5000",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        stack.enter_context(head.runs([str(BIN / "moto_server"), "-H", head.address, "-p", "5000"], environment))
        upload = f"fs.mkdir('bucket'); fs.put({str(photos)!r}, 'bucket/', recursive=True)"
        soon(lambda: head.listens(5000), None)
        head.do(sys.executable, "-c", f"import s3fs; fs = s3fs.S3FileSystem(); {upload}", environment=environment)
        common = ["--block", "--disable-usage-stats", f"--object-store-memory={STORE_BYTES}"]
        ray_start = [str(BIN / "ray"), "start", *common]
        options = {
            head: ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"],
            decoding: [f"--address={head.address}:6379", "--num-cpus=1", "--labels=raymask=decode"],
            model: [f"--address={head.address}:6379", "--num-cpus=1", "--num-gpus=1"],
        }
        for machine, of_machine in options.items():
            place = f"--node-ip-address={machine.address}"
            begun = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
            stack.enter_context(machine.runs([*ray_start, place, *of_machine], begun))
            soon(lambda: head.listens(6379), None)
        received = {machine: machine.received_bytes() for machine in (decoding, model)}
        urls = f"s3://bucket/{photos.name}", "s3://bucket/masks"
        where = ["--decode-on", "raymask=decode", "--gpus-per-worker", "1"]
        with run(urls[0], environment, *where, out=urls[1], on=head) as (driver, noted):
            finish(driver)
        roles = {"decodes": decoding, "has the model": model}
        rows = []
        for role, machine in roles.items():
            mb = (machine.received_bytes() - received[machine]) / 1e6
            rows.append({"node": role, "sees files of the head": machine.sees(head), "received, MB": mb})
    placed = {what: {note["node"] for note in of(noted(), what)} for what in ("decode", "predict")}
    assert not placed["decode"] & placed["predict"], placed
    pixels_mb = images_in(noted()) * SIZE_HW[0] * SIZE_HW[1] * 3 / 1e6
    return [{**row, "images": images_in(noted()), "their pixels, MB": pixels_mb} for row in rows]


BIN = Path(sys.executable).parent
ALONE = ("RAY_TMPDIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")  # what keeps a cluster on this machine


class Machine:
    """A process with a network, a /tmp and a /dev/shm of its own, in which others are run; number: of its address."""

    def __init__(self, pid: int, number: int) -> None:
        self.pid = pid
        self.address = f"10.77.0.{number}"
        self._enter = ["nsenter", "--target", str(pid), "--net", "--mount"]

    @staticmethod
    @contextlib.contextmanager
    def begun(switch: Machine | None, number: int) -> Iterator[Machine]:
        own = "mount --make-rprivate / && mount -t tmpfs none /tmp && mount -t tmpfs none /dev/shm && ip link set lo up"
        command = ["unshare", "--net", "--mount", "sh", "-c", f"{own} && echo up && exec sleep infinity"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != "up\n":
                    raise SystemExit("namespaces need root")
                machine = Machine(process.pid, number)
                if switch is not None:
                    port = f"p{number}"
                    cable = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", port]
                    machine.do(*cable, "netns", str(switch.pid))
                    switch.do("ip", "link", "set", port, "master", "br0", "up")
                    machine.do("ip", "addr", "add", f"{machine.address}/24", "dev", "eth0")
                    machine.do("ip", "link", "set", "eth0", "up")
                yield machine
            finally:
                process.kill()

    def do(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        return subprocess.run(
            [*self._enter, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    @contextlib.contextmanager
    def runs(self, command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
        """It runs there until the block ends."""
        process = subprocess.Popen(
            [*self._enter, *command], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def listens(self, port: int) -> bool:
        code = f"import socket; socket.create_connection(({self.address!r}, {port}), timeout=1)"
        return subprocess.run([*self._enter, sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0

    def received_bytes(self) -> int:
        [line] = [line for line in self.do("cat", "/proc/net/dev").splitlines() if line.strip().startswith("eth0:")]
        return int(line.split()[1])

    def sees(self, other: Machine) -> bool:
        """Whether a file that the other writes into its /tmp is there."""
        other.do("touch", "/tmp/mark")
        return "/tmp/mark" in self.do("find", "/tmp", "-maxdepth", "1").splitlines()


# -------------------------------------------------------------------------------------------------------------- a run


@contextlib.contextmanager
def run(
    source: Path | str, environment: Mapping[str, str], *options: str, out: str | None = None, on: Machine | None = None
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], list[dict[str, Any]]]]]:
    """The command, begun; and what its processes have noted so far, also after the end of the block."""
    DATA.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="notes-", dir=DATA))
    kept: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, str(HERE / "watched_model.py"), str(folder), str(MODEL_S), "raymask", "segment"]
        command += [
            str(source),
            "--out",
            out or f"{place}/out",
            "--images-per-part",
            "8",
            "--quiet",
            "--debug",
            *options,
        ]
        process = (
            on.runs(command, environment)
            if on
            else subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)
        )
        with process as driver:
            try:
                yield driver, lambda: kept or notes(folder)
            finally:
                driver.kill()
    kept.extend(notes(folder))
    shutil.rmtree(folder)


def finish(driver: subprocess.Popen[str]) -> None:
    output, _ = driver.communicate(timeout=WAIT_S)
    if driver.returncode:
        raise SystemExit(f"the run ended with {driver.returncode}")
    [spilled] = [line for line in output.splitlines() if line.startswith("{")]  # Ray says that a node is lost, too
    if sum(json.loads(spilled).values()):
        print(f"spilled: {spilled}")


def soon(what: Callable[[], T], driver: subprocess.Popen[str] | None) -> T:
    """What the function says once it says anything."""
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        if time.monotonic() > deadline or (driver and driver.poll() is not None):
            raise SystemExit("the run ended early, or takes too long")
        time.sleep(0.05)
    return found


def of(noted: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [note for note in noted if note["what"] == what]


def images_in(noted: list[dict[str, Any]]) -> int:
    return sum(note["images"] for note in of(noted, "predict"))


PARTS = {"throughput": throughput, "joining": joining, "losing": losing, "apart": apart}

if __name__ == "__main__":
    main()

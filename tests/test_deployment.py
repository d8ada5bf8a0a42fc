"""What brings raymask to clusters: the files for Ray's launcher, KubeRay and Docker, checked by who reads them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from raymask.config import SegmentConfig
from raymask.jobs import read_options

ROOT = Path(__file__).parents[1]
LAUNCHED = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB = yaml.safe_load((ROOT / "jobs" / "rayjob.yaml").read_text())
RAY_CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
HEALTH = {"health_check_period_ms", "health_check_timeout_ms", "health_check_failure_threshold"}


def options_of_ray_start(arguments: list[str]) -> dict[str, Any]:
    """What the installed Ray makes of the arguments of `ray start`; an exception if it does not know one."""
    context = start.make_context("start", arguments, resilient_parsing=False)
    given = {p.name for p in start.params if context.get_parameter_source(p.name) != click.core.ParameterSource.DEFAULT}
    return {name: value for name, value in context.params.items() if name in given}


def job_of(command: str) -> SegmentConfig:
    """The options of a `python jobs/segment.py …` that stands in one of the files."""
    words = shlex.split(command)
    assert words[:2] == ["python", "jobs/segment.py"]
    settings = [after for word, after in pairwise(words) if word == "--set"]
    config = ROOT / words[words.index("--config") + 1]
    return SegmentConfig(**read_options("segment", config, settings))


def check_health(settings: dict[str, int]) -> None:
    assert settings.keys() == HEALTH
    assert all(hasattr(ray._config, name) for name in settings)
    assert settings["health_check_period_ms"] * settings["health_check_failure_threshold"] < 10_000


def test_the_launcher_takes_its_file() -> None:
    prepared = prepare_config(LAUNCHED)
    validate_config(prepared)
    kinds = prepared["available_node_types"]
    head = kinds.pop(LAUNCHED["head_node_type"])
    assert (head["resources"], head["max_workers"]) == ({"CPU": 0}, 0)
    assert "InstanceMarketOptions" not in head["node_config"]
    assert {kind["min_workers"] for kind in kinds.values()} == {0}
    assert sum(kind["max_workers"] for kind in kinds.values()) <= LAUNCHED["max_workers"]
    for kind in kinds.values():
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for kind in (head, *kinds.values()):
        assert kind["node_config"]["IamInstanceProfile"]["Name"]
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    assert not re.search(r"AKIA|aws_secret|AWS_SECRET|access_key", (ROOT / "cluster.yaml").read_text(), re.IGNORECASE)


@pytest.mark.parametrize("who", ["head", "worker"])
def test_the_launcher_starts_ray_so_that_it_asks_for_a_token(who: str) -> None:
    [command] = [c for c in LAUNCHED[f"{who}_start_ray_commands"] if "ray start" in c]
    assert "RAY_AUTH_MODE=token ray start" in command
    options = options_of_ray_start(shlex.split(command.partition("ray start")[2]))
    assert options["object_spilling_directory"] == "$HOME/spill"
    if who == "head":
        assert options["head"]
        assert options["autoscaling_config"]
        check_health(options["system_config"])
        assert "dashboard_host" not in options  # it is reached by a tunnel alone
    else:
        assert options["address"] == "$RAY_HEAD_IP:6379"


def test_the_job_in_the_launchers_file_fits_its_machines() -> None:
    comments = [line.removeprefix("#") for line in (ROOT / "cluster.yaml").read_text().splitlines() if line[:1] == "#"]
    text = " ".join(line.strip().removesuffix("\\") for line in comments)
    config = job_of(text[text.index("python jobs/segment.py") : text.index("ray down")])
    kinds = LAUNCHED["available_node_types"]
    assert config.decode_labels() == kinds["decode"]["labels"]
    assert config.decode_labels().items().isdisjoint(kinds["gpu"]["labels"].items())
    assert config.worker_range() == (1, kinds["gpu"]["max_workers"])
    assert config.gpus_per_worker == 1


def test_every_setting_has_its_reason() -> None:
    """A comment above it, of its own or of the first of several that are alike."""
    for name in ("cluster.yaml", "jobs/rayjob.yaml"):
        lines = (ROOT / name).read_text().splitlines()
        said: set[str] = set()
        for before, line in pairwise(lines):
            key = line.strip().removeprefix("- ").partition(":")[0]
            if before.strip().startswith("#") and not line.strip().startswith("#"):
                said.add(key)
        keys = {"max_workers", "upscaling_speed", "idle_timeout_minutes", "InstanceMarketOptions", "IamInstanceProfile"}
        kube = {"backoffLimit", "authOptions", "enableInTreeAutoscaling", "serviceAccountName", "nodeSelector"}
        assert (keys if name == "cluster.yaml" else kube) <= said, name


def test_kuberay_begins_a_cluster_that_grows_from_nothing() -> None:
    # Its published schema is a megabyte and not in any package, so names are checked where they matter to raymask.
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    assert RAYJOB["spec"]["shutdownAfterJobFinishes"]
    assert RAY_CLUSTER["authOptions"] == {"mode": "token"}
    assert RAY_CLUSTER["enableInTreeAutoscaling"]
    assert RAY_CLUSTER["autoscalerOptions"]["version"] == "v2"
    assert f"ray=={RAY_CLUSTER['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    head, groups = RAY_CLUSTER["headGroupSpec"], {g["groupName"]: g for g in RAY_CLUSTER["workerGroupSpecs"]}
    assert head["rayStartParams"]["num-cpus"] == "0"
    for part in (head, *groups.values()):
        # KubeRay makes a line for a shell of them.
        line = " ".join(f"--{name}={value}" for name, value in part["rayStartParams"].items())
        options = options_of_ray_start(shlex.split(line))
        if part is head:
            check_health(options["system_config"])
        [container] = part["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["runAsNonRoot"]
        [mount], [volume] = container["volumeMounts"], part["template"]["spec"]["volumes"]
        assert (mount["name"], mount["mountPath"]) == (
            volume["name"],
            part["rayStartParams"]["object-spilling-directory"],
        )
    config = job_of(RAYJOB["spec"]["entrypoint"])
    assert config.decode_labels() == groups["decode"]["labels"]
    assert config.worker_range() == (1, groups["gpu"]["maxReplicas"])
    assert {(g["replicas"], g["minReplicas"]) for g in groups.values()} == {(0, 0)}
    [of_gpus] = groups["gpu"]["template"]["spec"]["containers"]
    assert float(of_gpus["resources"]["limits"]["nvidia.com/gpu"]) == config.gpus_per_worker


def test_the_images_are_built_as_they_should_be() -> None:
    text = (ROOT / "Dockerfile").read_text()
    linter = Path(sys.executable).parent / "hadolint"
    outcome = subprocess.run([str(linter), "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout
    assert re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE) == ["base", "cpu", "gpu"]
    assert text.count("USER 1000") == 2
    [minor] = re.findall(r"^FROM python:3\.(\d+)-slim", text, re.MULTILINE)
    assert 11 <= int(minor) <= 13
    [code] = re.findall(r'python -c "(.*?)"', text)
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert listed.splitlines() == [line.replace("'", '"') for line in wanted]

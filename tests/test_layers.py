"""Imports go downward only, and the layers that must run without Ray do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import raymask

ROOT = Path(raymask.__file__).parent

LAYERS = [
    {"errors", "faults", "s3", "timing", "turns", "urls", "web"},
    {"config", "schema", "storage", "masks", "progress", "protocol", "stages", "timeline", "witness"},
    {
        "fetch",
        "decode",
        "model",
        "tables",
        "segmentations",
        "console",
        "drawing",
        "page",
        "duckdb",
        "files",
        "pandas",
        "polars",
        "spark",
    },
    {"sources", "journal", "cluster", "pools", "sandbox", "logs", "metrics"},
    {"published", "listing", "meter", "reading", "shards", "pictures", "worker"},
    {"snapshot", "database"},
    {"publishing", "output", "state", "cleanup"},
    {"reporting"},
    {"pipeline", "evaluation", "asking", "lakes"},
    {"training", "forecast", "gallery", "interop"},
    {"demo"},
    {"cli"},
    {"jobs"},
]
WITHOUT_RAY = set().union(*LAYERS[:3])
LAYER = {module: number for number, layer in enumerate(LAYERS) for module in layer}


def imports_of(file: Path) -> set[str]:
    """Modules of raymask that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "raymask" else [f"raymask.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("raymask.")}
    return found


def module_of(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


FILES = sorted(f for f in ROOT.rglob("*.py") if module_of(f) != "__init__")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_downward(file: Path) -> None:
    module = module_of(file)
    wrong = {
        other for other in imports_of(file) if other in LAYER and other != module and LAYER[other] >= LAYER[module]
    }
    assert not wrong, f"{file.name} of layer {LAYER[module]} imports {wrong}, which are not below it"


def test_every_module_has_a_layer() -> None:
    assert {module_of(f) for f in FILES} == set(LAYER)


def test_lower_layers_run_without_ray() -> None:
    names = ", ".join(f"raymask.{m}" for m in sorted(WITHOUT_RAY))
    check = f"import sys; sys.modules['ray'] = None; import {names}"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


def test_predicting_needs_no_client_of_a_store() -> None:
    # So it runs wherever torch, torchvision, NumPy and Numba are.
    absent = ["ray", "fsspec", "s3fs", "pyarrow", "pandas", "safetensors", "pycocotools", "yaml", "rich"]
    check = f"import sys; sys.modules.update(dict.fromkeys({absent})); from raymask.model import Model, Predictor"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)


def test_asking_loads_only_what_asking_needs() -> None:
    unneeded = {"numba", "pandas", "PIL", "torch", "ray"}  # each takes as long to import as a question to answer
    check = f"import sys, raymask.cli, raymask.output, raymask.database; assert not {unneeded} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_importing_raymask_loads_neither_ray_nor_torch() -> None:
    check = "import sys, raymask, raymask.cli; assert not {'ray', 'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)

"""Every command and every piece of Python in the README, run in the order in which a reader meets them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_folder
from nodes import ray_cluster
from stores import s3_store

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def surroundings(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with what the README takes for granted: photos, a model, a list, shards, a bucket with the same.

    With it the environment to run commands in, on one cluster, since to start one takes longer than to use it.
    """
    root = tmp_path_factory.mktemp("reader")
    photos = draw_folder(root / "photos", 5, broken=1)
    shutil.copytree(model_folder, root / "model")
    (root / "list.csv").write_text("uri,camera\nphotos/0000.png,a\nphotos/0003.png,b\n")
    for name in ("train.json", "val.json"):
        (root / name).write_text(json.dumps(cats_in(photos)))
    (root / "shards").mkdir()
    for shard in ("000", "001"):
        with tarfile.open(root / "shards" / f"photos-{shard}.tar", "w") as tar:
            tar.add(photos / f"000{int(shard)}.png", f"{shard}.png")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "activate").write_text("")
    with s3_store() as store:
        for file in (*photos.iterdir(), *(root / "model").iterdir()):
            store.put(str(file.relative_to(root)), file.read_bytes())
        with ray_cluster() as environment:
            yield root, {**environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def cats_in(photos: Path) -> dict[str, Any]:
    """A cat in every photo."""
    images: list[dict[str, Any]] = [
        {"id": number, "file_name": file.name, "height": 48, "width": 64}
        for number, file in enumerate(sorted(photos.glob("????.png")))
    ]
    box = {"bbox": [8, 8, 20, 16], "area": 320, "segmentation": [[8, 8, 28, 8, 28, 24, 8, 24]]}
    return {
        "images": images,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": i["id"] + 1, "image_id": i["id"], "category_id": 3, "iscrowd": 0, **box} for i in images
        ],
    }


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[code.strip().splitlines()[-1][:60] for _, code in BLOCKS])
def test_readme(language: str, code: str, surroundings: tuple[Path, dict[str, str]]) -> None:
    root, environment = surroundings
    commands = [[sys.executable, "-c", code]] if language == "python" else [["sh", "-ec", c] for c in code.splitlines()]
    for command in commands:
        if "raymask train" in command[-1]:
            command[-1] += " --epochs 2"  # of twelve, after each of which it is validated
        outcome = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
        if "--weights" not in command[-1] and "segment" in command[-1] and language == "sh":
            # torchvision's weights come from the network: without one the error must say so.
            with contextlib.suppress(AssertionError):
                assert outcome.returncode == 0
                continue
            assert outcome.returncode == 1
            assert "give it with --weights" in outcome.stderr
            continue
        assert outcome.returncode == 0, outcome.stderr
    if language == "python":
        assert outcome.stdout or "pycocotools" in code


def test_the_readme_has_the_blocks_that_are_run() -> None:
    assert len(BLOCKS) >= 10

"""Train, segment, evaluate: from a bucket to a bucket, by the commands a person would type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nodes import ray_cluster
from stores import s3_store

from raymask.demo.drawing import write_data_set
from raymask.storage import s3_pages

TINY = ["--model", "maskrcnn_resnet10_fpn", "--min-size", "96", "--max-size", "128", "--proposals", "100"]


def raymask(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "raymask.cli", *arguments]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.mark.timeout(600)
def test_a_model_is_trained_used_and_evaluated_on_s3(tmp_path: Path) -> None:
    write_data_set(tmp_path, 8, 4, seed=4)
    with s3_store() as store, ray_cluster() as cluster:
        for file in tmp_path.rglob("*"):
            if file.is_file() and "broken" not in file.name:
                store.put(f"data/{file.relative_to(tmp_path)}", file.read_bytes())
        data, model, masks = f"{store.url}/data", f"{store.url}/model", f"{store.url}/masks"
        train = ["train", "--data", f"{data}/train.json", "--images", f"{data}/train", "--out", model]
        validation = ["--val", f"{data}/val.json", "--val-images", f"{data}/val"]
        shown = raymask(cluster, *train, *validation, *TINY, "--epochs", "2", "--batch-size", "4", "--min-scale", "0.5")
        assert "16 images seen" in shown
        raymask(cluster, "segment", f"{data}/val.json", "--images", f"{data}/val", "--out", masks, "--weights", model)
        numbers = f"{store.url}/numbers.json"
        shown = raymask(cluster, "evaluate", masks, "--annotations", f"{data}/val.json", "--json", numbers)
        assert "4 images" in shown
        evaluated = json.loads(store.fs.cat_file(numbers))
        described = json.loads(store.fs.cat_file(f"{model}/model.json"))
        # What validation said during training, the commands say again.
        for name, value in evaluated["segm"].items():
            assert described["metrics"][f"segm_{name}"] == pytest.approx(value, abs=1e-6)
        keys = [item["Key"] for page in s3_pages(store.fs, "bucket", "model/") for item in page]
        assert {"model/curves.png", "model/log.jsonl", "model/model.safetensors"} <= set(keys)
        assert not [key for key in keys if "/validation/" in key]

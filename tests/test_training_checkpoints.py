"""Checkpoints survive a writer that dies: the list of them is the old one or the new one, never half of one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
from stores import Store, s3_store

from raymask.errors import OutputError
from raymask.training.storage import SNAPSHOT_FILE, Storage, checkpoint_name


def write(filesystem: pyarrow.fs.FileSystem, path: str, text: str) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode())


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as store:
        yield store


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    folder = str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('store').url}/{tmp_path.name}"
    return Storage(f"{folder}/out")


def test_a_file_is_replaced_when_it_is_whole(storage: Storage) -> None:
    filesystem = pickle.loads(pickle.dumps(storage.filesystem()))  # as workers get it
    path = storage.path(SNAPSHOT_FILE)
    filesystem.create_dir(storage.path())
    write(filesystem, path, "old")
    stream = filesystem.open_output_stream(path)
    stream.write(b"new " * 100_000)
    assert filesystem.open_input_stream(path).read() == b"old"
    stream.close()
    assert filesystem.open_input_stream(path).read() == b"new " * 100_000
    [info] = filesystem.get_file_info(pyarrow.fs.FileSelector(storage.path()))
    assert info.base_name == SNAPSHOT_FILE


def test_without_checkpoints_there_is_nothing_to_go_on_from(storage: Storage) -> None:
    assert storage.result() is None
    assert storage.images_seen() == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"ray_version": "1.0"}'])
def test_a_broken_list_of_checkpoints_is_an_error(text: str, storage: Storage) -> None:
    filesystem = storage.filesystem()
    filesystem.create_dir(storage.path())
    write(filesystem, storage.path(SNAPSHOT_FILE), text)
    with pytest.raises(OutputError, match=rf"{SNAPSHOT_FILE} does not fit .*; begin anew from one of them") as raised:
        storage.images_seen()
    assert "\n" not in str(raised.value)


def test_a_checkpoint_that_is_gone_is_an_error(storage: Storage) -> None:
    filesystem = storage.filesystem()
    filesystem.create_dir(storage.path(checkpoint_name(8)))
    write(filesystem, storage.path(f"{checkpoint_name(8)}/state.pt"), "")
    record = {"version": 0, "checkpoint_dir_name": checkpoint_name(8), "metrics": {"images": 8}}
    lists = ["pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names"]
    lists += [f"{how}_validation_checkpoint_dir_names" for how in ("timed_out", "failed")]
    snapshot = {"checkpoint_results": [record], "checkpoint_report_indices": [0], "latest_checkpoint_result": record}
    snapshot |= {"current_report_index": 1, **{name: [] for name in lists}}
    write(filesystem, storage.path(SNAPSHOT_FILE), json.dumps(snapshot))
    assert storage.images_seen() == 8
    filesystem.delete_dir(storage.path(checkpoint_name(8)))
    with pytest.raises(OutputError, match=r"a checkpoint that does not exist anymore"):
        storage.images_seen()

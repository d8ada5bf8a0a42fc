"""Where a training keeps what it needs to go on: checkpoints by Ray Train, below OUT/_raymask, on any storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray.train
from ray.train.v2.api.result import Result

from raymask.errors import OutputError
from raymask.storage import WholeFile, absolute, is_local, join, resolve

RUNS_FOLDER, RUN_NAME = "_raymask", "checkpoints"
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"

_NAME = re.compile(r"images-(\d+)")


class WholeFiles(pyarrow.fs.FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """An fsspec file system for pyarrow on which a file appears whole, on a local one too.

    Ray Train writes its list of checkpoints anew for each of them; half of it would be the end of the training.
    """

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        if is_local(self.fs):
            return pa.PythonFile(WholeFile(path), mode="w")
        return super().open_output_stream(path, metadata)


@dataclass(frozen=True)
class Storage:
    """The checkpoints of an output. The fsspec file system is handed to Ray through pyarrow."""

    out: str

    @property
    def url(self) -> str:
        return join(join(absolute(self.out), RUNS_FOLDER), RUN_NAME)

    def filesystem(self) -> pyarrow.fs.FileSystem:
        fs, _ = resolve(self.out)
        return pyarrow.fs.PyFileSystem(WholeFiles(fs))

    def path(self, name: str = "") -> str:
        return resolve(join(self.url, name) if name else self.url)[1]

    def result(self) -> Result | None:
        """What Ray Train knows of the run; None before its first checkpoint.

        OutputError if its list of checkpoints cannot be read, or names one that is gone.
        """
        filesystem = self.filesystem()
        snapshot = filesystem.get_file_info(self.path(SNAPSHOT_FILE))
        if snapshot.type == pyarrow.fs.FileType.NotFound:
            return None
        try:
            result: Result = Result.from_path(self.path(), storage_filesystem=filesystem)
        except Exception as error:  # of a class that Ray Train keeps to itself
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise OutputError(
                f"{join(self.url, SNAPSHOT_FILE)} does not fit the checkpoints beside it ({why}); begin anew from one "
                f"of them with --weights {join(self.url, 'images-…')} and another --out, or delete that file and start "
                f"from nothing"
            ) from error
        return result

    def images_seen(self) -> int:
        """Of the last checkpoint; 0 where there is none."""
        result = self.result()
        return 0 if result is None or result.checkpoint is None else images_of(result.checkpoint)


def checkpoint_name(images_seen: int) -> str:
    return f"images-{images_seen:012d}"


def images_of(checkpoint: ray.train.Checkpoint) -> int:
    """The images that had been seen when a checkpoint was made: its name tells."""
    found = _NAME.fullmatch(name_of(checkpoint))
    assert found is not None, checkpoint.path
    return int(found[1])


def name_of(checkpoint: ray.train.Checkpoint) -> str:
    return str(checkpoint.path).rstrip("/").rpartition("/")[2]

"""Where this folder is on PYTHONPATH, Python runs this at its start: `raymask.model` is then `null_model.py`.

Ray's own hook for that, `worker_process_setup_hook`, makes Ray start its workers anew for the run, six seconds on two
cores, which no user pays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path


class Finder:
    """What an import asks for where a module is."""

    @staticmethod
    def find_spec(name: str, _path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        if name != "raymask.model":
            return None
        return spec_from_file_location(name, Path(__file__).parents[1] / "null_model.py")


sys.meta_path.insert(0, Finder)

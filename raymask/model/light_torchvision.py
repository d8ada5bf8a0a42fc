"""Imported before anything of torchvision's, this leaves out torch's compiler, which takes as long as torch itself.

`torchvision.ops.roi_align` imports it for one question, asked only where algorithms must be deterministic on an
accelerator. Every process that predicts would wait for that; here the compiler is imported when the question comes.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


def _import_torchvision() -> None:
    if COMPILER in sys.modules or "torchvision.ops" in sys.modules:
        return
    stand_in: Any = ModuleType(COMPILER)
    stand_in.is_compile_supported = lambda device: importlib.import_module(COMPILER).is_compile_supported(device)
    sys.modules[COMPILER] = stand_in
    try:
        importlib.import_module("torchvision.ops")
    finally:
        del sys.modules[COMPILER]


_import_torchvision()

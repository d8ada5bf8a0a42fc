"""Imported before anything of torchvision's, this leaves out torch's compiler, which takes as long as torch itself.

`torchvision.ops.roi_align` imports it for one question, asked only where algorithms must be deterministic on an
accelerator, and `torchvision.tv_tensors` to keep one function out of what users compile. Every process that predicts or
reads samples would wait for that; here the compiler is imported when the question comes, and that function is as it is.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo.utils"


def _import_torchvision() -> None:
    if COMPILER in sys.modules or "torchvision.ops" in sys.modules:
        return
    stand_in: Any = ModuleType(COMPILER)
    stand_in.is_compile_supported = lambda device: importlib.import_module(COMPILER).is_compile_supported(device)
    sys.modules[COMPILER] = stand_in
    disable = torch.compiler.disable
    torch.compiler.disable = lambda function: function  # type: ignore[assignment, misc]
    try:
        importlib.import_module("torchvision.ops")
        importlib.import_module("torchvision.tv_tensors")
    finally:
        del sys.modules[COMPILER]
        torch.compiler.disable = disable


_import_torchvision()

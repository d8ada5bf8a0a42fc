"""README.md and the page on scale show the figures that the benchmarks found, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_in_the_readme_is_made_of_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert benchmark("readme").with_table(text) == text


def test_the_tables_on_scale_are_made_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # it takes the results from another one
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert benchmark("scaling").with_tables(text) == text

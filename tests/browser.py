"""Chromium for tests that look at pages as a person's browser does: without a window, and without network."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine. The test is skipped where there is none, and fails where CI=true."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        missing = "there is no chromium on this machine (apt-get install chromium)"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()

"""A headless browser for tests of pages.

The browser is the machine's: Debian's is `apt-get install chromium`, which `make browser` does. Where there is none,
tests that need it are skipped.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)

needs_browser = pytest.mark.skipif(PROGRAM is None, reason=f"no browser: none of {', '.join(NAMES)}")


@contextmanager
def open_browser() -> Iterator:
    """Playwright's browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=options)
        yield browser
        browser.close()

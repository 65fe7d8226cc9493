"""The reliability checks of the live server, each in a short form; scripts/check_reliability.py runs them in full."""

import argparse
import logging
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

from reliability.live import CHECKS  # noqa: E402

SPEEDS = {"one client", "sixteen clients", "a rate that is held"}
"""These measure; a busy machine would fail them, so they are left to the script."""
IN_A_BROWSER = {"browser", "page"}
"""Those are tests/browser."""


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in SPEEDS | IN_A_BROWSER])
def test_reliability(name: str, tmp_path: Path, tiny_sd: Path, caplog: pytest.LogCaptureFixture) -> None:
    if name == "window" and shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    caplog.set_level(logging.ERROR)
    assert CHECKS[name](str(tiny_sd), tmp_path, argparse.Namespace(scale=0.01))

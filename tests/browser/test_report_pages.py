"""Pages that are written as files, on the narrowest of phones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffaccel import DeepCache
from diffaccel.measure.bench import bench
from diffaccel.measure.candidates import PLAIN, ours
from diffaccel.measure.machine import machine
from diffaccel.measure.page import Setting, write_report
from diffaccel.measure.workload import Workload
from diffaccel.reuse.forecast import Taylor
from diffaccel.reuse.schedule import Steps

pytestmark = pytest.mark.slow


def test_a_long_name_in_the_verdict_stays_on_the_page(tiny_pipe: Any, tmp_path: Path, open_page: Any) -> None:
    long = DeepCache(schedule=Steps((0, 1, 2)), forecast=Taylor(1))
    measured = bench(tiny_pipe, Workload(("ab",), (0,), {"num_inference_steps": 4}), [PLAIN, ours((long,))], rounds=1)
    plain, row = measured.rows
    close = replace(row, speedup=2.0, quality=replace(row.quality, psnr=40.0))
    write_report(
        tmp_path, replace(measured, rows=[plain, close]), Setting("Title", "diffaccel bench", machine(), {}, {})
    )
    page = open_page((tmp_path / "report.html").as_uri(), viewport={"width": 320, "height": 800})
    assert row.name in page.locator(".verdict").text_content()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 320

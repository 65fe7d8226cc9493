"""The report's account of single calls: states, costs and measured changes, as rows, as a drawing and as a page."""

from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from tiny_networks import picture_unet, unet_inputs
from tiny_pipeline import unet
from tiny_transformers import TRANSFORMERS

from diffaccel import BlockCache, DeepCache, EasyCache, IntervalCache, NetworkSwitch, Steps, Threshold, accelerate
from diffaccel.attach.call_rows import COMPUTED, PARTLY, REUSED, CallRow
from diffaccel.attach.drawing import draw
from diffaccel.runtime.call import Measured

CALLS = 6


def run(model: Any, name: str) -> list[dict[str, Any]]:
    """A run in which the first row hardly moves and the second does; returns the calls' inputs."""
    tiny, table = TRANSFORMERS[name], torch.linspace(900, 100, CALLS)
    inputs = tiny.inputs(2, torch.Generator().manual_seed(0))
    sample = next(iter(inputs))
    speed = torch.tensor([0.01, 0.6]).reshape(2, *[1] * (inputs[sample].dim() - 1))
    moving = [inputs[sample] * (1 + i * speed) + i * speed * inputs[sample].roll(1, -1) for i in range(CALLS)]
    calls = [{**inputs, sample: x, tiny.timestep: t.expand(2)} for x, t in zip(moving, table, strict=True)]
    for call in calls:
        model(**call)
    return calls


def test_costs_of_calls_add_up_and_states_are_the_schedule() -> None:
    model = TRANSFORMERS["DiTTransformer2DModel"].build("DiTTransformer2DModel")
    with accelerate(model, IntervalCache(schedule=Steps((0, 3, 4)))) as handle:
        run(model, "DiTTransformer2DModel")
        report = handle.report()
    assert [row.state for row in report.calls] == [COMPUTED, REUSED, REUSED, COMPUTED, COMPUTED, REUSED]
    assert [row.step for row in report.calls] == list(range(CALLS))
    assert sum(row.macs or 0 for row in report.calls) == report.macs
    assert sum(row.macs_plain or 0 for row in report.calls) == report.macs_plain
    assert all(row.share == 1 for row in report.calls if row.state == COMPUTED)
    assert all(0 < row.share < 1 and not row.measured for row in report.calls if row.state == REUSED)


def test_the_change_of_the_input_is_the_one_that_decided() -> None:
    unet = picture_unet()
    inputs = unet_inputs(unet)
    samples = [inputs["sample"] * (1 + 0.07 * i) for i in range(CALLS)]
    with accelerate(unet, DeepCache(schedule=Threshold(0.1))) as handle:
        for i, sample in enumerate(samples):
            unet(**{**inputs, "sample": sample, "timestep": 900 - 100 * i})
        rows = handle.report().calls
    reference = samples[0]
    assert rows[0].measured == ()
    for row, sample in zip(rows[1:], samples[1:], strict=True):
        (item,) = row.measured
        expected = float((sample - reference).abs().mean() / reference.abs().mean())
        assert item.values == pytest.approx([expected], rel=1e-5)
        assert item.limit == 0.1
        assert row.state == (COMPUTED if expected > 0.1 else REUSED)
        reference = sample if row.state == COMPUTED else reference
    assert {row.state for row in rows} == {COMPUTED, REUSED}


def test_rows_that_decide_alone_are_measured_alone() -> None:
    model = TRANSFORMERS["DiTTransformer2DModel"].build("DiTTransformer2DModel")
    with accelerate(model, BlockCache(threshold=0.3)) as handle:
        run(model, "DiTTransformer2DModel")
        report = handle.report()
    partly = [row for row in report.calls if row.state == PARTLY]
    assert partly
    for row in partly:
        (item,) = row.measured
        assert min(item.values) <= 0.3 < max(item.values)
    assert sum(row.macs or 0 for row in report.calls) == report.macs


def test_a_skipped_network_costs_nothing() -> None:
    model = TRANSFORMERS["DiTTransformer2DModel"].build("DiTTransformer2DModel")
    with accelerate(model, EasyCache(threshold=100.0)) as handle:
        run(model, "DiTTransformer2DModel")
        rows = handle.report().calls
    assert [row.state for row in rows] == [COMPUTED] * 2 + [REUSED] * 4
    assert [row.macs for row in rows[2:]] == [0] * 4
    assert all(item.limit == 100.0 for row in rows[2:] for item in row.measured)


def test_runs_are_told_apart_and_later_calls_do_not_change_a_report() -> None:
    model = TRANSFORMERS["DiTTransformer2DModel"].build("DiTTransformer2DModel")
    with accelerate(model, IntervalCache(2)) as handle:
        with pytest.raises(ValueError, match="nothing to draw"):
            handle.report().plot()
        assert "No network call was made" in handle.report().to_html()
        run(model, "DiTTransformer2DModel")
        early = handle.report()
        run(model, "DiTTransformer2DModel")
        late = handle.report()
    assert [row.run for row in late.calls] == [0] * CALLS + [1] * CALLS
    assert [row.run for row in late.last_run] == [1] * CALLS
    assert len(early.calls) == CALLS


def test_the_drawing_shows_every_call_and_every_value(tmp_path: Any) -> None:
    model = TRANSFORMERS["DiTTransformer2DModel"].build("DiTTransformer2DModel")
    with accelerate(model, BlockCache(threshold=0.3)) as handle:
        run(model, "DiTTransformer2DModel")
        report = handle.report()
    report.plot().save(tmp_path / "calls.svg")
    report.save(tmp_path / "report.html")
    root = ElementTree.parse(tmp_path / "calls.svg").getroot()
    bars = [x for x in root.iter("{http://www.w3.org/2000/svg}rect") if len(x)]
    dots = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert [bar.get("class") for bar in bars] == [row.state for row in report.calls]
    heights = [float(bar.get("height") or 0) for bar in bars]
    assert heights == pytest.approx([110 * row.share for row in report.calls], abs=0.06)
    assert len(dots) == sum(len(item.values) for row in report.calls for item in row.measured)
    (limit,) = [x for x in root.iter("{http://www.w3.org/2000/svg}line") if x.get("class") == "limit"]
    over = [dot for dot in dots if float(dot[0].text.split(": ")[1].split(",")[0]) > 0.3]  # type: ignore[union-attr]
    assert over
    assert all(float(dot.get("cy") or 0) < float(limit.get("y1") or 0) for dot in over)
    html = (tmp_path / "report.html").read_text()
    assert f"{max(v for row in report.calls for item in row.measured for v in item.values):.4f}" in html


def test_what_cannot_be_counted_or_drawn_is_at_the_edge() -> None:
    item = Measured("change", (0.0, float("inf"), 0.5), 0.1)
    svg = draw([CallRow("unet", None, None, PARTLY, (item,), None, None)]).svg
    assert "what each call computed" in svg
    assert "nan" not in svg
    heights = [
        float(dot.get("cy") or 0) for dot in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert heights[0] > heights[2] > heights[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(1, 4), (4, 1)])
def test_the_last_run_is_the_last_whichever_networks_it_took(tiny_pipe: Any, lengths: tuple[int, int]) -> None:
    with accelerate(tiny_pipe, NetworkSwitch(unet(), until=0.3)) as handle:  # it takes none of a single call
        for steps in lengths:
            tiny_pipe("ab", num_inference_steps=steps, guidance_scale=1.0, output_type="latent")
        rows = handle.report().last_run
    assert {row.run for row in rows} == {1}
    assert sorted(row.step or 0 for row in rows) == list(range(lengths[1]))

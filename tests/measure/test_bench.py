"""The benchmark on a tiny pipeline: what it measures is what runs, and the report says it."""

import csv
import io
import json
import logging
import re
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import stream_pipelines
import torch
from click.testing import CliRunner
from diffusers import PixArtTransformer2DModel
from tiny_transformers import TRANSFORMERS

from diffaccel import DeepCache, TGate, models
from diffaccel._diffusers import first_block_cache, hooks_of
from diffaccel.attach.handle import accelerate
from diffaccel.attach.macs import count_macs
from diffaccel.cli import main
from diffaccel.measure.bench import Benchmark, bench
from diffaccel.measure.candidates import PLAIN, Candidate, cache_dit, calibrated, fewer_steps, ours, peers
from diffaccel.measure.chart import Point, front, pareto
from diffaccel.measure.machine import machine
from diffaccel.measure.page import Setting, points, share, write_report
from diffaccel.measure.quality import Quality, compare
from diffaccel.measure.trace import write_trace
from diffaccel.measure.workload import Workload

pytestmark = pytest.mark.slow

STEPS = 4
WORKLOAD = Workload(("ab", "cd"), (0,), {"num_inference_steps": STEPS})


@contextmanager
def broken(_: Any) -> Any:
    raise OSError("not today")
    yield


@pytest.fixture(scope="module")
def result(tiny_pipe: Any) -> Benchmark:
    candidates = [PLAIN, ours((DeepCache(2),)), fewer_steps(2), Candidate("broken", "peer", broken), ours((TGate(9),))]
    return bench(tiny_pipe, WORKLOAD, candidates, rounds=2, progress=lambda _: None)


def test_rows_are_what_ran(tiny_pipe: Any, result: Benchmark) -> None:
    plain, cached, fewer = result.rows
    assert [row.name for row in result.rows] == ["plain", "deepcache:interval=2", "2 steps"]
    refused = "gate must be <= 4, the network calls of the run; got 9"
    assert result.failures == {"broken": "OSError: not today", "tgate:gate=9": refused}
    assert torch.equal(result.pictures["plain"], WORKLOAD.pictures(tiny_pipe))
    with accelerate(tiny_pipe, DeepCache(2)):
        assert torch.equal(result.pictures["deepcache:interval=2"], WORKLOAD.pictures(tiny_pipe))
        one = Workload(("ab",), (0,), WORKLOAD.settings)
        assert cached.macs == count_macs(lambda: one.pictures(tiny_pipe))
    assert plain.ceiling == 1
    assert cached.ceiling == plain.macs / cached.macs > 1
    assert fewer.ceiling > 1.3
    assert plain.quality.psnr == 100
    assert cached.quality.psnr < 100
    assert cached.cache_bytes
    assert plain.cache_bytes is None
    assert all(len(row.timing.seconds) == 2 for row in result.rows)


def test_pictures_that_are_not_numbers_are_left_out_with_the_reason(tiny_pipe: Any) -> None:
    @contextmanager
    def overflowing(pipe: Any) -> Any:
        decode = pipe.vae.decode
        pipe.vae.decode = lambda *args, **kwargs: (decode(*args, **kwargs)[0] * float("nan"),)
        try:
            yield
        finally:
            del pipe.vae.decode

    candidates = [PLAIN, Candidate("overflows", "peer", overflowing)]
    found = bench(tiny_pipe, WORKLOAD, candidates, rounds=1, progress=lambda _: None)
    assert "values that are not numbers" in found.failures["overflows"]
    assert [row.name for row in found.rows] == ["plain"]


def test_pictures_too_small_to_compare_are_told_before_more_is_measured(tiny_pipe: Any) -> None:
    said: list[str] = []
    small = replace(WORKLOAD, settings={"num_inference_steps": 1, "height": 8, "width": 8})
    with pytest.raises(ValueError, match="at least 11 x 11 pixels"):
        bench(tiny_pipe, small, [PLAIN, ours((DeepCache(2),))], rounds=1, progress=said.append)
    assert said == ["measuring plain"]


def test_a_peer_that_logs_what_it_does_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cache_dit")
    pipe = models.load("emoji-dit", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    handlers = logging.getLogger("CACHE_DIT").handlers
    levels = [handler.level for handler in handlers]
    with cache_dit(pipe, 0.1, 1):
        assert all(handler.level >= logging.ERROR for handler in handlers)
    assert [handler.level for handler in handlers] == levels
    assert "Cache-DiT" not in capfd.readouterr().out


def test_what_a_peer_leaves_on_a_network_is_taken_off() -> None:
    pytest.importorskip("cache_dit")
    pipe = stream_pipelines.flux()
    pipe.set_progress_bar_config(disable=True)
    work = Workload(("a cat",), settings={"num_inference_steps": 3, "height": 32, "width": 32})
    plain, names = work.pictures(pipe), [name for name, _ in pipe.transformer.named_modules()]
    before = {module: dict(vars(module)) for module in pipe.transformer.modules()}
    with cache_dit(pipe, 0.1, 1):
        assert "forward" in vars(pipe.transformer)
        work.pictures(pipe)
    assert {module: vars(module) for module in pipe.transformer.modules()} == before
    assert [name for name, _ in pipe.transformer.named_modules()] == names
    with first_block_cache(pipe.transformer, 0.1):
        assert work.pictures(pipe).shape == plain.shape
    assert torch.equal(work.pictures(pipe), plain)


def test_a_workload_is_reproducible_and_every_picture_has_its_noise(tiny_pipe: Any) -> None:
    many = Workload(("ab", "ab", "ab"), (0, 1), WORKLOAD.settings, batch_size=2)
    pictures = many.pictures(tiny_pipe)
    assert pictures.shape == (6, 3, 32, 32)
    assert torch.equal(pictures, many.pictures(tiny_pipe))
    assert len({picture.numpy().tobytes() for picture in pictures}) == 6
    assert many.truth == ("ab",) * 6
    with pytest.raises(ValueError, match="at least one prompt"):
        Workload(())


def test_candidates_must_start_with_the_plain_pipeline(tiny_pipe: Any) -> None:
    with pytest.raises(ValueError, match="first candidate must be the plain pipeline"):
        bench(tiny_pipe, WORKLOAD, [ours((DeepCache(2),))])
    with pytest.raises(ValueError, match="name of its own"):
        bench(tiny_pipe, WORKLOAD, [PLAIN, PLAIN])


def test_report_holds_every_figure(result: Benchmark, tmp_path: Path) -> None:
    setting = Setting(
        "Title & more", "diffaccel bench -q", machine(), {"pictures": 2, "steps": STEPS}, {"p": "<svg></svg>"}
    )
    write_report(tmp_path / "new", result, setting)
    page = (tmp_path / "new" / "report.html").read_text()
    assert "Title &amp; more" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page must need nothing else"
    assert page.count("data:image/webp") == 2 * 2 + 2 * 2 + 2 * 2 * 1 + 2 * 2
    for row in result.rows:
        assert row.name in page
        assert f"{row.timing.median:.3f}" in page
    assert "OSError: not today" in page
    values = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [row["name"] for row in values["rows"]] == [row.name for row in result.rows]
    assert values["rows"][1]["macs"] == result.rows[1].macs
    table = list(csv.DictReader(io.StringIO((tmp_path / "new" / "report.csv").read_text())))
    assert float(table[1]["psnr"]) == pytest.approx(result.rows[1].quality.psnr, rel=1e-4)


def test_front_is_what_nothing_beats() -> None:
    points = [
        Point("a", "peer", 1.0, 50),
        Point("b", "peer", 2.0, 30),
        Point("c", "peer", 1.5, 29),
        Point("d", "peer", 3.0, 10),
    ]
    assert [point.name for point in front(points)] == ["a", "b", "d"]
    svg = pareto([*points, Point("e<", "diffaccel", 2.5, 20)])
    assert svg.count("<rect") == 4
    assert svg.count("<circle") == 1
    assert "e&lt;" in svg
    assert pareto([Point("plain", "plain", 1.0, 100)]) == ""


def test_what_is_slower_than_plain_is_not_on_the_front(result: Benchmark) -> None:
    slower = replace(result.rows[1], speedup=0.95, quality=Quality(40.0, 40.0, 0.99, 0.99))
    faster = replace(slower, name="faster", speedup=1.05)
    made = replace(result, rows=(result.rows[0], slower, faster))
    assert [point.name for point in front(points(made))] == ["plain", "faster"]
    assert "0.95x" in pareto(points(made))


def test_another_seed_is_the_floor(result: Benchmark, tiny_pipe: Any) -> None:
    plain = WORKLOAD.pictures(tiny_pipe)
    other = Workload(WORKLOAD.prompts, (max(WORKLOAD.seeds) + 1,), WORKLOAD.settings).pictures(tiny_pipe)
    assert result.floor == compare(other, plain)
    assert result.floor.psnr < 100


def test_shares_of_few_pictures_are_counted() -> None:
    assert (share(1.0, 2), share(0.5, 4), share(0.94, 248)) == ("2 of 2", "2 of 4", "94%")


def test_peers_come_off_again(tiny_pipe: Any) -> None:
    plain = WORKLOAD.pictures(tiny_pipe)
    for candidate in peers(tiny_pipe):
        with candidate.attach(tiny_pipe):
            assert WORKLOAD.pictures(tiny_pipe).shape == plain.shape
        assert torch.equal(WORKLOAD.pictures(tiny_pipe), plain), candidate.name


def test_peers_are_measured(tiny_pipe: Any) -> None:
    first, *_ = peers(tiny_pipe)
    done = bench(tiny_pipe, WORKLOAD, [PLAIN, first], rounds=1, progress=lambda _: None)
    assert done.failures == {}
    assert done.rows[1].name == "DeepCache 1:2"
    assert done.rows[1].ceiling > 1
    assert done.rows[1].cache_bytes is None


def test_a_calibrated_cache_is_measured_on_a_transformer() -> None:
    pipe = models.load("emoji-dit", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    work = Workload(("dog",), (0,), {"num_inference_steps": 3, "guidance_scale": 1.0})
    plain, *cached = bench(
        pipe, work, [PLAIN, *(calibrated(work, alpha) for alpha in (0.0, 9.0))], rounds=1, progress=lambda _: None
    ).rows
    assert [row.name for row in cached] == ["calibratedcache, alpha 0", "calibratedcache, alpha 9"]
    assert cached[0].macs == plain.macs
    assert cached[0].quality.psnr > 60
    assert cached[1].macs < plain.macs


def test_first_block_cache_comes_off_again() -> None:
    tiny = TRANSFORMERS["PixArtTransformer2DModel"]
    model: PixArtTransformer2DModel = tiny.build("PixArtTransformer2DModel")
    inputs = {**tiny.inputs(2, torch.Generator().manual_seed(0)), tiny.timestep: torch.full((2,), 500.0)}
    with torch.no_grad():
        plain = model(**inputs).sample
        with first_block_cache(model, 0.5):
            model(**inputs)
        assert torch.equal(model(**inputs).sample, plain)
    assert not any(hooks_of(module) for module in model.modules())


def test_first_block_cache_forgets_a_run_at_its_end() -> None:
    pipe = models.load("emoji-dit", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    one, two = (Workload(prompts, (0,), {"num_inference_steps": 3}) for prompts in (("dog",), ("dog", "pizza")))
    with first_block_cache(pipe.transformer, 0.5):
        first = one.pictures(pipe)
        assert two.pictures(pipe).shape[0] == 2
        assert torch.equal(one.pictures(pipe), first)


def test_trace_names_the_decisions(tiny_pipe: Any, tmp_path: Path) -> None:
    with accelerate(tiny_pipe, DeepCache(2)):
        write_trace(lambda: WORKLOAD.pictures(tiny_pipe), tmp_path / "trace.json")
    names = [event.get("name", "") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert names.count("diffaccel: compute") == 2
    assert sum(name.startswith("diffaccel: replay up_blocks") for name in names) == 2


def test_the_command_writes_its_report(tiny_sd: Path, tmp_path: Path) -> None:
    arguments = [
        "bench",
        "--model",
        str(tiny_sd),
        "--steps",
        "4",
        "--prompts",
        "ab",
        "--rounds",
        "1",
        "--no-peers",
        "-q",
    ]
    arguments += [
        "--methods",
        "deepcache:interval=2",
        "--methods",
        "textkvcache",
        "--trace",
        "-o",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "textkvcache" in done.output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "report.html",
        "report.json",
        "report.csv",
        "trace.json",
    }
    bad = CliRunner().invoke(main, [*arguments, "--methods", "nothing"], catch_exceptions=False)
    assert bad.exit_code == 2
    assert "nothing" in bad.output


def test_bundled_models_have_prompts_of_their_own() -> None:
    from diffaccel.cli.model_options import DEFAULT_MODEL, ModelChoice
    from diffaccel.cli.subject import Subject

    choice = ModelChoice.of({**dict.fromkeys(each.name for each in fields(ModelChoice)), "model": DEFAULT_MODEL})
    subject = Subject(choice, (), None, None, None, None, 0, quiet=True)
    assert len(set(subject.texts())) == 12
    assert subject.settings() == {"num_inference_steps": 20, "guidance_scale": 2.0, "width": 128, "height": 128}
    assert subject.name in models.names("pipeline")

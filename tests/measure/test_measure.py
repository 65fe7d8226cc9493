"""Figures of measurement against formulas, references and known work."""

import math
import re
import time
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from diffaccel.measure import (
    Judge,
    Timing,
    captions,
    compare,
    interleaved,
    joules,
    machine,
    ms_ssim,
    peak_memory,
    psnr,
    ssim,
)
from diffaccel.measure import energy as energy_module
from diffaccel.measure import memory as memory_module
from diffaccel.measure.quality import BETAS, betas


def pictures(seed: int, size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_the_formula() -> None:
    one, other = pictures(0), pictures(1)
    expected = [-10 * math.log10(float((a - b).double().square().mean())) for a, b in zip(one, other, strict=True)]
    assert psnr(one, other).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr(one, one).tolist() == [100.0, 100.0]
    assert psnr(one, one + 0.1)[0] == pytest.approx(20.0, abs=1e-4)


def test_ssim_of_equal_constant_and_noisy_pictures() -> None:
    one = pictures(0)
    assert ssim(one, one).tolist() == pytest.approx([1.0, 1.0])
    light, dark = torch.full((1, 3, 32, 32), 0.8), torch.full((1, 3, 32, 32), 0.4)
    expected = (2 * 0.8 * 0.4 + 0.01**2) / (0.8**2 + 0.4**2 + 0.01**2)  # only the means of flat pictures differ
    assert ssim(light, dark).item() == pytest.approx(expected, abs=1e-3)
    near, far = (one + 0.02 * pictures(1)).clamp(0, 1), pictures(2)
    assert (ssim(near, one) > ssim(far, one)).all()
    assert (ms_ssim(near, one) > ms_ssim(far, one)).all()


def test_scales_fit_the_picture() -> None:
    assert [len(betas(pixels)) for pixels in (16, 64, 128, 161)] == [1, 3, 4, 5]
    assert betas(512) == pytest.approx(BETAS, abs=1e-4)
    assert ms_ssim(pictures(0, 16), pictures(0, 16)).tolist() == pytest.approx([1.0, 1.0])


def test_compare_takes_pil_and_tensors() -> None:
    one = Image.new("RGB", (32, 32), (255, 0, 0))
    other = Image.new("RGB", (32, 32), (0, 0, 0))
    quality = compare([one, one], [one, other])
    assert quality.worst == pytest.approx(-10 * math.log10(1 / 3), abs=1e-4)
    assert quality.psnr == pytest.approx((100 + quality.worst) / 2)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (pictures(0), pictures(0, 32), r"differ in shape"),
        (pictures(0)[0], pictures(0)[0], r"must be \(n, channels, height, width\)"),
        (pictures(0, 8), pictures(0, 8), r"at least 11 x 11 pixels; got 8"),
        ([], [], r"expected pictures"),
    ],
)
def test_bad_pictures_are_refused(one: object, other: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(one, other)


def test_interleaved_takes_turns() -> None:
    order: list[str] = []
    work = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = interleaved(work, rounds=3, warmup=1)
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(rounds) == 4
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({turn[0] for turn in rounds[1:]}) == 3
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_timing_tells_a_sleep() -> None:
    timings = interleaved({"short": lambda: None, "long": lambda: time.sleep(0.02)}, rounds=3)
    assert timings["long"].median >= 0.02
    assert timings["short"].speedup(timings["long"]) > 2


def test_statistics_of_a_timing() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert (timing.median, timing.spread) == (3.0, 2.0)
    assert timing.speedup(Timing((2.0, 4.0, 6.0, 8.0, 100.0))) == 2.0
    assert Timing((1.0,)).spread == 0.0
    with pytest.raises(ValueError, match="rounds must be an integer >= 1"):
        interleaved({"a": lambda: None}, rounds=0)
    with pytest.raises(ValueError, match="at least one piece"):
        interleaved({})


def test_memory_sees_an_allocation() -> None:
    size = 64 * 2**20
    used = peak_memory(lambda: torch.ones(size, dtype=torch.uint8))
    if used is not None:
        assert 0.9 * size < used < 3 * size


def test_energy_is_read_from_the_meter_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert joules(lambda: pytest.fail("must not run without a meter")) is None
    readings = iter((900, 1000, 3500))  # the first says that there is a counter
    monkeypatch.setattr(energy_module, "millijoules", lambda _: next(readings))
    assert joules(lambda: None) == 2.5


def test_machine_names_what_matters() -> None:
    here = machine()
    assert re.search(r", \d+ cores?, \d+ threads?$", here.processor)
    assert {"torch", "diffusers"} <= set(here.packages)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(captions())


@pytest.mark.slow
def test_judge_ranks_by_similarity() -> None:
    judge, drawn = Judge(captions()[:40]), pictures(0, 128)
    nearest = [judge.captions[i] for i in _nearest(judge, drawn)]
    assert judge.ranks(drawn, nearest).tolist() == [0, 0]
    assert judge.accuracy(drawn, nearest).top1 == 1.0
    others = [next(c for c in judge.captions if c != caption) for caption in nearest]
    assert (judge.ranks(drawn, others) > 0).all()


def _nearest(judge: Judge, drawn: torch.Tensor) -> list[int]:
    """Reference: the caption for which no other is nearer, found by asking for each."""
    ranks = [judge.ranks(drawn, [caption] * len(drawn)) for caption in judge.captions]
    return torch.stack(ranks).argmin(dim=0).tolist()


def test_judge_refuses_unknown_captions(judge: Judge) -> None:
    with pytest.raises(ValueError, match="does not know the caption"):
        judge.ranks(pictures(0, 128), ["red heart", "no such thing"])
    with pytest.raises(ValueError, match="cannot have 1 captions"):
        judge.ranks(pictures(0, 128), ["red heart"])
    with pytest.raises(ValueError, match="at least one caption"):
        Judge([])


def test_judge_resizes(judge: Judge) -> None:
    assert judge.ranks(pictures(3, 64), ["red heart"] * 2).shape == (2,)


def test_where_memory_is_not_told_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where there is no C library to ask by that name either."""
    monkeypatch.setattr(memory_module.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(TypeError("must be str")))
    monkeypatch.setattr(memory_module, "_CLEAR", memory_module.Path("/nowhere/clear_refs"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_memory(lambda: pytest.fail("was run")) is None


def test_thousands_of_pictures_are_measured_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(5, 3, 32, 32, generator=generator) for _ in range(2))
    whole = compare(one, other)
    monkeypatch.setattr("diffaccel.measure.quality.TOGETHER", 2)
    assert asdict(compare(one, other)) == pytest.approx(asdict(whole))

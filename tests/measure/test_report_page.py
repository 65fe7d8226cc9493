"""The page of a benchmark, from figures that are given: what it says is whole and legible, of few and of many."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffaccel.measure.bench import Benchmark, BenchRow
from diffaccel.measure.chart import Point, pareto
from diffaccel.measure.machine import MachineInfo
from diffaccel.measure.page import Setting, page
from diffaccel.measure.quality import Quality
from diffaccel.measure.timing import Timing
from diffaccel.measure.workload import Workload, other_seeds
from diffaccel.sampling.seeds import generator_of

PLAIN = BenchRow("plain", "plain", Timing((1.0,)), 1.0, 100, 1.0, Quality(100, 100, 1, 1), None, None, None, None)
CACHED = replace(
    PLAIN, name="cached", kind="diffaccel", speedup=2.0, quality=Quality(35, 30, 0.9, 0.9), cache_bytes=9000
)
SETTING = Setting("On a/long/path", "diffaccel bench", MachineInfo("p", None, "s", {}), {}, {})


class OfLabels:
    def __call__(self, class_labels: Any) -> None: ...


class OfVideos:
    def __call__(self, **prompt: Any) -> Any:
        return SimpleNamespace(frames=[prompt])


def written(prompts: int = 1) -> str:
    pictures = dict.fromkeys(("plain", "cached"), torch.zeros(prompts, 3, 16, 16))
    truth = tuple(f"prompt {index}" for index in range(prompts))
    return page(Benchmark((PLAIN, CACHED), {}, pictures, truth, Quality(12, 11, 0.3, 0.3)), SETTING)


def test_sentences_are_whole_and_what_is_drawn_is_explained() -> None:
    text = " ".join(re.sub(r"<[^>]+>", "", written()).split())
    assert "Times are of a single round. Energy: not available on this machine. Prompt accuracy: not judged" in text
    assert "at equal seeds, over 1 picture. Times are" in text
    assert "over 3 pictures." in written(3)
    assert "plain pipeline, at the upper edge" in text
    assert "9.0 kB" in text


@pytest.mark.parametrize("least", [5.0, 12.0, 31.0])
def test_what_is_equal_is_marked_as_more_than_the_scale(least: float) -> None:
    drawn = pareto([Point("a", "diffaccel", 1.1, 100.0), Point("b", "steps", 2.0, least)])
    assert "≥ 60" in drawn


@pytest.mark.parametrize("fastest", [1.3, 4.0, 30.0, 900.0])
def test_figures_across_have_room(fastest: float) -> None:
    drawn = pareto([Point("a", "steps", fastest, 30.0)])
    assert 2 <= len(re.findall(r"[\d.]+x</text>", drawn)) <= 13


@pytest.mark.parametrize(
    ("pipe", "words"),
    [
        (OfLabels(), "OfLabels takes no prompts: what is measured are pictures of prompts"),
        (OfVideos(), "OfVideos makes no pictures: what is measured are pictures of prompts"),
    ],
)
def test_pipelines_of_other_things_are_refused_in_a_sentence(pipe: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Workload(("a cat",)).pictures(pipe)


def test_any_seed_has_noise() -> None:
    assert Workload.seed_of(3, 4) == 300_013
    for work in (Workload(("a",), (2**64 - 1,)), other_seeds(Workload(("a",), (2**64 - 1,)))):
        assert generator_of(Workload.seed_of(work.seeds[0], 7)).initial_seed() < 2**64

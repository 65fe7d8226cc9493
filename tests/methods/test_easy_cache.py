"""EasyCache against its formula written out for one row at a time."""

from typing import Any

import pytest
import torch
from tiny_networks import generate, picture_unet, pipeline

from diffaccel import EasyCache, ResidualGuidance, TGate, accelerate
from diffaccel.methods import Method
from diffaccel.networks import layout_of


def reference(network: Any, xs: list[torch.Tensor], threshold: float, warmup: int) -> tuple[list[torch.Tensor], int]:
    """Outputs for the inputs of one row, and how many were skipped."""
    x_last = v_last = latest = rate = None
    expected, outputs, skipped = 0.0, [], 0
    for step, x in enumerate(xs):
        if step >= warmup and rate is not None:
            expected += rate * float((x - latest).abs().mean()) / float(v_last.abs().mean())
            if expected < threshold:
                outputs.append(x + (v_last - x_last))
                latest, skipped = x, skipped + 1
                continue
        v = network(step, x)
        if v_last is not None:
            rate = float((v - v_last).abs().mean()) / float((x - x_last).abs().mean())
        x_last, v_last, latest, expected = x, v, x, 0.0
        outputs.append(v)
    return outputs, skipped


def run(unet: Any, xs: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [unet(x, t, text).sample for t, x in zip(torch.linspace(900, 100, len(xs)), xs, strict=True)]


def inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    start, drift = (torch.randn(rows, 4, 16, 16, generator=generator) for _ in range(2))
    speed = torch.tensor([0.002, 0.2])[:rows].view(-1, 1, 1, 1)
    xs = torch.stack([start + step * speed * drift for step in range(10)])  # (calls, rows, 4, 16, 16)
    return xs, torch.randn(rows, 7, 16, generator=generator)


def test_threshold_0_is_the_plain_network() -> None:
    unet, (xs, text) = picture_unet(), inputs()
    plain = run(unet, xs, text)
    with accelerate(unet, EasyCache(threshold=0.0)) as handle:
        assert all(torch.equal(a, b) for a, b in zip(run(unet, xs, text), plain, strict=True))
    assert handle.report().replayed == 0


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_each_row_follows_the_formula(threshold: float) -> None:
    unet, (xs, text) = picture_unet(), inputs()
    times = torch.linspace(900, 100, len(xs))
    with accelerate(unet, EasyCache(threshold=threshold)):
        ours = run(unet, xs, text)
    skips = []
    for row in range(2):

        def network(step: int, x: torch.Tensor, row: int = row) -> torch.Tensor:
            with torch.no_grad():
                return unet(x, times[step], text[row : row + 1]).sample

        expected, skipped = reference(network, [x[row : row + 1] for x in xs], threshold, 2)
        skips.append(skipped)
        for mine, theirs in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine[row : row + 1], theirs, rtol=0, atol=1e-4)
    assert sum(skips) > 0


def test_in_a_guided_pipeline_runs_do_not_leak() -> None:
    pipe = pipeline(picture_unet())
    with accelerate(pipe, EasyCache(threshold=0.5, max_consecutive=2)) as handle:
        first, again = generate(pipe), generate(pipe)
        report = handle.report()
    assert torch.equal(first, again)
    assert report.replayed > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "since"),
    [(ResidualGuidance(), 1), (ResidualGuidance(renew=4, held="difference"), None), (TGate(gate=3), 3)],
    ids=["one-time", "renewed", "tgate"],
)
def test_it_decides_about_rows_that_others_leave(other: Method, since: int | None) -> None:
    pipe = pipeline(picture_unet())
    negative = torch.zeros(1, 7, 16)
    asked: list[bool] = []  # whether the negative prompt reaches the network, call by call

    def note(module: Any, args: Any) -> None:
        asked.append(any(torch.equal(row, negative[0]) for row in args[0]))

    def paint() -> torch.Tensor:
        return generate(pipe, 12, guidance_scale=1.5, negative_prompt_embeds=negative)

    plain = paint()
    pipe.unet.get_submodule(layout_of(pipe.unet).conditioning_only[0]).register_forward_pre_hook(note)
    with accelerate(pipe, EasyCache(threshold=0.5), other) as handle:
        pictures = [paint() for _ in range(2)]
        assert handle.report().replayed > 0
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], plain)
    assert since is None or not any(asked[since : len(asked) // 2])

"""ControlNets of transformers: ControlCache equals a reference, and DeltaCache feeds no block that it skips."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from cells import cells
from walk_parts import Draw, seeded
from walk_pictures import attended, flux, flux_inputs, sana, sd3, sd3_inputs

from diffaccel import ControlCache, DeltaCache, accelerate
from diffaccel.networks import layout_of

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed`:FutureWarning")  # diffusers' own
STEPS = 5


def sd3_control() -> Any:
    base = sd3("StableDiffusion3Pipeline")
    net = seeded(
        lambda: diffusers.SD3ControlNetModel.from_transformer(
            base.transformer, num_layers=2, num_extra_conditioning_channels=0
        )
    )
    return sd3("StableDiffusion3ControlNetPipeline", transformer=base.transformer, controlnet=net)


def sana_control() -> Any:
    base = sana("SanaPipeline")
    net = seeded(lambda: diffusers.SanaControlNetModel.from_config({**base.transformer.config, "num_layers": 2}))
    parts = {name: base.components[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    pipe = diffusers.SanaControlNetPipeline(**parts, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(d: Draw, side: int = 64) -> dict[str, Any]:
    return {"control_image": d.picture(1, 3, side, side)}


CASES: dict[str, tuple[Callable[[], Any], Callable[[Draw], dict[str, Any]]]] = {
    "sd3": (sd3_control, lambda d: {**sd3_inputs(d), **picture(d)}),
    "flux": (lambda: flux("FluxControlNetPipeline"), lambda d: flux_inputs(d, **picture(d))),
    "sana": (
        sana_control,
        lambda d: {**attended(d), "output_type": "latent", "height": 32, "width": 32, "use_resolution_binning": False,
                   **picture(d, 32)},
    ),
}  # fmt: skip


def paint(pipe: Any, inputs: Callable[[Draw], dict[str, Any]], dtype: torch.dtype, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    given = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0), **inputs(Draw(dtype))}
    return pipe(**{**given, **options}).images


def override(net: Any, value: Callable[[int, int, list[torch.Tensor]], torch.Tensor]) -> list[Any]:
    """All runs in every call, and `value` says what each residual is."""
    names = [branch.replayed[0] for branch in layout_of(net).residuals]
    known: list[list[torch.Tensor]] = [[] for _ in names]

    def hook(number: int) -> Callable[..., torch.Tensor]:
        def after(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            known[number].append(output.clone())
            return value(number, len(known[number]) - 1, known[number])

        return after

    return [net.get_submodule(name).register_forward_hook(hook(i)) for i, name in enumerate(names)]


@pytest.mark.slow
@pytest.mark.parametrize("name", cells(CASES, quick=lambda name: name == "sana"))
@pytest.mark.parametrize("dtype", cells([torch.float32, torch.bfloat16], quick=lambda dtype: dtype == torch.float32))
def test_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    build, inputs = CASES[name]
    pipe = build().to(dtype)
    plain = paint(pipe, inputs, dtype)
    with accelerate(pipe, ControlCache(1)):
        assert torch.equal(paint(pipe, inputs, dtype), plain)
    for method, value in (
        (ControlCache(3), lambda _, call, known: known[call - call % 3]),
        (ControlCache(1, keep=1), lambda i, call, known: known[call] if i < 1 else torch.zeros_like(known[call])),
        (ControlCache((1, 2)), lambda i, call, known: known[call - (call % 2 if i else 0)]),
    ):
        hooks = override(pipe.controlnet, value)
        expected = paint(pipe, inputs, dtype)
        for handle in hooks:
            handle.remove()
        assert not torch.equal(expected, plain)
        with accelerate(pipe, method) as handle:
            assert torch.equal(paint(pipe, inputs, dtype), expected), method
            report = handle.report()
        assert report.macs < report.macs_plain
    assert torch.equal(paint(pipe, inputs, dtype), plain)


@pytest.mark.parametrize(("name", "blocks"), [("sd3", 3), ("sana", 4), ("flux", 2)])
def test_what_a_skipped_range_hides_is_not_computed(name: str, blocks: int) -> None:
    build, inputs = CASES[name]
    pipe = build()
    method = DeltaCache(2, blocks=blocks, gate=3)
    with accelerate(pipe.transformer, method, scheduler=pipe.scheduler):
        in_full = paint(pipe, inputs, torch.float32)
    with accelerate(pipe, method) as handle:
        assert torch.equal(paint(pipe, inputs, torch.float32), in_full)
        assert torch.equal(paint(pipe, inputs, torch.float32), in_full)
        left_out = handle.report().controlnet[1]
    assert (left_out > 0) == (name != "flux")  # behind its last double block something is always added


def test_one_image_that_is_told_to_show_two_things_is_two() -> None:
    pipe = flux("FluxControlNetPipeline")
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    net = seeded(lambda: diffusers.FluxControlNetModel.from_config({**pipe.controlnet.config, **sizes, "num_mode": 3}))
    pipe.controlnet = diffusers.FluxMultiControlNetModel([net, net])
    lines = Draw(torch.float32).picture(1, 3, 64, 64)
    told = {"control_image": [lines, lines], "control_mode": [0, 2], "controlnet_conditioning_scale": [1.0, 1.0]}
    with accelerate(pipe, ControlCache(4)) as handle:
        paint(pipe, lambda d: flux_inputs(d, **told), torch.float32, num_inference_steps=2)
        assert handle.report().controlnet == (2, 2)

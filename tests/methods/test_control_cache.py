"""ControlCache runs a ControlNet as deep and as often as told, and equals a reference that overrides its residuals."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import cells
from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline
from diffusers import StableDiffusionXLControlNetPipeline as XLControlNetPipeline
from tiny_networks import LIGHT, TEXT, generate, pipeline, sd_unet, sdxl_unet
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from diffaccel import ControlCache, DeepCache, Relevance, Taylor, UnsupportedModelError, accelerate
from diffaccel.methods import EncoderPropagation, Loss, TextKVCache, TGate
from diffaccel.networks import layout_of

STEPS = 6
IMAGE = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(9))


def controlnet(unet: Any, seed: int) -> ControlNetModel:
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(zero.weight, std=0.3)
    return net.eval()


def build(seeds: Sequence[int] = (0,), xl: bool = False) -> Any:
    unet = sdxl_unet() if xl else sd_unet(**LIGHT)
    nets = [controlnet(unet, seed) for seed in seeds]
    parts = pipeline(unet).components | ({} if xl else {"requires_safety_checker": False})
    kind = XLControlNetPipeline if xl else StableDiffusionControlNetPipeline
    pipe = kind(**parts, controlnet=nets[0] if len(nets) == 1 else MultiControlNetModel(nets))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build()


@pytest.fixture(scope="module")
def two() -> Any:
    return build((0, 1))


def paint(pipe: Any, **options: Any) -> torch.Tensor:
    many = hasattr(pipe.controlnet, "nets")
    if "text_encoder_2" in pipe.components:
        pooled = torch.randn(2, TEXT, generator=torch.Generator().manual_seed(3)).to(pipe.unet.dtype)
        options |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
    return generate(pipe, **{"steps": STEPS, "image": [IMAGE, 1 - IMAGE] if many else IMAGE, **options})


def outputs(net: Any) -> list[Any]:
    """The projections of a ControlNet's residuals, in the order in which they are made."""
    return [*net.controlnet_down_blocks, net.controlnet_mid_block]


Value = Callable[[int, int, dict[int, torch.Tensor]], torch.Tensor | None]


@contextmanager
def overridden(net: Any, value: Value) -> Iterator[None]:
    """The reference: all runs in every call, and `value` says what each residual is.

    It is asked with the residual's number, the call's, and what the residual was at the calls so far; None leaves it.
    """
    known: list[dict[int, torch.Tensor]] = [{} for _ in outputs(net)]
    calls = [-1]

    def hook(number: int) -> Callable[..., Any]:
        def after(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
            calls[0] += number == 0
            known[number][calls[0]] = output.clone()
            return value(number, calls[0], known[number])

        return after

    handles = [module.register_forward_hook(hook(number)) for number, module in enumerate(outputs(net))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def held(computed: Callable[[int], Sequence[int]], kept: int = 99) -> Value:
    """Residuals are those of the last of the calls that compute them, and zero from the `kept`-th on."""

    def value(number: int, call: int, known: dict[int, torch.Tensor]) -> torch.Tensor:
        if number >= kept:
            return torch.zeros_like(known[call])
        return known[max(c for c in computed(number) if c <= call)]

    return value


@pytest.mark.slow
@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("dtype", cells([torch.float32, torch.bfloat16], lambda dtype: dtype is torch.float32))
def test_reusing_nothing_changes_nothing(xl: bool, dtype: torch.dtype) -> None:
    pipe = build(xl=xl).to(dtype)
    plain = paint(pipe, steps=3)
    with accelerate(pipe, ControlCache(interval=1)) as handle:
        assert torch.equal(paint(pipe, steps=3), plain)
        assert handle.report().replayed == 0
    with accelerate(pipe, ControlCache(interval=1), DeepCache(interval=1), TextKVCache()):
        assert torch.equal(paint(pipe, steps=3), plain)
    assert torch.equal(paint(pipe, steps=3), plain)


CASES: list[tuple[ControlCache, Value]] = [
    (ControlCache(interval=3), held(lambda _: (0, 3))),
    (ControlCache(interval=(1, 2), split=4), held(lambda i: range(STEPS) if i < 4 else (0, 2, 4))),
    (ControlCache(interval=(2, 4)), held(lambda i: (0, 2, 4) if i < 6 else (0, 4))),
    (ControlCache(interval=1, keep=5), held(lambda _: range(STEPS), 5)),
    (ControlCache(interval=2, keep=1), held(lambda _: (0, 2, 4), 1)),
]


@cache
def plain_in(dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
    """A pipeline, and what it paints."""
    pipe = build().to(dtype)
    return pipe, paint(pipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "value", "dtype"),
    cells(
        [(*case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in CASES],
        lambda cell: cell[2] is torch.float32 and cell[0] in (CASES[1][0], CASES[4][0]),
        lambda cell: f"{cell[0].to_text()}-{cell[2]}",
    ),
)
def test_equals_the_reference(method: ControlCache, value: Value, dtype: torch.dtype) -> None:
    pipe, plain = plain_in(dtype)
    with overridden(pipe.controlnet, value):
        expected = paint(pipe)
    with accelerate(pipe, method):
        first, again = paint(pipe), paint(pipe)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert not torch.equal(expected, plain)


@pytest.mark.slow
def test_forecasts_as_taylor_does(pipe: Any) -> None:
    computed = (0, 2, 4)

    def value(number: int, call: int, known: dict[int, torch.Tensor]) -> torch.Tensor:
        last, *before = [c for c in reversed(computed) if c <= call]
        if not before:
            return known[last]
        return known[last] + (call - last) * (known[last] - known[before[0]]) / (last - before[0])

    with overridden(pipe.controlnet, value):
        expected = paint(pipe)
    with accelerate(pipe, ControlCache(interval=2, forecast=Taylor(1))):
        torch.testing.assert_close(paint(pipe), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("branch", cells([0, 3, 11], lambda branch: branch == 3))
def test_waits_for_the_denoiser_to_read(pipe: Any, branch: int) -> None:
    """With DeepCache(3), residuals below the branch are read at calls 0, 3 and 6 alone, and compute there at most."""
    steps, interval = 8, 2
    reads = [tuple(range(steps)) if i <= branch or branch == 11 else (0, 3, 6) for i in range(13)]

    history: dict[int, list[int]] = {i: [] for i in range(13)}

    def is_due(i: int, call: int) -> bool:
        return not history[i] or call - history[i][-1] >= interval

    # every residual computes where it is due and read, or where a deeper one is that is made from it
    for call in range(steps):
        due = [i for i in range(13) if call in reads[i] and is_due(i, call)]
        for i in range(max(due, default=-1) + 1):
            history[i].append(call)
    with overridden(pipe.controlnet, held(lambda i: history[i])), accelerate(pipe.unet, DeepCache(3, branch)):
        expected = paint(pipe, steps=steps)
    with accelerate(pipe, DeepCache(3, branch), ControlCache(interval)):
        assert torch.equal(paint(pipe, steps=steps), expected)
    with accelerate(pipe, ControlCache(interval), DeepCache(3, branch), TGate(6)):
        paint(pipe, steps=steps)


def test_a_new_control_image_computes(pipe: Any) -> None:
    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"image": 1 - tensors["image"]} if step == 1 else tensors

    options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["image"]}
    with overridden(pipe.controlnet, held(lambda _: (0, 2, 5))):
        expected = paint(pipe, **options)
    with accelerate(pipe, ControlCache(interval=3)):
        assert torch.equal(paint(pipe, **options), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "guess", cells([{}, {"guess_mode": True}, {"guidance_scale": 1.0}], lambda guess: "guess_mode" in guess)
)
def test_scales_act_on_what_is_stored(pipe: Any, guess: dict[str, Any]) -> None:
    options = {"control_guidance_start": 0.2, "control_guidance_end": 0.7, "controlnet_conditioning_scale": 0.6}
    with overridden(pipe.controlnet, held(lambda _: (0, 4))):
        expected = paint(pipe, **options, **guess)
    with accelerate(pipe, ControlCache(interval=4)):
        assert torch.equal(paint(pipe, **options, **guess), expected)
    with accelerate(pipe, ControlCache(interval=1, keep=2)):
        kept = paint(pipe, **options, **guess)
    with overridden(pipe.controlnet, held(lambda _: range(STEPS), 2)):
        assert torch.equal(kept, paint(pipe, **options, **guess))


@pytest.mark.slow
def test_several_controlnets_one_by_one(two: Any) -> None:
    first, second = two.controlnet.nets
    with overridden(second, held(lambda _: (0, 3))):
        expected = paint(two)
    with accelerate(two, ControlCache(interval=3, net=1)):
        assert torch.equal(paint(two), expected)
    with overridden(first, held(lambda _: range(STEPS), 4)), overridden(second, held(lambda _: (0, 3))):
        expected = paint(two)
    with accelerate(two, ControlCache(interval=1, keep=4, net=0), ControlCache(interval=3, net=1)):
        assert torch.equal(paint(two), expected)
    with pytest.raises(ValueError, match="ControlCache and ControlCache cannot work together"):
        accelerate(two, ControlCache(interval=3, net=1), ControlCache(interval=2))


@pytest.mark.slow
@pytest.mark.parametrize("methods", [(ControlCache(interval=3),), (ControlCache(interval=2), DeepCache(3))])
def test_one_controlnet_for_several_images_is_as_several(methods: Any, two: Any) -> None:
    before, net = two.controlnet, two.controlnet.nets[0]
    found = []
    for second in (copy.deepcopy(net), net):
        two.controlnet = MultiControlNetModel([net, second])
        with accelerate(two, *methods):
            found.append(paint(two, steps=4))
    two.controlnet = before
    assert torch.equal(*found)


@pytest.mark.slow
def test_saves_what_is_predicted(pipe: Any) -> None:
    """Of the layers' own cost, counted by torch: every third call in all, or the last residuals' layers throughout."""
    flash = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: sdpa_flop_count(*args[:3])}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=flash) as counter:
        paint(pipe, steps=1)
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    own = lambda *names: sum(counts[f"ControlNetModel.{name}"] for name in names) / 2  # noqa: E731
    branches = layout_of(pipe.controlnet).residuals
    projections = own(*(name for branch in branches for name in branch.replayed))
    layers = own("conv_in", *(f"down_blocks.{i}" for i in range(4)), "mid_block")
    embedded = own("controlnet_cond_embedding") * (STEPS - 1)  # once a run
    deep = own("down_blocks.2", "down_blocks.3", "mid_block", *(n for b in branches[8:] for n in b.replayed))
    for method, saved in (
        (ControlCache(interval=3), (layers + projections) * (STEPS - 2)),
        (ControlCache(interval=1, keep=7), (deep + own(*branches[7].replayed)) * STEPS),
    ):
        with accelerate(pipe, method) as handle:
            paint(pipe)
            report = handle.report()
        assert report.macs_plain - report.macs == pytest.approx(saved + embedded, rel=0.02)


@pytest.mark.slow
def test_relevance_says_how_deep(pipe: Any, tmp_path: Path) -> None:
    layout = layout_of(pipe.controlnet)
    each = tuple(Loss(branch.replayed[0], 30.0, 0.9, 0.5) for branch in layout.residuals)
    cuts = tuple(
        Loss(branch.replayed[0], 30.0, 0.9, 0.8 if i >= 4 else 0.5) for i, branch in enumerate(layout.residuals[1:])
    )
    found = Relevance(layout.model, layout.fingerprint, 0.81, 0.2, each, cuts)
    path = tmp_path / "relevance.json"
    found.save(path)
    assert Relevance.load(path) == found
    assert found.worth() == 5
    with accelerate(pipe, ControlCache(interval=1, keep=5)):
        expected = paint(pipe, steps=2)
    for relevance in (path, found, str(path)):
        with accelerate(pipe, ControlCache(interval=1, relevance=relevance)):
            assert torch.equal(paint(pipe, steps=2), expected)
    other = build(xl=True)
    with pytest.raises(ValueError, match=r"measured on another network.*with 13 residuals.*with 10"):
        accelerate(other, ControlCache(relevance=found))
    with pytest.raises(FileNotFoundError):
        accelerate(pipe, ControlCache(relevance=str(tmp_path / "none.json")))


def test_what_is_refused(pipe: Any) -> None:
    for options, message in (
        ({"interval": 0}, "interval must be"),
        ({"interval": (2, 3)}, "multiple of the first.*got \\(2, 3\\)"),
        ({"interval": (1, 2, 4)}, "one number, or two"),
        ({"keep": 0}, "keep must be"),
        ({"split": 3}, "split needs two intervals"),
        ({"relevance": ""}, "relevance must be the path"),
        ({"forecast": 3}, "forecast must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ControlCache(**options)
    with pytest.raises(ValueError, match="keep of ControlNetModel, which has 13 residuals"):
        accelerate(pipe, ControlCache(keep=14))
    with pytest.raises(ValueError, match=r"net of a pipeline with 1 different ControlNets must be .* in 0\.\.0; got 1"):
        accelerate(pipe, ControlCache(net=1))
    with pytest.raises(ValueError, match="split with keep=3"):
        accelerate(pipe, ControlCache(interval=(1, 2), keep=3, split=3))
    with pytest.raises(ValueError, match="EncoderPropagation and ControlCache cannot work together"):
        accelerate(pipe, EncoderPropagation(), ControlCache())
    with pytest.raises(UnsupportedModelError, match="StableDiffusionPipeline has none"):
        accelerate(pipeline(pipe.unet), ControlCache())
    with pytest.raises(UnsupportedModelError, match="a bare network has none"):
        accelerate(pipe.unet, ControlCache())


@pytest.mark.slow
def test_detaching_leaves_nothing(pipe: Any) -> None:
    before = [list(module.__dict__) for module in pipe.controlnet.modules()]
    plain = paint(pipe)
    with accelerate(pipe, ControlCache(interval=2, keep=3), DeepCache()) as handle:
        paint(pipe)
        assert handle.report().cache_bytes == 0
        assert handle.report().controlnet == (0, 6)
    assert [list(module.__dict__) for module in pipe.controlnet.modules()] == before
    assert torch.equal(paint(pipe), plain)


def test_is_spelled_as_text() -> None:
    method = ControlCache(interval=(2, 4), keep=9, forecast=Taylor(1))
    assert ControlCache.parse("controlcache:interval=[2,4],keep=9,forecast=taylor(1)") == method
    assert ControlCache.from_dict(method.to_dict()) == method

"""Two networks in one run: each is itself where the other takes nothing, and the run is that of a router's."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    PixArtTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.hooks import ModelHook
from method_cases import CASES, Case, named, stored_outputs
from peft import LoraConfig
from tiny_networks import generate, network_inputs, picture_unet, pipeline, sd_unet, sdxl_unet

from diffaccel import (
    CalibratedCache,
    Calibration,
    DeepCache,
    EasyCache,
    IntervalCache,
    MagCache,
    MagCurve,
    NetworkSwitch,
    ResidualGuidance,
    SpeCa,
    StreamEngine,
    Taylor,
    TeaCache,
    TextKVCache,
    TGate,
    Uniform,
    UnsupportedModelError,
    accelerate,
    models,
)
from diffaccel._diffusers import hooks_of, registry_of
from diffaccel.control import RelaCtrlAdapter, attach
from diffaccel.methods import KindSteps, parse
from diffaccel.models.counterpart import counterpart
from diffaccel.networks import layout_of
from diffaccel.networks.inputs import Inputs, Signature
from diffaccel.reuse.ends import Ends
from diffaccel.runtime.substitute import Turns, translated

STEPS = 6


def shaken(model: Any) -> Any:
    """A network with weights of its own."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.02)
    return model


def small_unet(**changes: Any) -> Any:
    blocks = {
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return shaken(sd_unet(**{**blocks, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), **changes}))


def sd() -> tuple[Any, Any]:
    return pipeline(picture_unet(), multistep()), pipeline(small_unet(), multistep())


def sdxl() -> tuple[Any, Any]:
    """As SSD-1B beside SDXL: the same widths, fewer layers and transformer blocks."""
    small = shaken(sdxl_unet(layers_per_block=1, transformer_layers_per_block=(1, 1, 1)))
    return pipeline(sdxl_unet(), multistep()), pipeline(small, multistep())


def pixart() -> tuple[Any, Any]:
    large, small = stream_pipelines.pixart(), stream_pipelines.pixart()
    small.transformer = shaken(PixArtTransformer2DModel.from_config(large.transformer.config, num_layers=1)).eval()
    for pipe in (large, small):
        pipe.scheduler = multistep()
        pipe.set_progress_bar_config(disable=True)
    return large, small


def multistep(**changes: Any) -> Any:
    return DPMSolverMultistepScheduler(steps_offset=1, **changes)


BUILDERS = {"sd": sd, "sdxl": sdxl, "pixart": pixart}


@cache
def pipelines(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A large and a small pipeline; tests leave them as they are."""
    large, small = (pipe.to(dtype) for pipe in BUILDERS[name]())
    return large, small


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def latents(pipe: Any, steps: int = STEPS) -> torch.Tensor:
    if hasattr(pipe, "unet"):
        dtype = pipe.unet.dtype
        embeds = {
            "prompt_embeds": torch.linspace(-1, 1, 7 * 16),
            "negative_prompt_embeds": torch.linspace(1, 0, 7 * 16),
        }
        pooled = {f"{kind}pooled_prompt_embeds": torch.ones(1, 16, dtype=dtype) for kind in ("", "negative_")}
        given = {name: value.reshape(1, 7, 16).to(dtype) for name, value in embeds.items()}
        return generate(pipe, steps, **given, **(pooled if "XL" in type(pipe).__name__ else {}))
    quiet = {"use_resolution_binning": False, "clean_caption": False, "output_type": "latent"}
    rng = torch.Generator().manual_seed(0)
    return pipe(
        "a cat", height=32, width=32, num_inference_steps=steps, guidance_scale=2.0, generator=rng, **quiet
    ).images


def run(pipe: Any, *methods: Any, steps: int = STEPS) -> torch.Tensor:
    if not methods:
        return latents(pipe, steps)
    with accelerate(pipe, *methods):
        return latents(pipe, steps)


@contextlib.contextmanager
def routed(large: Any, small: Any, calls: tuple[int, ...], before: Any = lambda index: None) -> Iterator[None]:
    """The reference: the large network's forward counts its calls and hands some of them to the small one."""
    original, seen = large.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(seen))
        before(seen[-1])
        return small(*args, **kwargs) if seen[-1] in calls else original(*args, **kwargs)

    large.forward = forward
    try:
        yield
    finally:
        del large.forward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    cells(
        [*((name, torch.float32) for name in BUILDERS), ("sd", torch.bfloat16), ("pixart", torch.bfloat16)],
        lambda cell: cell in (("sd", torch.float32), ("pixart", torch.bfloat16)),
        "{0[0]}-{0[1]}".format,
    ),
)
def test_it_is_each_network_alone_and_a_router_between(name: str, dtype: torch.dtype) -> None:
    large, small = pipelines(name, dtype)
    plain, other = latents(large), latents(small)
    assert not torch.equal(plain, other)
    assert torch.equal(run(large, NetworkSwitch(small, until=0)), plain)
    assert torch.equal(run(large, NetworkSwitch(denoiser(small), until=1.0)), other)
    ours = run(large, NetworkSwitch(small, until=0.4))
    with routed(denoiser(large), denoiser(small), (0, 1)):
        assert torch.equal(ours, latents(large))
    assert torch.equal(latents(large), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_caches_are_at_work_on_both_networks(name: str) -> None:
    large, small = pipelines(name)
    method = IntervalCache(schedule=Uniform(3)) if name == "pixart" else DeepCache(3)
    assert torch.equal(run(large, method, NetworkSwitch(small, until=0)), run(large, method))
    assert torch.equal(run(large, NetworkSwitch(small, until=1), method), run(small, method))


UNITS = named(r"transformer_blocks\.\d+\.(attn1|attn2|ff)")
DEEP = next(case for case in CASES if case.name == "DeepCache")


def last_layer(model: Any) -> list[str]:
    """What enters it from below is what DeepCache stores at branch 0."""
    return [f"up_blocks.{len(model.up_blocks) - 1}.resnets.{len(model.up_blocks[-1].resnets) - 1}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "small_computes", "large_computes"),
    [((0, 1, 2, 3), {0, 3}, {4}), ((0, 1, 4, 5), {0, 4}, {2, 3}), ((3,), {3}, {0, 4})],
)
@pytest.mark.parametrize("name", cells(BUILDERS, lambda name: name != "sdxl"))
def test_reuse_begins_anew_where_the_network_changes(
    name: str, calls: tuple[int, ...], small_computes: set[int], large_computes: set[int]
) -> None:
    """With Taylor(1), too: nothing is ever carried from one stretch of a network's calls into the next."""
    large, small = pipelines(name)
    schedule, forecast = Uniform(3), Taylor(1) if calls == (0, 1, 4, 5) else None
    method: Any = IntervalCache(schedule=schedule, forecast=forecast)
    if name != "pixart":
        method = DeepCache(schedule=schedule, forecast=forecast)
    ours = run(large, NetworkSwitch(small, calls=calls), method)
    case: Case = replace(DEEP, replaced=UNITS, inputs=False) if name == "pixart" else replace(DEEP, replaced=last_layer)
    networks = denoiser(large), denoiser(small)
    cases = [replace(case, computed=tuple(computes)) for computes in (large_computes, small_computes)]
    with stored_outputs(networks[0], cases[0]) as first, stored_outputs(networks[1], cases[1]) as second:

        def tell(index: int) -> None:
            first(index), second(index)

        with routed(*networks, calls, tell):
            torch.testing.assert_close(ours, latents(large), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [MagCache, TeaCache, SpeCa])
def test_evidence_is_gathered_anew_where_the_network_changes(method: Any) -> None:
    large, _ = pipelines("pixart")
    networks = denoiser(large), shaken(PixArtTransformer2DModel.from_config(denoiser(large).config)).eval()
    layout = layout_of(networks[0])
    curve = MagCurve(layout.model, layout.fingerprint, "this test", (1.0,) * STEPS)
    cache = MagCache(curve, 9.0, STEPS, retention=0.0) if method is MagCache else method(threshold=1e9)
    ran: list[int] = []
    hooks = [
        network.transformer_blocks[0].ff.register_forward_hook(lambda *_, which=which: ran.append(which))
        for which, network in enumerate(networks)
    ]
    try:
        run(large, NetworkSwitch(networks[1], calls=(1, 2)), cache)
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [0, 1, 0]  # a network's first call of a stretch computes, the others add what it stored


def test_two_prompts_at_each_step_do_not_leak() -> None:
    """Guidance in two calls: both calls of a step change the network together."""
    large, small = picture_unet(), small_unet()
    prompts = [network_inputs(large, seed=seed) for seed in (0, 1)]
    methods = NetworkSwitch(small, calls=(0, 1, 2)), DeepCache(2)

    def outputs(chosen: list[Any]) -> list[torch.Tensor]:
        with torch.no_grad(), accelerate(large, *methods):
            return [large(timestep=t, **inputs).sample for t in torch.linspace(900, 100, 6) for inputs in chosen]

    both = outputs(prompts)
    assert all(torch.equal(a, b) for a, b in zip(both[::2], outputs(prompts[:1]), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(both[1::2], outputs(prompts[1:]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    cells(
        [TextKVCache(), EasyCache(0.3), ResidualGuidance(), TGate(gate=5, self_interval=1)],
        lambda method: isinstance(method, TextKVCache | TGate),
    ),
)
def test_other_methods_stand_on_both(method: Any) -> None:
    large, small = pipelines("sd")
    assert torch.equal(run(large, method, NetworkSwitch(small, until=0)), run(large, method))
    assert torch.equal(run(large, NetworkSwitch(small, until=1), method), run(small, method))
    mixed = run(large, NetworkSwitch(small, until=0.5), method)
    assert torch.equal(mixed, run(large, NetworkSwitch(small, calls=(0, 1, 2)), method))
    exact = torch.equal(mixed, run(large, NetworkSwitch(small, until=0.5)))
    assert exact == isinstance(method, TextKVCache)


@pytest.mark.slow
def test_the_report_counts_calls_and_cost_of_both() -> None:
    large, small = pipelines("sd")
    with accelerate(large, NetworkSwitch(small, until=0.5), DeepCache(2)) as handle:
        latents(large, 4)
        report = handle.report()
    assert (report.computed, report.replayed, report.switched) == (1, 1, 2)
    assert report.methods == {"DeepCache": (2, 2)}
    assert "1 replayed, 2 on the small network" in str(report)
    alone = []
    for pipe in (large, small):
        with accelerate(pipe, DeepCache(2)) as handle:
            latents(pipe, 4)
            alone.append(handle.report())
    assert report.macs == (alone[0].macs + alone[1].macs) // 2
    assert report.macs_plain == alone[0].macs_plain
    assert [row.network for row in report.calls] == ["unet"] * 2 + ["small UNet2DConditionModel"] * 2
    assert sum(row.macs for row in report.calls) == report.macs
    assert {row.macs_plain for row in report.calls} == {report.macs_plain // 4}
    assert report.calls[2].share < 1


def test_the_small_networks_own_calls_stay_plain_and_detaching_leaves_nothing() -> None:
    large, small = pipelines("sd")
    before = [list(module.__dict__) for module in large.unet.modules()]
    plain, seen = latents(small, 2), []

    def between(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append(latents(small, 2))
        return kwargs

    with accelerate(large, NetworkSwitch(small, until=0.5), DeepCache(2)) as handle:
        ours = latents(large)
        assert torch.equal(generate(large, 2, callback_on_step_end=between), generate(large, 2))
        with handle.suspended():
            pass
        assert torch.equal(latents(large), ours)
    assert all(torch.equal(one, plain) for one in seen)
    assert [list(module.__dict__) for module in large.unet.modules()] == before
    assert not any(hooks_of(module) for module in small.unet.modules())


def test_a_named_model_is_loaded_once_and_written_as_text(tiny_sd: Path, tiny_pipe: Any) -> None:
    method = NetworkSwitch(tiny_sd, until=1)
    settings = {"num_inference_steps": 2, "output_type": "latent"}

    def draw() -> torch.Tensor:
        return tiny_pipe("a", generator=torch.Generator().manual_seed(0), **settings).images

    plain = draw()
    for _ in range(2):
        with accelerate(tiny_pipe, method) as handle:
            assert torch.equal(draw(), plain)
            networks = [seat.model for seat in handle._seats]
    with accelerate(tiny_pipe, parse(method.to_text())) as handle:
        assert [seat.model for seat in handle._seats] == networks
    assert networks[0] is not networks[1]
    assert parse(f"networkswitch:small='{tiny_sd}',calls=[0,1]") == NetworkSwitch(str(tiny_sd), calls=(0, 1))
    assert NetworkSwitch.from_dict(method.to_dict()) == method
    with pytest.raises(ValueError, match="name its model or folder"):
        NetworkSwitch(tiny_pipe).to_text()


@pytest.mark.slow
def test_a_network_of_another_family_gets_its_inputs_by_their_meaning() -> None:
    """emoji-sd takes calls of emoji-dit, whose latents, prompts and kind of prediction are the same."""
    pipe, other = models.load("emoji-dit"), models.load("emoji-sd").unet
    pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 3, "use_resolution_binning": False, "clean_caption": False, "output_type": "latent"}

    def draw() -> torch.Tensor:
        return pipe("dog", generator=torch.Generator().manual_seed(0), **given).images

    with accelerate(pipe, NetworkSwitch("emoji-sd", until=0.4)):
        ours = draw()

    def unet(
        hidden_states: Any, encoder_hidden_states: Any, timestep: Any, encoder_attention_mask: Any, **_: Any
    ) -> Any:
        return other(
            hidden_states,
            timestep,
            encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            return_dict=False,
        )

    with routed(pipe.transformer, unet, (0,)):
        assert torch.equal(ours, draw())


class TestRefusals:
    @pytest.mark.parametrize(
        ("small", "match"),
        [
            (lambda: small_unet(cross_attention_dim=8), "prompt width 8 instead of 16"),
            (lambda: small_unet(in_channels=9), "latent channels 9 instead of 4"),
            (lambda: small_unet(out_channels=8), "predicted channels 8 instead of 4"),
            (lambda: small_unet(time_cond_proj_dim=8), "time_cond_proj_dim 8 instead of None"),
            (lambda: sdxl_unet(), "addition_embed_type 'text_time' instead of None"),
            (
                lambda: pipeline(small_unet(), multistep(prediction_type="v_prediction")),
                "prediction 'v",
            ),
            (
                lambda: pipeline(small_unet(), multistep(beta_end=0.03)),
                "beta_end 0.03 instead of 0.02",
            ),
            (lambda: small_unet().bfloat16(), "bfloat16 on cpu, and the large one torch.float32"),
            (lambda: "no-such-model", "unknown model"),
        ],
    )
    def test_a_network_that_does_not_fit(self, small: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            accelerate(pipeline(picture_unet(), multistep()), NetworkSwitch(small()))

    def test_the_same_network_and_two_of_them(self) -> None:
        pipe = pipeline(picture_unet())
        with pytest.raises(ValueError, match="is the pipeline's own"):
            accelerate(pipe, NetworkSwitch(pipe))
        with pytest.raises(ValueError, match="only one network can take calls"):
            accelerate(pipe, NetworkSwitch(small_unet()), NetworkSwitch(small_unet()))

    def test_methods_that_fit_one_of_them(self) -> None:
        large, small = pipelines("pixart")
        layout = layout_of(large.transformer)
        calibration = Calibration(layout.model, layout.fingerprint, STEPS, 0.1, (KindSteps("feed_forward", (0, 2)),))
        with pytest.raises(ValueError, match="puts other methods on both networks, and not all fit"):
            accelerate(large, NetworkSwitch(small), CalibratedCache(calibration))
        with pytest.raises(UnsupportedModelError, match="is not a supported denoiser"):
            accelerate(pipelines("sd")[0], NetworkSwitch(ControlNetModel.from_unet(picture_unet())))

    def test_a_controlnet(self) -> None:
        pipe = pipelines("sd")[0]
        net = ControlNetModel.from_unet(pipe.unet)
        controlled = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net, requires_safety_checker=False)
        with pytest.raises(ValueError, match="cannot work with a ControlNet"):
            accelerate(controlled, NetworkSwitch(small_unet()))
        residuals = {"mid_block_additional_residual": torch.zeros(2, 16, 4, 4)}
        with (
            accelerate(pipe.unet, NetworkSwitch(small_unet(), calls=(0,))),
            pytest.raises(ValueError, match="residual"),
        ):
            pipe.unet(**network_inputs(pipe.unet), timestep=900, **residuals)

    def test_adapters_on_the_large_network_alone(self) -> None:
        large, small = sd()
        with accelerate(large, NetworkSwitch(small)):
            large.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), "style")
            with pytest.raises(ValueError, match=r"adapters that the small one lacks \(style\)"):
                latents(large)

    def test_what_is_meant_for_layers_of_the_large_network(self) -> None:
        large, small = sd()
        perturbed = StableDiffusionPAGPipeline(
            **large.components, requires_safety_checker=False, pag_applied_layers=["mid"]
        )
        perturbed.set_progress_bar_config(disable=True)
        with (
            accelerate(perturbed, NetworkSwitch(small)),
            pytest.raises(ValueError, match=r"works through PAG\w+ on layers of the large network"),
        ):
            latents(perturbed)
        large, small = sd()
        large.guider = object()
        registry_of(large.unet.mid_block).register_hook(ModelHook(), "SkipLayerGuidance_0")
        with (
            accelerate(large, NetworkSwitch(small)),
            pytest.raises(ValueError, match=r"guider changes blocks of the large network \(SkipLayerGuidance_0\)"),
        ):
            latents(large)

    def test_control_blocks_on_the_large_network_alone(self) -> None:
        large, small = pixart()
        handle = attach(large.transformer, RelaCtrlAdapter.from_transformer(large.transformer, blocks=1))
        with accelerate(large, NetworkSwitch(small)):
            latents(large)
            handle.set_control(torch.ones(1, 4, 8, 8))
            with pytest.raises(ValueError, match="control blocks are on the large network"):
                latents(large)

    def test_an_image_prompt_for_the_large_network_alone(self) -> None:
        large, small = sd()
        with accelerate(large, NetworkSwitch(small)):
            large.unet.config.encoder_hid_dim_type = "ip_image_proj"  # as load_ip_adapter does
            with pytest.raises(ValueError, match="encoder_hid_dim_type None instead of 'ip_image_proj'"):
                latents(large)

    def test_another_kind_of_prediction_in_a_later_run(self) -> None:
        large, small = pipelines("sd")
        with accelerate(large, NetworkSwitch(small)):
            other = copy.copy(large)
            other.scheduler = multistep(prediction_type="v_prediction")
            with pytest.raises(ValueError, match="prediction 'epsilon' instead of 'v_prediction'"):
                latents(other)

    def test_a_pipeline_that_moved_away_from_it(self) -> None:
        large, small = sd()
        with accelerate(large, NetworkSwitch(small)):
            large.unet.to(torch.bfloat16)
            with pytest.raises(
                ValueError, match=r"torch\.bfloat16 on cpu by now, and the small one .* torch\.float32 on"
            ):
                latents(large)

    def test_turns_that_do_not_fit_the_run(self) -> None:
        large, small = pipelines("sd")
        with (
            accelerate(large, NetworkSwitch(small, calls=(9,))),
            pytest.raises(ValueError, match="lists call 9, but the"),
        ):
            latents(large)
        with accelerate(large, NetworkSwitch(small), TGate(gate=2)), pytest.raises(ValueError, match="begin at call 3"):
            latents(large)
        fresh = {"timestep": torch.tensor([900.0, 900.0]), **network_inputs(large.unet)}
        with accelerate(large.unet, NetworkSwitch(small)), pytest.raises(ValueError, match="length is not known"):
            large.unet(**fresh)

    @pytest.mark.parametrize(
        ("given", "match"),
        [
            ({"small": ""}, "small must be"),
            ({"small": 3}, "small must be"),
            ({"small": "a", "until": 1.5}, "until must be a number"),
            ({"small": "a", "calls": ()}, "ascending order"),
            ({"small": "a", "calls": (2, 1)}, "ascending order"),
            ({"small": "a", "calls": (-1,)}, "calls must be an integer"),
        ],
    )
    def test_values_out_of_range(self, given: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            NetworkSwitch(**given)

    def test_streams(self) -> None:
        pipe = stream_pipelines.sd()
        with pytest.raises(ValueError, match="NetworkSwitch gives whole calls to another network"):
            StreamEngine(
                pipe, prompt="a cat", num_steps=2, strength=1, height=32, width=32, cache=NetworkSwitch("emoji-sd")
            )


@pytest.mark.parametrize(
    ("turns", "total", "taken", "changes"),
    [
        (Turns(0.3), 10, [0, 1, 2], [3]),
        (Turns(0.35), 10, [0, 1, 2, 3], [4]),
        (Turns(0), 4, [], []),
        (Turns(1), 3, [0, 1, 2], []),
        (Turns(1), None, list(range(6)), []),
        (Turns(0.3, (1, 2, 5)), 6, [1, 2, 5], [1, 3, 5]),
        (Turns(0.5, None, Ends(1, 1)), 4, [1], [1, 2]),
        (Turns(1, None, Ends(2)), None, [2, 3, 4, 5], [2]),
        (Turns(0.3, (0, 2)), None, [0, 2], [1, 2, 3]),
    ],
)
def test_turns(turns: Turns, total: int | None, taken: list[int], changes: list[int]) -> None:
    turns.validate(total)
    assert [call for call in range(total or 6) if turns.takes(call, total)] == taken
    assert turns.changes(total) == changes


def test_inputs_are_translated_by_their_meaning_or_refused() -> None:
    dit, unet = (Signature(cls) for cls in (PixArtTransformer2DModel.__new__(PixArtTransformer2DModel), picture_unet()))
    given = dit.bind((), {"hidden_states": 1, "timestep": 2, "encoder_hidden_states": 3, "attention_mask": None})
    found = translated(given, unet, "UNet")
    assert found == Inputs({"sample": 1, "timestep": 2, "encoder_hidden_states": 3, "attention_mask": None}, unet.names)
    with pytest.raises(ValueError, match="UNet cannot take the input 'img_ids'"):
        translated(given.replace(img_ids=0), unet, "UNet")
    assert translated(given.replace(img_ids=None), unet, "UNet") == found


@pytest.mark.parametrize("name", ["skip_layers", "block_controlnet_hidden_states", "controlnet_block_samples"])
def test_inputs_for_single_blocks_stay_with_their_network(name: str) -> None:
    names = Signature(PixArtTransformer2DModel.__new__(PixArtTransformer2DModel))
    names.parameters = (*names.parameters, name)
    given = names.bind((), {"hidden_states": 1, name: None})
    assert translated(given, names, "Net") == given
    with pytest.raises(ValueError, match=f"Net cannot take the input '{name}'"):
        translated(given.replace(**{name: [1]}), names, "Net")


@pytest.mark.parametrize(
    ("theirs", "own", "match"),
    [
        ({}, {"vae": {"scaling_factor": 1.0, "shift_factor": 0.1}}, "shift_factor 0.1 instead of None"),
        ({}, {"vae": {"scaling_factor": 1.0, "latents_mean": [0.5]}}, r"latents_mean \[0.5\] instead of None"),
        ({}, {"model": {"use_rotary_positional_embeddings": False}}, "embeddings None instead of True"),
        ({}, {"model": {"use_rotary_positional_embeddings": True, "timestep_scale": 1000.0}}, "scale 1000.0 instead"),
        ({"scheduler": EDMEulerScheduler()}, {}, '"EDM\'s epsilon"'),
    ],
)
def test_facts_that_must_be_the_same(theirs: dict[str, Any], own: dict[str, Any], match: str) -> None:
    def part(config: Any) -> Any:
        return SimpleNamespace(config=config) if isinstance(config, dict) else config

    plain = {
        "model": {"use_rotary_positional_embeddings": True},
        "vae": {"scaling_factor": 1.0, "shift_factor": None},
        "scheduler": multistep(),
    }
    large, small = ({name: part(value) for name, value in (plain | given).items()} for given in (theirs, own))
    found = counterpart(SimpleNamespace(components={}, transformer=small["model"], **small))
    with pytest.raises(ValueError, match=match):
        found.require_fit(large["model"], SimpleNamespace(**large))
    same = counterpart(SimpleNamespace(components={}, transformer=large["model"], **large))
    same.require_fit(large["model"], SimpleNamespace(**large))


def test_lists_of_a_file_are_tuples_of_a_class() -> None:
    read, made = (SimpleNamespace(config={"caption_channels": width}) for width in ([4096, 2048], (4096, 2048)))
    counterpart(read).require_fit(made)

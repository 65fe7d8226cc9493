"""Learned routers: against the plain network, against a reference without hooks, and where they are refused."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from test_transformers import CALLS, build, close, equal, outputs, outputs_of, run_inputs
from tiny_networks import sd_unet
from transformer_reference import ReferenceUnits

from diffaccel import LearnedCache, Routers, RouterTraining, Taylor, UnsupportedModelError, accelerate
from diffaccel.batch.settings import parse_cache, write_cache
from diffaccel.methods import load_methods
from diffaccel.methods.profile import sampler_of
from diffaccel.networks import layout_of
from diffaccel.reuse.forecast import Forecast

pytestmark = [  # what the networks themselves say
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*CPU autocast:UserWarning"),
]
NAMES = (
    "DiTTransformer2DModel",
    "FluxTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "WanTransformer3DModel",
)
THRESHOLD = 0.4
SCALE = ("guidance_scale", 2.0)


def routers(model: Any, total: int = CALLS, open: bool = False, forecast: Forecast | None = None) -> Routers:
    """Routers of random weights, or of weights above the threshold."""
    layout = layout_of(model)
    units = tuple(unit.branch.replayed[0] for unit in layout.units) or ("none",)
    weights = torch.rand(total, len(units), generator=torch.Generator().manual_seed(5)).double()
    rows = (weights * 0.5 + 0.45 if open else weights).tolist()
    return Routers(
        layout.model, layout.fingerprint, *sampler_of(DDIMScheduler()), (SCALE,), units,
        tuple(map(tuple, rows)), THRESHOLD, forecast,
    )  # fmt: skip


class ReferenceRouters(ReferenceUnits):
    """Decides by the name of a unit instead of its kind."""

    def unit(self, name: str, kind: str, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return super().unit(name, name, module, args, kwargs)


def reference(model: Any, made: Routers, order: int = 0) -> ReferenceRouters:
    """Modules that were swapped for ones that ask the table of weights."""
    places = {name: index for index, name in enumerate(made.units)}

    def computes(step: int, name: str) -> bool:
        return step == 0 or made.weights[step][places[name]] > THRESHOLD

    return ReferenceRouters(model, list(layout_of(model).blocks), computes, order)


@pytest.mark.parametrize(
    ("name", "order", "dtype"),
    cells(
        [
            *((name, 0, torch.float32) for name in NAMES),
            ("PixArtTransformer2DModel", 1, torch.float32),
            ("SD3Transformer2DModel", 0, torch.bfloat16),
        ],
        lambda cell: cell[0] == "FluxTransformer2DModel" or cell[1] == 1 or cell[2] is torch.bfloat16,
        lambda cell: "-".join(map(str, cell)),
    ),
)
def test_routers_equal_the_plain_network_where_open_and_else_the_reference(
    name: str, order: int, dtype: torch.dtype
) -> None:
    model = copy.deepcopy(build(name)).to(dtype)
    calls = [{key: _cast(value, dtype) for key, value in call.items()} for call in run_inputs(name)]
    plain = outputs(model, calls)
    with accelerate(model, LearnedCache(routers(model, open=True))) as handle:
        assert equal(outputs(model, calls), plain)
        assert handle.report().replayed == 0
    made = routers(model, forecast=Taylor(order) if order else None)
    expected = outputs_of(reference(model, made, order), calls)
    with accelerate(model, LearnedCache(made)) as handle:
        ours = outputs(model, calls)
        handle.reset()
        assert equal(outputs(model, calls), ours)
    close(ours, expected)
    assert not equal(ours, plain)
    assert equal(outputs(model, calls), plain)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def pipeline(scheduler: Any = None) -> Any:
    pipe = stream_pipelines.pixart()
    pipe.scheduler = scheduler or DDIMScheduler()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, steps: int = 4, **settings: Any) -> torch.Tensor:
    settings = {"guidance_scale": 2.0, "height": 32, "width": 32, "clean_caption": False} | settings
    return pipe(
        "a cat", num_inference_steps=steps, output_type="latent", use_resolution_binning=False,
        generator=torch.Generator().manual_seed(0), **settings,
    ).images  # fmt: skip


def test_another_network_sampler_length_or_guidance_is_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    made = routers(pipe.transformer, 4)
    plain = latents(pipe)
    with accelerate(pipe, LearnedCache(made)):
        assert not torch.equal(latents(pipe), plain)
        with pytest.raises(ValueError, match="trained for 4 network calls, and this run has 5: train routers"):
            latents(pipe, 5)
        with pytest.raises(ValueError, match=r"trained with guidance_scale=2, and this run has guidance_scale=3"):
            latents(pipe, guidance_scale=3.0)
    with (
        accelerate(euler := pipeline(EulerDiscreteScheduler()), LearnedCache(made)),
        pytest.raises(ValueError, match=r"trained with DDIMScheduler .* EulerDiscreteScheduler .* train-cache"),
    ):
        latents(euler)
    with pytest.raises(ValueError, match=r"trained on PixArtTransformer2DModel .* is SD3Transformer2DModel"):
        accelerate(build("SD3Transformer2DModel"), LearnedCache(made))
    with pytest.raises(ValueError, match="name the unit 'attn9'"):
        accelerate(pipe, LearnedCache(replace(made, units=("attn9", *made.units[1:]))))
    with pytest.raises(UnsupportedModelError, match="LearnedCache needs transformer blocks"):
        accelerate(unet := sd_unet(), LearnedCache(routers(unet)))
    (tmp_path / "bad.json").write_text('{"type": "deepcache"}')
    with pytest.raises(ValueError, match=r"bad\.json is not a file of routers"):
        accelerate(pipe, LearnedCache(tmp_path / "bad.json"))


def test_a_file_of_routers_is_a_method(tmp_path: Path) -> None:
    made = replace(routers(build("PixArtTransformer2DModel")), training=RouterTraining(), curve=((1.0, 0.5, 0.25),))
    made.save(tmp_path / "r.json")
    assert Routers.load(tmp_path / "r.json") == made
    assert load_methods(tmp_path / "r.json") == (LearnedCache(made),)
    plain = LearnedCache(replace(made, training=None, curve=()))
    assert parse_cache(write_cache((LearnedCache(tmp_path / "r.json"),))) == (plain,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": ()}, "at least one call"),
        ({"weights": ((1.0,), (0.5, 0.5))}, "call 1 has 2 weights for 1 units"),
        ({"weights": ((1.5,),)}, r"weights of call 0 must be a number in \[0.0, 1.0\]; got 1.5"),
        ({"weights": ((float("nan"),),)}, "weights of call 0"),
        ({"units": ("a", "a")}, "units must be different"),
        ({"threshold": -0.1}, "threshold must be a number"),
        ({"forecast": "taylor"}, "forecast must be"),
    ],
)
def test_bad_routers_are_refused(change: dict[str, Any], message: str) -> None:
    values = {"guidance": (), "units": ("a",), "weights": ((1.0,),)} | change
    with pytest.raises(ValueError, match=message):
        Routers("M", "0", "S", "0", **values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "l1"}, "objective must be one of harmonica, l2c"),
        ({"beta": -1.0}, "beta must be a number"),
        ({"threshold": 1.0}, "threshold must be below 1"),
        ({"runs": 0}, "runs must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer >= 0"),
    ],
)
def test_bad_trainings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RouterTraining(**change)
    with pytest.raises(ValueError, match="routers must be the path"):
        LearnedCache("")

"""Relevance leaves out one thing at a time, measures what is lost, ranks it as RelaCtrl does, and leaves no trace."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import diffusers
import numpy as np
import pytest
import stream_pipelines
import torch
from click.testing import CliRunner
from diffusers import PixArtTransformer2DModel, StableDiffusionControlNetPipeline
from PIL import Image
from stock_cases import of, sd
from walk_parts import seeded
from walk_pictures import sd3

from diffaccel import Relevance, UnsupportedModelError, relevance
from diffaccel.cli import main
from diffaccel.cli.relevance import _lines
from diffaccel.control import RelaCtrlAdapter, attach
from diffaccel.measure import edge_agreement
from diffaccel.measure.relevance_chart import chart
from diffaccel.methods import Loss
from diffaccel.pipelines import FastControlPipeline
from diffaccel.stream.control import edges

pytestmark = pytest.mark.filterwarnings("ignore")  # what stock pipelines say of tiny parts
LINES = torch.zeros(3, 32, 32)
LINES[:, 10:22, 5:8] = 1
PROMPTS = ["a cat", "a dog"]
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 32}


def painted(pipe: Any, scale: float = 1.0) -> torch.Tensor:
    """What the runs paint, made by hand."""
    found = []
    for i, prompt in enumerate(PROMPTS):
        noise = torch.Generator().manual_seed(5 + i)
        image = pipe(
            prompt, image=LINES[None], controlnet_conditioning_scale=scale, generator=noise, **SETTINGS
        ).images[0]
        found.append(
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 32, 3).movedim(-1, 0) / 255
        )
    return torch.stack(found)


def followed(pictures: torch.Tensor) -> float:
    return float(edge_agreement(torch.stack([edges(p) for p in pictures]), LINES.expand(2, -1, -1, -1)).mean())


@pytest.mark.slow
def test_each_is_left_out_alone_and_with_all_behind_it(tmp_path: Path) -> None:
    pipe = of(StableDiffusionControlNetPipeline, sd, True)()
    pipe.set_progress_bar_config(disable=True)
    before = [dict(module._forward_hooks) for module in pipe.controlnet.modules()]
    told: list[str] = []
    path = tmp_path / "relevance.json"
    found = relevance(pipe, [LINES] * 2, PROMPTS, path, seed=5, progress=told.append, **SETTINGS)
    full, outputs = painted(pipe), [*pipe.controlnet.controlnet_down_blocks, pipe.controlnet.controlnet_mid_block]
    assert [dict(module._forward_hooks) for module in pipe.controlnet.modules()] == before
    assert Relevance.load(path) == found
    assert found.agreement == pytest.approx(followed(full))
    assert found.without == pytest.approx(followed(painted(pipe, 0.0)))
    assert (len(found.each), len(found.cuts), found.blocks) == (len(outputs), len(outputs) - 1, ())
    assert told[:2] == ["with all control", "without controlnet_down_blocks.0"]
    for loss, modules in ((found.each[1], outputs[1:2]), (found.cuts[1], outputs[2:])):
        hooks = [module.register_forward_hook(lambda m, a, output: output * 0) for module in modules]
        pictures = painted(pipe)
        for hook in hooks:
            hook.remove()
        error = (pictures - full).double().square().flatten(1).mean(1)
        assert loss.psnr == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-3)
        assert loss.agreement == pytest.approx(followed(pictures))


def test_scores_are_means_of_ranks() -> None:
    each = (Loss("a", 30.0, 0.9, 0.5), Loss("b", 20.0, 0.8, 0.7), Loss("c", 25.0, 0.8, 0.7), Loss("d", 40.0, 1.0, 0.8))
    found = Relevance("Net", "0", 0.8, 0.2, each)
    # lost most of the picture: b, c, a, d; of the control: a, then b and c alike, then d
    assert found.scores == pytest.approx(((1 / 3 + 1) / 2, (1 + 0.5) / 2, (2 / 3 + 0.5) / 2, 0.0))
    assert found.worth() == 4
    drawn = chart(found)
    assert drawn.count('class="bar"') == 4
    assert "without any 0.200" in drawn


def test_blocks_of_transformers_are_left_out_too() -> None:
    base = sd3("StableDiffusion3Pipeline").transformer
    net = seeded(
        lambda: diffusers.SD3ControlNetModel.from_transformer(base, num_layers=3, num_extra_conditioning_channels=0)
    )
    text = {"encoder_hidden_states": torch.ones(1, 6, 16), "pooled_projections": torch.ones(1, 8)}

    class Pipe:
        controlnet = net

        @torch.no_grad()
        def __call__(self, prompt: str, control_image: Any, generator: Any, **_: Any) -> Any:
            x = torch.randn(1, 4, 8, 8, generator=generator)
            lines = control_image[:, :1, :8, :8].expand(-1, 4, -1, -1)
            (found,) = net(x, lines, timestep=torch.ones(1), **text, return_dict=False)
            return SimpleNamespace(images=torch.sigmoid(sum(found)).view(1, 1, 16, 16).expand(-1, 3, -1, -1))

    found = relevance(Pipe(), [LINES[:, :16, :16]], ["a cat"])
    assert [loss.name for loss in found.blocks] == [f"transformer_blocks.{i}" for i in range(3)]
    assert found.blocks[0] != found.each[0]  # what hangs on it goes, too
    assert found.blocks[2].psnr == pytest.approx(found.each[2].psnr)  # nothing hangs on the last one


def test_blocks_of_an_adapter_are_left_out() -> None:
    torch.manual_seed(0)
    net = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, num_layers=4, in_channels=4, out_channels=4, sample_size=8,
        cross_attention_dim=32, caption_channels=12, use_additional_conditions=False,
    ).eval()  # fmt: skip
    blocks = RelaCtrlAdapter.from_transformer(net, blocks=2).eval()
    for block in blocks.blocks:
        torch.nn.init.normal_(block.before.weight, std=0.2)
        torch.nn.init.normal_(block.after.weight, std=0.2)

    class Pipe:
        adapter, control = blocks, attach(net, blocks)

        @torch.no_grad()
        def __call__(self, prompt: str, control_image: Any, generator: Any, **_: Any) -> Any:
            self.control.set_control(control_image[:, :1, 8:16, 4:12].expand(-1, 4, -1, -1))
            given = {"encoder_hidden_states": torch.ones(1, 5, 12), "timestep": torch.ones(1), "return_dict": False}
            found = net(torch.randn(1, 4, 8, 8, generator=generator), **given)[0]
            return SimpleNamespace(images=torch.sigmoid(found).view(1, 1, 16, 16).expand(-1, 3, -1, -1))

    found = relevance(Pipe(), [LINES[:, :16, :16]], ["a cat"])
    assert found.model == "RelaCtrlAdapter"
    assert [loss.name for loss in found.each] == ["blocks.0", "blocks.1"]
    assert all(loss.psnr < 90 for loss in found.each)
    assert Pipe.control.left_out == frozenset()


@pytest.mark.slow
def test_a_custom_pipeline_with_an_adapter_is_measured() -> None:
    pipe = FastControlPipeline.from_pipe(stream_pipelines.pixart())
    pipe.set_progress_bar_config(disable=True)
    blocks = RelaCtrlAdapter.from_transformer(pipe.transformer, blocks=1).eval()
    torch.nn.init.normal_(blocks.blocks[0].before.weight, std=0.5)
    torch.nn.init.normal_(blocks.blocks[0].after.weight, std=0.5)
    pipe.load_control(blocks)
    found = relevance(pipe, [LINES], ["a cat"], **SETTINGS, use_resolution_binning=False, clean_caption=False)
    assert found.each[0].psnr < 90
    pipe.vae.decode = lambda latents, **_: (torch.full((1, 3, 32, 32), torch.nan),)
    with pytest.raises(ValueError, match="picture of 'a cat' holds numbers that are not finite"):
        relevance(pipe, [LINES], ["a cat"], **SETTINGS, use_resolution_binning=False, clean_caption=False)


def test_what_is_refused() -> None:
    pipe = SimpleNamespace()
    for arguments, message in (
        (([], []), "at least one prompt"),
        (([LINES], PROMPTS), "2 prompts need as many control images, not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            relevance(pipe, *arguments)
    with pytest.raises(ValueError, match="scale must be"):
        relevance(pipe, [LINES], ["a cat"], scale=0.0)
    with pytest.raises(UnsupportedModelError, match="no ControlNet of a known kind and no adapter"):
        relevance(pipe, [LINES], ["a cat"])


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    lines = tmp_path / "lines.png"
    lines.write_bytes(b"no picture")
    one = ["--control-image", str(lines)]
    prompts = ["relevance", "--prompts", "a cat", "--prompts", "a dog", "--prompts", "a fox"]
    for arguments, words in (
        ([*prompts, *one, *one], "3 prompts: give one --control-image for all, or as many; got 2"),
        ([*prompts, *one], "--control-image: cannot read"),
        ([*prompts, *one, "-o", str(tmp_path)], "is a folder; name a file in it"),
        ([*prompts, *one, "--control-scale", "nan"], "--control-scale must be a number in [1e-06, 10.0]; got nan"),
    ):
        shown = CliRunner().invoke(main, arguments)
        assert shown.exit_code == 2
        assert words in shown.stderr


def test_control_images_are_as_viewers_show_them(tmp_path: Path) -> None:
    upright = Image.new("RGB", (8, 16))
    upright.paste("white", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    clear = Image.new("RGBA", (8, 16), (255, 255, 255, 0))
    clear.paste("white", (0, 0, 8, 4))
    clear.save(tmp_path / "clear.png")
    files = tmp_path / "turned.png", tmp_path / "clear.png"
    assert [image.tobytes() for image in _lines(files, 2, {})] == [upright.tobytes()] * 2
    (square,) = _lines(files[:1], 1, {"width": 8, "height": 8})
    assert square.size == (8, 8)  # its middle: a circle stays one
    assert not np.asarray(square).any()
    upright.crop((0, 0, 8, 8)).save(tmp_path / "smaller.png")
    with pytest.raises(click.UsageError, match="differ in size: give --size"):
        _lines((files[0], tmp_path / "smaller.png"), 2, {})

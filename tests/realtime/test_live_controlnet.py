"""ControlNets on the command line and on the page: loaded with care, and controls only where there is one."""

import json
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stream_pipelines
import torch
import videos
from click.testing import CliRunner, Result
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from live_client import Client

from diffaccel import models
from diffaccel.cli import main
from diffaccel.models import ModelError
from diffaccel.realtime import protocol
from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.opening import open_hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import ControlNetControls, Controls, LiveSettings, load_pipeline

QUIET = {"similarity": False, "cache": 1}


def build(unet: UNet2DConditionModel, folder: Path, **config: Any) -> Path:
    """Save a ControlNet of the UNet's shape that matters."""
    torch.manual_seed(3)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(zero.weight, std=0.5)
    net.save_pretrained(folder)
    if config:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.fixture(scope="module")
def unet(tiny_sd: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_sd / "unet")


@pytest.fixture(scope="module")
def controlnet(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(unet, tmp_path_factory.mktemp("controlnet"))


@pytest.fixture(scope="module")
def settings(tiny_sd: Path, controlnet: Path) -> LiveSettings:
    return LiveSettings(model=str(tiny_sd), controlnet=(str(controlnet),), device="cpu", width=32, height=32)


@pytest.fixture(scope="module")
def controlled(settings: LiveSettings) -> Any:
    return load_pipeline(settings)


def painted(pipe: Any, settings: LiveSettings, *changes: dict[str, Any]) -> np.ndarray:
    """The picture of one frame, after changes of the controls."""
    stream = EngineStream(pipe, replace(settings, controls=ControlNetControls(**QUIET)))
    for change in changes:
        stream.configure(ControlNetControls(**QUIET, **change))
    outputs = stream.push(videos.picture(0, 32, 32), frame_id=0) + stream.flush()
    stream.close()
    return np.asarray(outputs[-1].image).astype(int)


@pytest.mark.slow
def test_a_controlnet_is_put_before_the_unet(controlled: Any, settings: LiveSettings, tiny_sd: Path) -> None:
    assert type(controlled) is StableDiffusionControlNetPipeline
    plain = load_pipeline(replace(settings, controlnet=()))
    without = EngineStream(plain, replace(settings, controls=Controls(**QUIET)))
    outputs = without.push(videos.picture(0, 32, 32), frame_id=0) + without.flush()
    without.close()
    np.testing.assert_array_equal(
        np.asarray(outputs[-1].image), painted(controlled, settings, {"controlnet_scale": 0.0})
    )
    assert np.abs(painted(controlled, settings) - painted(controlled, settings, {"controlnet_scale": 0.0})).max() > 2
    two = load_pipeline(replace(settings, controlnet=settings.controlnet * 2))
    assert len(two.controlnet.nets) == 2
    assert np.abs(painted(two, settings) - painted(controlled, settings)).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"controlnet_scale": 0.5}, {"control": "identity"}, {"control": "canny"}])
def test_its_controls_act_live(controlled: Any, settings: LiveSettings, change: dict[str, Any]) -> None:
    changed = painted(controlled, settings, change)
    start = EngineStream(controlled, replace(settings, controls=ControlNetControls(**QUIET, **change)))
    outputs = start.push(videos.picture(0, 32, 32), frame_id=0) + start.flush()
    start.close()
    np.testing.assert_array_equal(changed, np.asarray(outputs[-1].image))
    assert np.abs(changed - painted(controlled, settings)).max() > 0


@pytest.mark.slow
def test_a_model_that_was_saved_with_one_has_its_controls(
    controlled: Any, settings: LiveSettings, tmp_path: Path
) -> None:
    controlled.save_pretrained(tmp_path)
    saved = replace(settings, model=str(tmp_path), controlnet=())
    np.testing.assert_array_equal(painted(load_pipeline(saved), saved), painted(controlled, settings))


def schema(server: LiveServer) -> dict[str, Any]:
    """The controls that the page draws."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/schema?token=secret", timeout=10) as answer:
        properties: dict[str, Any] = json.load(answer)["properties"]
        return properties


@pytest.mark.slow
def test_the_page_draws_its_controls_and_changes_them(settings: LiveSettings) -> None:
    with (
        open_hub(replace(settings, controls=Controls(**QUIET)), limit=1) as (hub, about),
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
        Client(server) as client,
    ):
        drawn = schema(server)
        assert set(drawn) == {*Controls.model_fields, "control", "controlnet_scale", "follow_lines"}
        for field in drawn.values():
            assert field["title"]
            assert field["description"]
            assert field["type"] in ("string", "integer", "number", "boolean")
        hello = client.wait("hello")["controls"]
        assert (hello["control"], hello["controlnet_scale"]) == ("edges", 1.0)
        for values in ({"controlnet_scale": 0.25}, {"control": "identity"}, {"follow_lines": False}):
            client.controls(**values)
            told = client.wait("controls")["values"]
            assert values.items() <= told.items()
        client.frame()
        client.frame()
        assert client.wait(protocol.PictureMessage)
        client.controls(controlnet_scale=9)
        assert "controlnet_scale" in client.wait("problem")["message"]


def test_without_one_there_are_none(settings: LiveSettings) -> None:
    with (
        open_hub(replace(settings, controlnet=()), limit=1) as (hub, about),
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
        Client(server) as client,
    ):
        assert set(schema(server)) == set(Controls.model_fields)
        client.controls(controlnet_scale=0.5)
        assert "controlnet_scale" in client.wait("problem")["message"]


@pytest.mark.slow
def test_loading_says_nothing_that_is_harmless(settings: LiveSettings) -> None:
    code = (
        "from diffaccel.realtime.settings import LiveSettings, load_pipeline\n"
        f"load_pipeline(LiveSettings(model={settings.model!r}, controlnet={settings.controlnet!r}, device='cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def video(tiny_sd: Path, *arguments: object) -> Result:
    common = ["--model", str(tiny_sd), "--prompt", "a cat", "--size", "32", "--cache", "1", "--device", "cpu"]
    return CliRunner().invoke(main, ["video", *map(str, arguments), *common])


@pytest.mark.slow
def test_the_command_paints_a_video_with_it(tmp_path: Path, tiny_sd: Path, controlnet: Path) -> None:
    source = videos.make(tmp_path / "in.mp4", times=videos.STEADY[:4], size=(32, 32), audio=None)
    with_it = ("--controlnet", controlnet)
    kinds = {"plain": (), "off": (*with_it, "--controlnet-scale", 0), "on": (*with_it, "--control", "identity")}
    found = {}
    for name, options in kinds.items():
        result = video(tiny_sd, source, tmp_path / f"{name}.mp4", *options)
        assert result.exit_code == 0, result.output
        found[name] = np.stack(videos.pictures(tmp_path / f"{name}.mp4")).astype(int)
    np.testing.assert_array_equal(found["plain"], found["off"])
    assert np.abs(found["plain"] - found["on"]).max() > 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--controlnet", "nowhere"], "no ControlNet at 'nowhere'"),
        (["--controlnet", "{unet}"], "is a UNet2DConditionModel, and streams run a ControlNetModel"),
        (["--controlnet", "{controlnet}", "--controlnet-scale", "3"], "--controlnet-scale"),
        (["--controlnet", "{controlnet}", "--control", "depth"], "'depth' is not one of"),
        (["--control", "edges"], "this model has no ControlNet: choose one with --controlnet"),
        (["--controlnet-scale", "0.5"], "this model has no ControlNet: choose one with --controlnet"),
    ],
)
@pytest.mark.parametrize("command", ["live", "video"])
def test_mistakes_are_named(
    command: str, options: list[str], words: str, tmp_path: Path, tiny_sd: Path, controlnet: Path
) -> None:
    given = [option.format(unet=tiny_sd / "unet", controlnet=controlnet) for option in options]
    if command == "video":
        result = video(tiny_sd, videos.make(tmp_path / "in.mp4"), tmp_path / "out.mp4", *given)
        assert not (tmp_path / "out.mp4").exists()
    else:
        common = ["--no-browser", "--port", "0", "--model", str(tiny_sd), "--device", "cpu"]
        result = CliRunner().invoke(main, ["live", *common, *given])
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_weights_are_checked(unet: Any, tmp_path: Path) -> None:
    folder = build(unet, tmp_path / "net")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "kept")
    with pytest.raises(ModelError, match="has no weights"):
        models.find_controlnet(str(folder))
    (folder / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="holds pickled weights only"):
        models.find_controlnet(str(folder))
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="is damaged"):
        models.find_controlnet(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="not the configuration of a ControlNetModel"):
        models.find_controlnet(str(folder))
    with pytest.raises(ModelError, match="cannot reach the Hub for 'nobody/nothing'"):
        models.find_controlnet("nobody/nothing")


def test_one_for_another_model_is_named(unet: Any, settings: LiveSettings, tiny_sd: Path, tmp_path: Path) -> None:
    other = UNet2DConditionModel.from_config({**unet.config, "cross_attention_dim": 24})
    result = video(
        tiny_sd, videos.make(tmp_path / "in.mp4"), tmp_path / "out.mp4", "--controlnet", build(other, tmp_path)
    )
    assert result.exit_code == 2
    assert "made for another kind of network: its cross_attention_dim is 24, the UNet's 16" in result.stderr


def test_a_transformer_takes_none() -> None:
    with pytest.raises(ModelError, match="a ControlNet needs a UNet"):
        models.with_controlnets(SimpleNamespace(components={"transformer": None}), [None])


def test_of_a_hub_repository_only_its_safetensors_are_fetched(
    controlnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetched(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(controlnet)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    net = models.load_controlnet("someone/canny", dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(net, ControlNetModel)
    ((name, patterns),) = asked
    assert name == "someone/canny"
    assert {Path(pattern).suffix for pattern in patterns} == {".json", ".safetensors"}


def test_an_sdxl_unet_makes_an_sdxl_pipeline() -> None:
    base = stream_pipelines.sdxl()
    base.register_to_config(force_zeros_for_empty_prompt=False)
    net = ControlNetModel.from_unet(base.unet)
    pipe = models.with_controlnets(base, [net])
    assert type(pipe) is StableDiffusionXLControlNetPipeline
    assert (pipe.unet, pipe.vae, pipe.controlnet) == (base.unet, base.vae, net)
    assert not pipe.config["force_zeros_for_empty_prompt"]

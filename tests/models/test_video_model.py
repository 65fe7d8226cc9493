"""A bundled motion adapter is loaded with its text encoder onto the picture model that it moves."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNetMotionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

from diffaccel import models
from diffaccel.models import loader

CHANGED = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    still = models.load("emoji-sd")
    torch.manual_seed(0)
    adapter = MotionAdapter(
        block_out_channels=tuple(still.unet.config.block_out_channels), motion_norm_num_groups=16,
        motion_layers_per_block=still.unet.config.layers_per_block, motion_num_attention_heads=2,
    )  # fmt: skip
    adapter.half().save_pretrained(tmp_path)
    unet = UNetMotionModel.from_unet2d(still.unet, adapter)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=[CHANGED]))
    weights = get_peft_model_state_dict(unet)
    AnimateDiffPipeline.save_lora_weights(tmp_path, weights, weight_name="pytorch_lora_weights.safetensors")
    torch.nn.init.ones_(list(still.text_encoder.parameters())[-1])
    still.text_encoder.half().save_pretrained(tmp_path / "text_encoder")
    monkeypatch.setattr(loader, "names", lambda kind=None: ("emoji-video",) if kind == "video" else models.names(kind))
    monkeypatch.setattr(loader, "BUNDLED", {"emoji-video": SimpleNamespace(folder=tmp_path)})
    return tmp_path


@pytest.mark.slow
def test_a_video_model_is_an_animatediff_pipeline(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = models.load("emoji-video")
    assert isinstance(pipe, AnimateDiffPipeline)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    assert float(list(pipe.text_encoder.parameters())[-1].detach().mean()) == 1
    adapter = MotionAdapter.from_pretrained(folder)
    name = "down_blocks.0.motion_modules.0.proj_in.weight"
    assert torch.equal(dict(pipe.unet.named_parameters())[name], dict(adapter.named_parameters())[name].float())
    lora = load_file(folder / "pytorch_lora_weights.safetensors")
    change = lora[f"unet.{CHANGED}.lora_B.weight"] @ lora[f"unet.{CHANGED}.lora_A.weight"]
    before = models.load("emoji-sd").unet.get_submodule(CHANGED).weight
    torch.testing.assert_close(pipe.unet.get_submodule(CHANGED).weight, before + change)
    assert pipe.unet.config.joint_self_attention
    assert not models.load("emoji-video", motion_adapter=adapter).unet.config.get("joint_self_attention")
    assert not caplog.records
    assert models.load("emoji-video", dtype="bfloat16").unet.dtype == torch.bfloat16


@pytest.mark.slow
def test_the_bundled_adapter_fits_emoji_sd_and_its_positions_come_round() -> None:
    pipe = models.load("emoji-video")
    tables = [module.pe[0] for name, module in pipe.unet.named_modules() if name.endswith("pos_embed")]
    assert len(tables) == 16
    for table in tables:  # only distances matter, across the end of the table, too
        products = table @ table.T
        across = [products[i, (i + 3) % 16] for i in range(16)]
        torch.testing.assert_close(torch.stack(across), across[0].expand(16), rtol=1e-2, atol=1e-2)


def test_what_is_bundled_says_what_it_is_for() -> None:
    row = models.BUNDLED["emoji-video"]
    assert row.kind == "video"
    assert "emoji-video" not in models.names("pipeline")

"""The options that say which model runs: the same in every command that loads one, with the same effect."""

from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from diffaccel import models
from diffaccel.cli import main
from diffaccel.cli.model_options import MODEL_NAMES, READING_NAMES, ModelChoice

LOADING = ("bench", "generate", "live", "relevance", "train-cache", "tune", "video")
NOTHING = ModelChoice(None, None, None, None, False, None, None, "cpu")


@pytest.mark.parametrize("command", LOADING)
def test_every_command_that_loads_a_model_has_them(command: str) -> None:
    options = [param for param in main.commands[command].params if isinstance(param, click.Option)]
    named = {max(option.opts, key=len): option for option in options}
    assert named.keys() >= set(MODEL_NAMES)
    shared = {name: named[name].help for name in (*MODEL_NAMES, *READING_NAMES) if name != "--model"}
    assert shared == {name: option.help for name, option in _of("generate").items() if name in shared}


def _of(command: str) -> dict[str, click.Option]:
    return {max(p.opts, key=len): p for p in main.commands[command].params if isinstance(p, click.Option)}


NEEDED = {"tune": ("--max-macs", "0.5"), "video": ("in.mp4", "out.mp4", "--prompt", "a cat"), "live": ("--no-browser",)}


@pytest.mark.parametrize("command", LOADING)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lora", "a=nan"), "the weight of a must be a finite number"),
        (("--embedding", "=b"), "write FILE=TOKEN"),
        (("--embedding", "a=x", "--embedding", "b=x"), "have the same token x"),
    ],
)
def test_what_cannot_be_read_is_told_while_parsing(command: str, options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(main, [command, *NEEDED.get(command, ()), *options])
    assert (result.exit_code, words in " ".join(result.output.split())) == (2, True), result.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": "nowhere"}, "no LoRA at 'nowhere'"),
        ({"vae": "nowhere"}, "no autoencoder at 'nowhere'"),
        ({"embeddings": "nowhere=x"}, "no embedding at 'nowhere'"),
        ({"config": "sd-2.1"}, "--config is for models in a single file"),
        ({"model": "emoji-video"}, "emoji-video is a model of videos, for diffaccel video, not a pipeline"),
    ],
)
def test_what_is_missing_is_found_out_before_anything_is_loaded(
    changes: dict[str, str], words: str, tiny_sd: Path
) -> None:
    with pytest.raises(models.ModelError, match=words):
        replace(NOTHING, **{"model": str(tiny_sd), **changes}).find()


@pytest.mark.slow
def test_all_of_it_is_in_the_pipeline(tiny_sd: Path, tiny_lora: Path, tmp_path: Path) -> None:
    plain = models.load(tiny_sd, device="cpu")
    width = plain.text_encoder.config.hidden_size
    save_file({"emb_params": torch.ones(1, width)}, tmp_path / "glow.safetensors")
    choice = replace(
        NOTHING, model=str(tiny_sd), lora=f"{tiny_lora}=0.5", embeddings=f"{tmp_path / 'glow.safetensors'}=<glow>",
        vae="none",
    )  # fmt: skip
    made = choice.open(choice.find())
    assert "<glow>" in made.tokenizer.get_added_vocab()
    assert not made.get_active_adapters()
    before, after = plain.unet.state_dict(), made.unet.state_dict()
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    models.load_lora(plain, f"{tiny_lora}=0.5")
    plain.fuse_lora()
    plain.unload_lora_weights()
    assert changed
    assert all(torch.equal(plain.unet.state_dict()[name], after[name]) for name in changed)


def test_bundled_videos_take_them_too() -> None:
    if "emoji-video" not in models.names("video"):
        pytest.skip("not bundled")
    source = replace(NOTHING, model="emoji-video").find(video=True)
    assert (source.name, source.index["_class_name"]) == ("emoji-video", "AnimateDiffPipeline")
    assert (source.folder / "vae" / "config.json").is_file()

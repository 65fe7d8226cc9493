"""Rows that touch no other, checkpoints in one file, LoRAs, learned words, samplers, and pictures of other tools."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import original_checkpoints
import stream_pipelines
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from reliability.batch import ENVIRONMENT
from safetensors.torch import save_file
from tiny_pipeline import build_lora

from diffaccel.models.quiet import quiet_loading

Options = argparse.Namespace
NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def generate(model: object, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    words = [sys.executable, "-m", "diffaccel", "generate", "--model", model, "--output", out, "--steps", 2, *more]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, env=ENVIRONMENT)


def done(model: object, out: Path, *more: object) -> dict[str, np.ndarray]:
    """The pictures of a run that must succeed, by their names."""
    result = generate(model, out, *more)
    assert result.returncode == 0, result.stderr[-1000:]
    return {path.stem: np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("*.png"))}


def rows(path: Path, *values: dict[str, object]) -> Path:
    """A file of rows."""
    path.write_text("".join(json.dumps({"prompt": "a cat", "seed": 1, **value}) + "\n" for value in values))
    return path


def saved(build: Callable[[], Any], folder: Path) -> Path:
    """A tiny pipeline on disk, written once."""
    if not folder.exists():
        with quiet_loading():
            build().save_pretrained(folder)
    return folder


def single() -> Any:
    """A tiny Stable Diffusion with the kind of autoencoder that checkpoints in one file have."""
    parts = {**stream_pipelines.sd().components, "vae": stream_pipelines._kl(4)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def own_row(_model: str, place: Path, _options: Options) -> str:
    """SDXL: a row without a negative prompt, alone and beside one that has one; starts of two sizes."""
    sdxl = saved(stream_pipelines.sdxl, place / "sdxl")
    alone = done(sdxl, place / "alone", rows(place / "one.jsonl", {"custom_id": "a"}), "--size", 32)
    two = rows(place / "two.jsonl", {"custom_id": "a"}, {"custom_id": "b", "negative_prompt": "blurry"})
    worst = int(np.abs(alone["a"] - done(sdxl, place / "both", two, "--size", 32)["a"]).max())
    assert worst == 0, f"{worst}/255 off"
    for name, size in (("s.png", (32, 32)), ("w.png", (48, 16))):
        Image.new("RGB", size, "navy").save(place / name)
    starts = rows(place / "start.jsonl", *({"custom_id": n[0], "init_image": n} for n in ("s.png", "w.png")))
    sizes = [picture.shape[1::-1] for picture in done(sdxl, place / "starts", starts, "--strength", 0.6).values()]
    assert sizes == [(32, 32), (48, 16)], sizes
    return f"0/255 off, sizes {sizes}"


def whole_run(model: str, place: Path, _options: Options) -> str:
    """`--limit 5` over three shards, with bad rows."""
    path = place / "limit.jsonl"
    path.write_text("".join(f'{{"prompt": "p{row}"}}\n{{"prompt": 1}}\n' for row in range(9)))
    counts = []
    for index in (1, 2, 3):
        options = ("--shard", f"{index}/3", "--limit", 5, "--batch-size", 1, "--format", "json")
        counts.append(json.loads(generate(model, place / "shards", path, *options).stdout))
    made, failed = (sum(count[name] for count in counts) for name in ("done", "failed"))
    assert (made, failed) == (5, 4), (made, failed)
    return f"{made} pictures, {failed} bad rows"


def one_file(_model: str, place: Path, _options: Options) -> str:
    """A checkpoint, an autoencoder and a ControlNet in one file each; what must be given is said."""
    with quiet_loading():
        pipe = single()
        pipe.save_pretrained(place / "folder")
    path = original_checkpoints.write(pipe, place / "x.safetensors")
    expected = done(place / "folder", place / "as-folder", "a cat", "--seed", 1)
    found = done(path, place / "as-file", "a cat", "--seed", 1, "--config", place / "folder")
    worst = max(int(np.abs(one - other).max()) for one, other in zip(expected.values(), found.values(), strict=True))
    assert worst == 0, f"{worst}/255 off"
    save_file(original_checkpoints.vae(pipe.vae), place / "vae.safetensors")
    done(place / "folder", place / "as-vae", "a cat", "--vae", place / "vae.safetensors")
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(1)}, place / "flux.safetensors")
    result = generate(place / "flux.safetensors", place / "none", "a cat")
    assert (result.returncode, "--config" in result.stderr) == (2, True), result.stderr
    return f"0/255 off; refused: {result.stderr.strip().splitlines()[-1][-90:]}"


def variant(model: str, place: Path, _options: Options) -> str:
    """A folder of fp16 weights alone, and one without weights, in a dry run."""
    folder = saved(lambda: StableDiffusionPipeline.from_pretrained(model), place / "fp16")
    for file in folder.glob("*/*.safetensors"):
        if ".fp16." not in file.name:
            file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    done(folder, place / "as-fp16", "a cat")
    next((folder / "unet").glob("*.safetensors")).unlink()
    result = generate(folder, place / "none", "a cat", "--dry-run")
    assert (result.returncode, "no weights for its unet" in result.stderr) == (2, True), result.stderr
    return "loaded; missing weights told in the dry run"


def loras(model: str, place: Path, _options: Options) -> str:
    """Several with weights, none for one row, and one for another network."""
    (place / "lora").mkdir()
    build_lora(Path(model), place / "lora")
    path = rows(place / "lora.jsonl", {"custom_id": "two"}, {"custom_id": "none", "lora": "none"})
    both = ("--lora", f"{place / 'lora'}=0.25", "--lora", f"{place / 'lora'}=0.5")
    found = done(model, place / "adapted", path, *both)
    plain = done(model, place / "plain", rows(place / "plain.jsonl", {"custom_id": "none"}))
    assert np.array_equal(found["none"], plain["none"])
    assert not np.array_equal(found["two"], plain["none"])
    wide = {f"{NAME}.lora_down.weight": torch.ones(4, 320), f"{NAME}.lora_up.weight": torch.ones(320, 4)}
    save_file(wide, place / "wide.safetensors")
    result = generate(model, place / "no", "a", "b", "--lora", place / "wide.safetensors")
    said = result.stderr.strip().splitlines()[-1]
    assert (result.returncode, said.count("network of width 320, this has")) == (2, 1), result.stderr
    return f"as asked; refused once: {said[-100:]}"


def learned_word(model: str, place: Path, _options: Options) -> str:
    """An embedding changes the picture whose prompt has its word, and one for another encoder is refused."""
    width = json.loads((Path(model) / "text_encoder" / "config.json").read_text())["hidden_size"]
    save_file({"emb_params": torch.ones(2, width)}, place / "glow.safetensors")
    save_file({"emb_params": torch.ones(2, 768 if width != 768 else 32)}, place / "other.safetensors")
    taught = done(model, place / "taught", rows(place / "w.jsonl", {"prompt": "glow", "custom_id": "a"}), "--embedding",
                  place / "glow.safetensors")  # fmt: skip
    plain = done(model, place / "untaught", place / "w.jsonl")
    assert not np.array_equal(taught["a"], plain["a"])
    result = generate(model, place / "no", "a", "--embedding", place / "other.safetensors")
    assert (result.returncode, "for an encoder of width" in result.stderr) == (2, True), result.stderr
    return "learned, and refused by its width"


def samplers(model: str, place: Path, _options: Options) -> str:
    """Names of other tools; on a model of flow matching, what is not for it."""
    names = ("DPM++ 2M Karras", "dpmpp_2m_sde", "DPM++ SDE", "Euler a", "euler sgm_uniform", "DPM2 a Karras", "uni_pc")
    values = [{"custom_id": str(number), "scheduler": name} for number, name in enumerate(names)]
    assert len(done(model, place / "samplers", rows(place / "samplers.jsonl", *values))) == len(names)
    sd3 = saved(stream_pipelines.sd3, place / "sd3")
    result = generate(sd3, place / "no", "a", "--scheduler", "ddim")
    assert (result.returncode, "trained with flow matching" in result.stderr) == (2, True), result.stderr
    assert len(done(sd3, place / "flow", "a", "--scheduler", "dpm++ 2m", "--size", 32)) == 1
    return f"{len(names)} names; ddim on SD3 refused before loading"


def foreign(model: str, place: Path, _options: Options) -> str:
    """A picture of AUTOMATIC1111 is rendered from its settings, and told what has no equivalent."""
    info = PngInfo()
    info.add_text("parameters", "a cat\nNegative prompt: dog\nSteps: 2, Sampler: Euler a, Seed: 5, Clip skip: 2")
    Image.new("RGB", (8, 8)).save(place / "a1111.png", pnginfo=info)
    result = generate(model, place / "foreign", "--from", place / "a1111.png")
    assert (result.returncode, "not carried over: Clip skip: 2" in result.stderr) == (0, True), result.stderr
    return "rendered; Clip skip named"


PART = {
    "a row and its neighbours": own_row,
    "limit and shards": whole_run,
    "one file": one_file,
    "variants and missing weights": variant,
    "LoRAs": loras,
    "embeddings": learned_word,
    "samplers": samplers,
    "pictures of other tools": foreign,
}

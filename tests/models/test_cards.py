"""What the cards and the README say of the shipped weights is what their files hold: sizes, shapes and figures."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open
from video_data import DRAWINGS

from diffaccel import models

ROOT = Path(models.__file__).parents[2]
README = (ROOT / "README.md").read_text()
FIGURES = re.compile(r"<!-- figures -->\n(.*)<!-- end of figures -->", re.DOTALL)
WORDS = {2: "two", 3: "three", 5: "five", 6: "six", 7: "seven", 9: "nine"}


def card(name: str) -> str:
    """A model's card without its measured figures, its lines joined."""
    return " ".join(FIGURES.sub("", (models.path(name) / "README.md").read_text()).split())


def shapes(name: str, part: str = "") -> dict[str, list[int]]:
    """The shapes of the tensors of a file, or of that in a folder, by name; of a network before a LoRA beside it."""
    place = models.path(name) / part
    file = place if place.is_file() else min(place.glob("*.safetensors"), key=lambda found: "lora" in found.name)
    with safe_open(file, "pt") as tensors:
        return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 not a dict


def millions(name: str, part: str = "", within: tuple[str, ...] = ("",), digits: int = 2) -> str:
    """Parameters of a file, as a card tells them; tables of sinusoids are none."""
    tensors = shapes(name, part).items()
    count = sum(math.prod(shape) for key, shape in tensors if key.startswith(within) and not key.endswith(".pe"))
    return f"{count / 1e6:.{digits}f} M"


def config(name: str, part: str = "") -> dict[str, Any]:
    return json.loads((models.path(name) / part / "config.json").read_text())


def unet(name: str) -> str:
    c = config(name, "unet")
    crossed = WORDS[sum("CrossAttn" in block for block in c["down_block_types"])]
    channels = ", ".join(map(str, c["block_out_channels"]))
    return (
        f"| {len(c['block_out_channels'])} levels of {channels} channels, {c['layers_per_block']} layers each, "
        f"cross-attention in {crossed} levels, predicts v | {millions(name, 'unet')} |"
    )


def statements() -> Iterator[tuple[str, str]]:
    """Each card and a sentence or a row of it, written anew from the files."""
    dit = config("emoji-dit", "transformer")
    width, patch = dit["num_attention_heads"] * dit["attention_head_dim"], dit["patch_size"]
    yield "emoji-dit", f"{dit['num_layers']} blocks of width {width}, patches of {patch} x {patch} latents"
    yield "emoji-dit", f"latents, {millions('emoji-dit', 'transformer', digits=1)} parameters, predicts v"
    yield "emoji-dit", f"a picture has {(dit['sample_size'] // patch) ** 2} tokens"

    vae, text = config("emoji-sd", "vae"), config("emoji-sd", "text_encoder")
    tokens = json.loads((models.path("emoji-sd") / "tokenizer" / "tokenizer_config.json").read_text())
    yield "emoji-sd", unet("emoji-sd")
    yield "emoji-sd", f"{vae['decoder_block_out_channels'][0]} channels | {millions('emoji-sd', 'vae')} |"
    yield "emoji-sd", f"{text['num_hidden_layers']} layers of width {text['hidden_size']}"
    yield "emoji-sd", f"{tokens['model_max_length']} tokens; the text half of emoji-clip, frozen |"
    yield "emoji-sd", f"frozen | {millions('emoji-sd', 'text_encoder')} |"
    yield "emoji-sd", f"byte-pair encoding of {text['vocab_size']:,} tokens"
    yield "emoji-sd-small", unet("emoji-sd-small")

    seen = config("emoji-clip")["vision_config"]
    yield "emoji-clip", f"{seen['num_hidden_layers']} layers of width {seen['hidden_size']} on"
    yield "emoji-clip", f"on {seen['patch_size']}-pixel patches of {seen['image_size']} x {seen['image_size']} pixels"
    (rank,) = {shape[0] for key, shape in shapes("emoji-lcm-lora").items() if ".lora_A." in key}
    yield "emoji-lcm-lora", f"adapters of rank {rank} "
    yield "emoji-vae-small", f"of {config('emoji-vae-small')['decoder_block_out_channels'][0]} channels"

    control = config("emoji-control")
    steps = ", ".join(map(str, control["conditioning_embedding_out_channels"]))
    levels = ", ".join(map(str, control["block_out_channels"]))
    assert ["Cross" in block for block in control["down_block_types"]] == [False, False, True]
    rest = ("controlnet_down", "controlnet_mid", "conv_in", "time_embedding")
    yield "emoji-control", f"| {steps} channels, from 128 x 128 to 16 x 16 | {control_part('controlnet_cond')} |"
    yield "emoji-control", f"the UNet's {levels} channels, {control['layers_per_block']} layers each; attention, also"
    yield "emoji-control", f"to the prompt, in the deepest only | {control_part('down_blocks')} |"
    yield "emoji-control", f"| one residual layer | {control_part('mid_block')} |"
    yield "emoji-control", f"| residuals, time embedding, first layer | | {control_part(*rest)} |"

    light = config("emoji-dit-control")
    groups, count = sorted(set(light["groups"])), len(light["positions"])
    assert light["positions"] == list(range(count))
    yield "emoji-dit-control", f"| {count}, after the first {WORDS[count]} of emoji-dit's {WORDS[dit['num_layers']]};"
    yield "emoji-dit-control", f"{light['dim']} channels in {groups[0]}, {groups[1]} or {groups[2]} groups"
    yield "emoji-dit-control", f"most | {millions('emoji-dit-control')} |"

    motion = config("emoji-video")
    (rows,) = {shape[1] for key, shape in shapes("emoji-video").items() if key.endswith(".pe")}
    places = {match.group() for key in shapes("emoji-video") if (match := re.match(r".*motion_modules\.\d+", key))}
    heads = motion["motion_num_attention_heads"]
    yield "emoji-video", f"{len(places)} places; {heads[0]} heads at 16 x 16, {heads[1]} below"
    yield "emoji-video", f"below | {millions('emoji-video')} |"
    yield "emoji-video", f"emoji-sd's, tuned | {millions('emoji-video', 'text_encoder')} |"
    lora = "pytorch_lora_weights.safetensors"
    ranks = {shape[0] for key, shape in shapes("emoji-video", lora).items() if ".lora_A." in key}
    yield "emoji-video", f"| rank {ranks.pop()} | {millions('emoji-video', lora)} |"
    yield "emoji-video", f"Frame i stands at row i mod {rows} of"


def control_part(*within: str) -> str:
    return millions("emoji-control", within=within)


STATEMENTS = list(statements())


@pytest.mark.parametrize(("name", "words"), STATEMENTS, ids=lambda value: value[:40])
def test_cards_tell_the_sizes_and_shapes_of_what_is_shipped(name: str, words: str) -> None:
    assert words in card(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_examples_run(name: str) -> None:
    lines = Image.new("RGB", (128, 128))
    ImageDraw.Draw(lines).ellipse((20, 20, 108, 108), outline="white", width=3)
    names: dict[str, Any] = {"lines": lines}
    text = (models.path(name) / "README.md").read_text()
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(re.sub(r"(num_inference_steps\W+)\d+", r"\g<1>2", code), names)


@pytest.mark.parametrize("name", models.names())
def test_no_size_is_told_that_nothing_holds(name: str) -> None:
    own = [words for card_name, words in STATEMENTS if card_name == name]
    for found in re.finditer(r"[\d.]+ M\b|\d+ blocks", card(name)):
        assert any(found.group() in words for words in own), f"{name}: {found.group()!r}: not among STATEMENTS"


def test_parts_that_cards_call_those_of_another_model_are_those() -> None:
    parts = [(name, part) for name in ("emoji-dit", "emoji-sd-small") for part in ("vae", "text_encoder", "tokenizer")]
    for name, part in parts:
        for file in (models.path("emoji-sd") / part).iterdir():
            if file.name != "tokenizer_config.json":  # what transformers notes of where it was loaded from
                assert (models.path(name) / part / file.name).read_bytes() == file.read_bytes(), (name, part)
    text = safe_open(models.path("emoji-sd") / "text_encoder" / "model.safetensors", "np")
    clip = safe_open(models.path("emoji-clip") / "model.safetensors", "np")
    for key in text.keys():  # noqa: SIM118 not a dict
        assert (text.get_tensor(key) == clip.get_tensor(f"text_model.{key}")).all()


@pytest.mark.parametrize("name", models.names())
def test_tables_of_figures_are_what_was_measured(name: str) -> None:
    (table,) = FIGURES.findall((models.path(name) / "README.md").read_text())
    told = dict(re.findall(r"^\| (.+?) \| ([\d.]+) \|$", table, re.MULTILINE))
    measured = {key.replace("_", " "): value for key, value in models.figures(name).items()}
    assert list(told) == list(measured)
    for key, value in measured.items():
        assert float(told[key]) == pytest.approx(value, rel=1e-3, abs=6e-5), key


def percent(name: str, key: str, digits: int = 1) -> str:
    return f"{100 * models.figures(name)[key]:.{digits}f} %"


def test_the_readme_tells_the_same() -> None:
    rows = {row.split("`")[1]: row for row in README.splitlines() if row.startswith("| `emoji-")}
    assert set(rows) == set(models.names())
    control, dit_control, vae = (models.figures(f"emoji-{n}") for n in ("control", "dit-control", "vae-small"))
    assert f"{millions('emoji-sd', 'unet', digits=0)} parameters" in rows["emoji-sd"]
    assert f"{percent('emoji-sd', 'top1')} prompt accuracy at 20 steps, {percent('emoji-sd', 'top5')} among" in README
    assert f"{percent('emoji-sd-small', 'switch_macs', 0)} of the multiply-accumulates" in rows["emoji-sd-small"]
    assert f"{percent('emoji-lcm-lora', 'top1')} at 4 steps" in rows["emoji-lcm-lora"]
    assert f"{millions('emoji-dit', 'transformer', digits=0)} parameters" in rows["emoji-dit"]
    assert f"{percent('emoji-dit', 'top1')} at 20 steps" in rows["emoji-dit"]
    assert f"{percent('emoji-video', 'text_top1_frames_5_24', 0)} of frames" in rows["emoji-video"]
    assert f"{percent('emoji-video', 'given_motion_right', 0)} of clips move as told" in rows["emoji-video"]
    agreement, without = control["edge_agreement"], control["edge_agreement_without"]
    assert f"F1 {agreement:.2f} at 20 steps ({without:.2f} without)" in rows["emoji-control"]
    assert f"{control['edge_agreement_lcm']:.2f} at 4 steps" in rows["emoji-control"]
    assert f"{100 * control['parameters_of_unet']:.0f} % of its size" in rows["emoji-control"]
    agreement, without = dit_control["edge_agreement"], dit_control["edge_agreement_without"]
    assert f"F1 {agreement:.2f} ({without:.2f} without)" in rows["emoji-dit-control"]
    assert f"{vae['psnr']:.1f} dB on held-out drawings" in rows["emoji-vae-small"]
    assert f"own {vae['psnr_of_the_large_one']:.1f} dB" in rows["emoji-vae-small"]
    assert f"{percent('emoji-clip', 'top1')} on held-out drawings" in rows["emoji-clip"]
    captions = (ROOT / "diffaccel" / "measure" / "captions.txt").read_text().split("\n")
    assert f"the nearest of {len(captions) - 1}?" in rows["emoji-clip"]


def test_the_drawings_that_emoji_video_moves_are_told() -> None:
    told = card("emoji-video").partition("It knows these drawings: ")[2].partition(".")[0]
    assert tuple(told.split(", ")) == DRAWINGS


def test_cards_repeat_their_own_figures_in_prose() -> None:
    dit, sd = card("emoji-dit"), card("emoji-sd")
    for name in ("emoji-dit", "emoji-sd"):
        assert f"{name if name == 'emoji-sd' else 'it'} draws {percent(name, 'top1', 0)}" in dit
    assert f"{percent('emoji-dit', 'unseen_colourings_top1', 0)} of the colourings it has not seen" in dit
    assert f"where emoji-sd draws {percent('emoji-sd', 'unseen_colourings_top1', 0)}" in dit
    assert len((ROOT / "scripts" / "emoji_concepts.txt").read_text().split()) == int(sd.split("knows ")[1].split()[0])

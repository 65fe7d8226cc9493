"""Pictures, prompts and tables as people have them: read as every other tool reads them, or refused in a sentence."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image, ImageCms
from reliability.batch import ENVIRONMENT
from reliability.inputs_models import done, generate, rows

Options = argparse.Namespace
MILLION, SECONDS, MEGABYTES = 1_000_000, 60, 500


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The lines of a manifest, by their ids."""
    return {line["id"]: line for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


def piped(model: object, out: Path, text: str, *more: object) -> subprocess.CompletedProcess[str]:
    """Run the command on standard input."""
    words = [sys.executable, "-m", "diffaccel", "generate", "-", "--model", model, "--output", out, "--steps", 1, *more]
    return subprocess.run(
        [str(word) for word in words], input=text, capture_output=True, text=True, check=False, env=ENVIRONMENT
    )


def said(result: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """The last line on stderr, after checking the exit code, and that each of the words was said once."""
    assert result.returncode == code, (result.returncode, result.stderr[-1000:])
    for each in words:
        assert result.stderr.count(each) == 1, (each, result.stderr[-1000:])
    return result.stderr.strip().splitlines()[-1][-110:] if result.stderr else ""


def scene(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of blocks of colour."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def as_viewers_show(model: str, place: Path, _options: Options) -> str:
    """One picture in many forms: EXIF, alpha, 16 bits, floating point, palette, CMYK, a profile, an animation."""
    base, grey = scene(), scene(1).convert("L")
    base.save(place / "plain.png")
    grey.convert("RGB").save(place / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    base.transpose(Image.Transpose.ROTATE_90).save(place / "turned.png", exif=exif)
    cut = base.convert("RGBA")
    cut.putalpha(Image.new("L", base.size, 255))
    cut.save(place / "alpha.png")
    base.quantize(16, dither=Image.Dither.NONE).save(place / "palette.png")
    base.convert("CMYK").save(place / "cmyk.tif")
    base.save(place / "profile.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    base.save(place / "moving.png", save_all=True, append_images=[scene(2)])
    values = np.asarray(grey, dtype=np.float32)
    Image.fromarray((values * 257).astype(np.uint16)).save(place / "grey-16.png")
    Image.fromarray(values / 255).save(place / "grey-float.tif")
    Image.new("RGBA", base.size, (9, 9, 9, 0)).save(place / "nothing.png")
    Image.new("RGB", base.size, "green").save(place / "nothing-green.png")
    names = sorted(path.name for path in [*place.glob("*.png"), *place.glob("*.tif")])
    table = rows(place / "p.jsonl", *({"custom_id": name.split(".")[0], "init_image": name} for name in names))
    found = done(model, place / "out", table, "--background", "green", "--strength", 0.5, "-q")
    for name in found:
        same = "grey" if "grey" in name else "nothing-green" if "nothing" in name else "plain"
        worst = int(np.abs(found[name] - found[same]).max())
        assert worst <= 2, f"{name} is {worst}/255 off"
    notes = records(place / "out")["moving"]["notes"]
    assert "of which the first is used" in notes[0], notes
    return f"{len(found)} forms, at most 2/255 apart"


def to_size(model: str, place: Path, _options: Options) -> str:
    """crop (the default), pad and stretch are what a picture editor makes."""
    wide = scene(0, (64, 32))
    wide.save(place / "wide.png")
    wide.crop((16, 0, 48, 32)).save(place / "crop.png")
    padded = Image.new("RGB", (32, 32), "white")
    padded.paste(wide.resize((32, 16), Image.Resampling.LANCZOS), (0, 8))
    padded.save(place / "pad.png")
    wide.resize((32, 32), Image.Resampling.LANCZOS).save(place / "stretch.png")
    values = [{"custom_id": "default", "init_image": "wide.png"}]
    for name in ("crop", "pad", "stretch"):
        values.append({"custom_id": name, "init_image": "wide.png", "resize": name})
        values.append({"custom_id": f"{name}-by-hand", "init_image": f"{name}.png"})
    found = done(model, place / "out", rows(place / "p.jsonl", *values), "--size", 32, "--strength", 0.5, "-q")
    worst = max(int(np.abs(found[name] - found[f"{name}-by-hand"]).max()) for name in ("crop", "pad", "stretch"))
    assert worst <= 1, worst
    assert np.array_equal(found["default"], found["crop"])
    recorded = records(place / "out")["default"]["settings"]
    assert (recorded["resize"], recorded["background"]) == ("crop", "white"), recorded
    return f"{worst}/255 from the same by hand; recorded"


def sets(model: str, place: Path, _options: Options) -> str:
    """A folder, a pattern and a column of pictures; masks that go with them by name; one that lacks."""
    for folder in ("in", "masks"):
        (place / folder).mkdir()
    for name in ("a", "b"):
        scene(1).save(place / "in" / f"{name}.jpg")
    Image.new("L", (32, 32), 255).save(place / "masks" / "a.png")
    counts = [
        len(done(model, place / f"out-{index}", "a cat", "--init-image", place / which, "-q"))
        for index, which in enumerate(("in", "in/*.jpg"))
    ]
    assert counts == [2, 2], counts
    column = rows(place / "p.jsonl", {"init_image": "in"}, {"init_image": "in/a.jpg", "prompt": "a dog"})
    assert len(done(model, place / "column", column, "-q")) == 3
    result = generate(
        model, place / "masked", "a cat", "--init-image", place / "in", "--mask-image", place / "masks", "-q"
    )
    return said(result, 3, "has no picture named b")


def masks(model: str, place: Path, _options: Options) -> str:
    """What is black in a mask stays what the autoencoder makes of it, whatever the prompt."""
    scene().save(place / "a.png")
    half = Image.new("L", (32, 32))
    half.paste(255, (0, 0, 16, 32))
    half.save(place / "half.png")
    Image.new("L", (32, 32)).save(place / "none.png")
    common = {"init_image": "a.png"}
    values = [
        {"custom_id": "n1", "mask_image": "none.png"},
        {"custom_id": "n2", "mask_image": "none.png", "prompt": "a dog"},
    ]
    values += [{"custom_id": "half", "mask_image": "half.png"}]
    found = done(model, place / "out", rows(place / "p.jsonl", *({**common, **value} for value in values)), "-q")
    assert np.abs(found["n1"] - found["n2"]).max() <= 1
    assert np.abs(found["half"] - found["n1"])[:, :8].mean() > 3
    Image.new("L", (64, 32)).save(place / "wide.png")
    wrong = rows(place / "wrong.jsonl", {**common, "mask_image": "wide.png"}, {"mask_image": "half.png"})
    result = generate(model, place / "wrong", wrong, "--dry-run", "-q")
    return said(result, 3, "its picture 32x32, of another shape", "the picture that it is a mask of")


def controlled(model: str, place: Path, _options: Options) -> str:
    """A ControlNet follows its picture, from a text, from a picture and within one; strength 0 is as if without."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(Path(model) / "unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 4))
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(zero.weight, std=2.0)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_in.weight, std=2.0)
    net.save_pretrained(place / "net")
    scene().save(place / "a.png")
    Image.new("RGB", (32, 32), "white").save(place / "b.png")
    values: dict[str, dict[str, object]] = {
        "plain": {},
        "a": {"control_image": "a.png"},
        "b": {"control_image": "b.png"},
        "off": {"control_image": "a.png", "control_scale": 0},
        "from": {"control_image": "a.png", "init_image": "b.png"},
        "within": {"control_image": "a.png", "init_image": "b.png", "mask_image": "b.png"},
    }
    table = rows(place / "p.jsonl", *({"custom_id": name, **value} for name, value in values.items()))
    found = done(model, place / "out", table, "--controlnet", place / "net", "--size", 32, "-q")
    assert not np.array_equal(found["a"], found["b"])
    assert np.abs(found["off"] - found["plain"]).max() <= 1
    assert len(found) == 6
    result = generate(model, place / "none", "a cat", "--control-image", place / "a.png")
    return said(result, 2, "--control-image: it needs a ControlNet (--controlnet)")


def long_prompts(model: str, place: Path, _options: Options) -> str:
    """Words beyond the encoder's limit, in dry run, manifest and sheet; read with --long-prompts."""
    words = "a cat on a blue sofa beside a window, " * 8
    table = rows(place / "p.jsonl", *({"prompt": words + end, "custom_id": end} for end in ("alpha", "omega")))
    dry = generate(model, place / "cut", table, "--dry-run")
    said(dry, 0, "p.jsonl:1: prompt: beyond the encoder's", "p.jsonl:2: prompt: beyond the encoder's")
    cut = done(model, place / "cut", table)
    assert "omega'" in records(place / "cut")["omega"]["notes"][0]
    assert "beyond the encoder" in (place / "cut" / "index.html").read_text()
    whole = done(model, place / "whole", table, "--long-prompts")
    assert np.array_equal(cut["alpha"], cut["omega"])
    assert not np.array_equal(whole["alpha"], whole["omega"])
    return said(dry, 0)


def weights(model: str, place: Path, _options: Options) -> str:
    """(word:1.3), [word] and BREAK are text and said to be, or weights where asked; an open bracket is named."""
    prompts = {"plain": "a cat", "up": "a (cat:1.6)", "down": "a [cat]", "break": "a BREAK cat"}
    table = rows(place / "p.jsonl", *({"prompt": prompt, "custom_id": name} for name, prompt in prompts.items()))
    said(generate(model, place / "dry", table, "--dry-run"), 0, "--prompt-weights reads them")
    found = done(model, place / "out", table, "--prompt-weights")
    plain = done(model, place / "plain", "a cat", "--seed", 1)
    assert all(np.array_equal(picture, found["plain"]) for picture in plain.values())
    assert all(not np.array_equal(found[name], found["plain"]) for name in ("up", "down", "break"))
    return said(generate(model, place / "bad", "a (cat", "--prompt-weights"), 2, "( is not closed")


def without_effect(model: str, place: Path, _options: Options) -> str:
    """A negative prompt where guidance is off, or of its own: said once for all rows, in a dry run too."""
    table = rows(place / "p.jsonl", *({"negative_prompt": f"no {row}"} for row in range(3)))
    for mode in (["--dry-run"], []):
        said(generate(model, place / "off", table, "--guidance-scale", 1, *mode), 0, "it changes nothing, for")
    result = generate(model, place / "self", table, "--guidance", "self", "--dry-run")
    return said(result, 0, "--guidance self never looks at it")


def text_lines(model: str, place: Path, _options: Options) -> str:
    """Lines of kohya's scripts and the web UI, comments, and an option that nobody knows."""
    lines = ["# a comment", "a cat --n dog --s 1 --d 7", '--prompt "a cat" --negative_prompt "dog" --steps 1 --seed 7']
    (place / "p.txt").write_text("\n".join([*lines, "a cat --ar 16:9"]))
    result = generate(model, place / "out", place / "p.txt", "--format", "json")
    counts = json.loads(result.stdout)
    assert (counts["done"], counts["duplicates"], counts["failed"]) == (1, 1, 1), counts
    (record,) = (record for record in records(place / "out").values() if record["status"] == "done")
    found = [record["settings"][name] for name in ("prompt", "negative_prompt", "steps", "seed")]
    assert found == ["a cat", "dog", 1, 7], found
    return said(result, 3, "p.txt:4: --ar: no such option of a line of text")


def drawn_prompts(model: str, place: Path, _options: Options) -> str:
    """Alternatives and wildcards, drawn alike by every run; text, and said to be, without --dynamic-prompts."""
    (place / "wildcards").mkdir()
    (place / "wildcards" / "colour.txt").write_text("red\nblue\ngreen\n")
    more = ("a {big|small} __colour__ cat", "--num-images", 8, "--seed", 0)
    drawn = []
    for out in ("one", "two"):
        done(model, place / out, *more, "--dynamic-prompts", "--wildcards", place / "wildcards")
        drawn.append(sorted(record["settings"]["prompt"] for record in records(place / out).values()))
    assert drawn[0] == drawn[1], drawn
    assert len(set(drawn[0])) > 2, drawn
    return said(generate(model, place / "text", *more, "--dry-run"), 0, "--dynamic-prompts draws one of them")


def not_drawn(model: str, place: Path, _options: Options) -> str:
    """A missing file, a folder, a JSON list and a table through a pipe: none of them is a prompt."""
    said(generate(model, place / "a", place / "x.json"), 2, "no such prompt file")
    said(generate(model, place / "b", "photo.png"), 2, "no such file: photo.png")
    cases = {
        "list": '[{"prompt": "a", "custom_id": "one"},\n {"prompt": "b"}]',
        "table": "Prompt\tSeed\tCustom Id\na\t1\tone\nb\t2\ttwo\n",
        "object": '{\n "prompt": "a",\n "custom_id": "one"\n}\n',
    }
    for name, text in cases.items():
        said(piped(model, place / name, text), 0)
        found = records(place / name)
        assert "one" in found, found
        assert {record["settings"]["prompt"] for record in found.values()} <= {"a", "b"}, found
    return "refused: x.json, photo.png; read: a list, a table, an object"


def tables(model: str, place: Path, _options: Options) -> str:
    """Semicolons, tabs, headers with spaces, whole numbers and any script as ids, columns that go along, seeds."""
    (place / "a.csv").write_text('Prompt;Negative Prompt;Custom Id;Seed\n"a; b";no;7;18446744073709551615\n')
    (place / "b.tsv").write_text("prompt\tcustom id\tAnimal\nc\t猫 é\tcat\n")
    (place / "c.json").write_text('[{"prompt": "d", "custom_id": 8, "seed": -1}, "e"]')
    files = [place / name for name in ("a.csv", "b.tsv", "c.json")]
    for skipped in (0, 4):
        result = generate(model, place / "out", *files, "--keep-columns", "--parquet", "--format", "json")
        assert (result.returncode, json.loads(result.stdout)["skipped"]) == (0, skipped), result
    found = records(place / "out")
    assert (place / "out" / "%E7%8C%AB%20%C3%A9.png").exists()
    assert found["猫 é"]["columns"] == {"Animal": "cat"}
    assert found["7"]["settings"]["seed"] == 2**64 - 1
    assert found["8"]["settings"]["seed"] >= 0
    return f"ids 7, 8, 猫 é; drawn seed {found['8']['settings']['seed']} recorded, and kept by the next run"


def stray(model: str, place: Path, _options: Options) -> str:
    """A stray quotation mark costs its row; an unknown column of 3,000 rows is told once."""
    lines = ["prompt,seed", *(f"p{row},{row}" for row in range(20))]
    lines[5] = '"p4,4'
    (place / "p.csv").write_text("\n".join(lines))
    result = generate(model, place / "out", place / "p.csv", "--dry-run")
    said(result, 3, "p.csv:6: a stray quotation mark")
    assert result.stdout.startswith("19 pictures, 19 to render; 1 bad row"), result.stdout
    (place / "c.csv").write_text("prompt,colour\n" + "a,b\n" * 3000)
    said(generate(model, place / "c", place / "c.csv"), 2, "colour: no such setting")
    table = rows(place / "c.jsonl", *({"colour": row} for row in range(3000)))
    return said(generate(model, place / "j", table), 2, "no such setting", "and 2,999 more rows")


def as_it_comes(model: str, place: Path, _options: Options) -> str:
    """A line written into a pipe is drawn before the next one is written."""
    out = place / "out"
    words = [sys.executable, "-m", "diffaccel", "generate", "-", "--model", model, "-o", str(out), "--steps", "1"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdin is not None
    for count in (1, 2, 3):
        process.stdin.write(f"prompt {count}\n")
        process.stdin.flush()
        deadline = time.monotonic() + 120
        while len(list(out.glob("*.png"))) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(list(out.glob("*.png"))) == count, "not drawn before the input ended"
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return "3 lines, each drawn before the next was written"


def million(model: str, place: Path, _options: Options) -> str:
    """A dry run of a million rows: a minute of one processor, and 500 MB."""
    path = place / "p.jsonl"
    with path.open("w") as stream:
        for row in range(MILLION):
            stream.write(json.dumps({"prompt": f"a photograph of thing number {row} on a table", "seed": row}) + "\n")
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024); print(done.stdout, done.stderr)"
    )
    words = [sys.executable, "-m", "diffaccel", "generate", path, "--model", model, "-o", place / "out", "--dry-run"]
    begin = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True, env=ENVIRONMENT
    ).stdout.splitlines()
    wall = time.monotonic() - begin
    status, seconds, megabytes = (float(value) for value in found[0].split())
    assert status == 0, found
    assert found[1].startswith("1,000,000 pictures, 1,000,000 to render; 0 bad rows"), found
    assert seconds <= SECONDS, f"{seconds:.0f} s of a processor"
    assert megabytes <= MEGABYTES, f"{megabytes:.0f} MB"
    return f"{seconds:.0f} s of a processor, {wall:.0f} s beside other programs, {megabytes:.0f} MB"


def apart(check: Callable[[str, Path, Options], str], name: str) -> Callable[[str, Path, Options], str]:
    """The check in a folder of its own."""

    def run(model: str, place: Path, options: Options) -> str:
        own = place / name
        own.mkdir()
        return check(model, own, options)

    return run


_CHECKS = {
    "pictures as viewers show them": as_viewers_show,
    "crop, pad, stretch": to_size,
    "folders of pictures": sets,
    "masks": masks,
    "ControlNets": controlled,
    "long prompts": long_prompts,
    "weights": weights,
    "without effect": without_effect,
    "lines with options": text_lines,
    "dynamic prompts": drawn_prompts,
    "what is no prompt": not_drawn,
    "tables": tables,
    "stray quotation marks": stray,
    "piped rows": as_it_comes,
    "a million rows": million,
}
PART = {name: apart(check, check.__name__) for name, check in _CHECKS.items()}

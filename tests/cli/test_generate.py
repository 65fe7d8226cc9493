"""`diffaccel generate` from end to end, on a tiny model."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from diffusers import StableDiffusionPipeline
from PIL import Image

from diffaccel.batch.metadata import encode, read_settings
from diffaccel.batch.store import OutputFolder, read_manifest
from diffaccel.cli import main
from diffaccel.methods import Recipe
from diffaccel.methods.profile import sampler_of
from diffaccel.methods.recipe import Reuse
from diffaccel.networks import layout_of


@pytest.fixture
def generate(tiny_sd: Path, tmp_path: Path):
    def call(*arguments: object, stdin: str | None = None, model: object = tiny_sd) -> Result:
        command = ["generate", "--model", model, "--output", tmp_path / "out", "--steps", 4, *arguments]
        return CliRunner().invoke(main, [str(argument) for argument in command], input=stdin)

    return call


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_prompts_to_pictures(generate, tmp_path: Path) -> None:
    result = generate("a red heart", "a panda", "--cache", "deepcache:interval=2,branch=0", "--seed", 7)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 pictures in ")
    assert "; 2 network calls computed, 2 replayed; " in result.output
    assert "% of MACs saved. See " in result.output
    assert {name.rsplit("-", 1)[0] for name in pictures(tmp_path / "out")} == {"a-red-heart", "a-panda"}
    path = next((tmp_path / "out").glob("a-red-heart*.png"))
    job = read_settings(path)
    assert (job.prompt, job.seed, job.steps, job.cache) == ("a red heart", 7, 4, "deepcache:interval=2,branch=0")
    with Image.open(path) as picture:
        assert picture.size == (32, 32)
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.slow
def test_caching_is_on_by_default_and_can_be_switched_off(generate) -> None:
    assert "4 network calls computed, 8 replayed" in generate("p", "--steps", 12).output
    assert "replayed" not in generate("q", "--steps", 12, "--cache", "none").output


def test_settings_reach_the_picture(generate, tmp_path: Path, tiny_lora: Path) -> None:
    options = ["--negative-prompt", "blue", "--guidance-scale", 3, "--scheduler", "lcm", "--size", "40x24"]
    assert generate("p", *options, "--lora", tiny_lora, "--dtype", "bfloat16", "--num-images", 2).exit_code == 0
    first, second = (read_settings(path) for path in sorted((tmp_path / "out").glob("*.png")))
    assert (first.negative_prompt, first.guidance_scale, first.scheduler) == ("blue", 3.0, "lcm")
    assert (first.width, first.height, first.lora, first.dtype) == (40, 24, str(tiny_lora), "bfloat16")
    assert {first.seed, second.seed} == {min(first.seed, second.seed), min(first.seed, second.seed) + 1}


@pytest.mark.slow
def test_same_command_again_does_nothing_and_other_settings_render_again(generate, tmp_path: Path) -> None:
    generate("p", "q")
    before = pictures(tmp_path / "out")
    assert generate("p", "q").output.startswith("Nothing to render: 2 pictures are there already. See ")
    assert "1 picture in" in generate("p", "q", "r").output
    assert "3 pictures in" in generate("p", "q", "r", "--guidance-scale", 3).output
    generate("p", "q", "r", "--overwrite")
    assert before.items() <= pictures(tmp_path / "out").items()


@pytest.mark.slow
def test_cut_picture_is_rendered_again(generate, tmp_path: Path) -> None:
    generate("p", "q")
    before = pictures(tmp_path / "out")
    path = next((tmp_path / "out").glob("p-*.png"))
    path.write_bytes(path.read_bytes()[:100])
    assert "1 picture in" in generate("p", "q").output
    assert pictures(tmp_path / "out") == before


@pytest.mark.slow
def test_from_renders_the_same_picture_again(generate, tmp_path: Path) -> None:
    generate("a red heart", "--seed", 3, "--cache", "deepcache:interval=2", "--guidance-scale", 2)
    path = next((tmp_path / "out").glob("*.png"))
    again = CliRunner().invoke(main, ["generate", "--from", str(path), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert pictures(tmp_path / "again") == pictures(tmp_path / "out")
    other = CliRunner().invoke(main, ["generate", "--from", str(path), "-o", str(tmp_path / "again"), "--seed", "4"])
    assert other.exit_code == 0, other.output
    assert pictures(tmp_path / "again") != pictures(tmp_path / "out")


@pytest.mark.slow
def test_from_takes_a_profile_and_says_what_is_wrong(generate, tmp_path: Path) -> None:
    generate("p", "--cache", "none")
    path = next((tmp_path / "out").glob("*.png"))
    (tmp_path / "profile.json").write_text('[{"type": "deepcache", "interval": 2}]')

    def again(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["generate", "--from", str(path), "-o", str(tmp_path / "again"), *arguments])

    assert again("--profile", str(tmp_path / "profile.json")).exit_code == 0
    assert read_settings(tmp_path / "again" / path.name).cache == "deepcache:interval=2"
    result = again("--steps", "0")
    assert (result.exit_code, "--steps: must be at least" in result.stderr) == (2, True)
    path.write_bytes(encode(Image.new("RGB", (8, 8)), replace(read_settings(path), id="../../x")))
    result = again()
    assert (result.exit_code, "cannot be used: custom_id" in result.stderr) == (2, True)


def test_one_id_for_two_rows_does_not_spoil_the_picture_that_has_it(generate, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "custom_id": "x"}\n{"prompt": "b", "custom_id": "x"}\n')
    for done in (1, 0):
        result = generate(tmp_path / "p.jsonl", "--parquet", "--format", "json")
        assert result.exit_code == 3
        assert json.loads(result.stdout)["done"] == done
        assert (tmp_path / "out" / "pictures.parquet").exists()
        (tmp_path / "out" / "pictures.parquet").unlink()


@pytest.mark.slow
def test_other_settings_in_shards_after_a_run_over_the_whole(generate, tmp_path: Path) -> None:
    generate("p", "--seed", 1)
    for expected in (1, 0):
        result = generate("p", "--seed", 2, "--shard", "1/1", "--parquet", "--format", "json")
        assert json.loads(result.stdout)["done"] == expected
        assert (tmp_path / "out" / "pictures.parquet").exists()


def test_words_of_strangers_do_not_reach_the_terminal(generate, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "\\u001b[2J": 1}\n{"prompt": "b"}\n')
    for arguments in (["--dry-run"], []):
        output = generate(tmp_path / "p.jsonl", *arguments).output
        assert "\\x1b[2J: no such setting" in output
        assert "\x1b" not in output


def test_all_bad_rows_are_named_where_there_are_no_others(generate, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "\\u001b[2J": 1}\n{"prompt": "b", "stepz": 4}\n')
    for arguments in (["--dry-run"], []):
        result = generate(tmp_path / "p.jsonl", *arguments)
        assert result.exit_code == 2
        assert "p.jsonl:1: \\x1b[2J: no such setting; settings are size, negative_prompt, " in result.stderr
        assert "p.jsonl:2: stepz: no such setting (did you mean steps?)" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_compare_shows_both(generate, tmp_path: Path) -> None:
    result = generate("p", "q", "--compare", "--cache", "deepcache:interval=2")
    assert "x as fast as without caching, PSNR " in result.output
    assert len(list((tmp_path / "out" / "compare").glob("*.png"))) == 2
    assert "PSNR" in (tmp_path / "out" / "index.html").read_text()


def test_prompt_file_with_bad_rows(generate, tmp_path: Path) -> None:
    rows = ['{"prompt": "p", "custom_id": "one", "steps": 2}', "{", '{"prompt": "p", "custom_id": "../two"}']
    (tmp_path / "p.jsonl").write_text("\n".join([*rows, rows[0]]))
    result = generate(tmp_path / "p.jsonl")
    assert result.exit_code == 3
    assert "2 failed; all reasons are in " in result.stderr
    assert f"{tmp_path / 'p.jsonl'}:2: not JSON" in result.stderr
    assert list(pictures(tmp_path / "out")) == ["one.png"]
    assert sorted(record.status for record in read_manifest(tmp_path / "out").values()) == ["done", "failed", "failed"]
    assert {path.name for path in tmp_path.iterdir()} == {"p.jsonl", "out"}


def test_standard_input(generate, tmp_path: Path) -> None:
    assert generate("-", stdin='p\n{"prompt": "q", "custom_id": "two"}\n').exit_code == 0
    assert len(pictures(tmp_path / "out")) == 2
    assert (tmp_path / "out" / "two.png").exists()


@pytest.mark.slow
def test_shards_make_the_same_set_as_one_run(generate, tmp_path: Path) -> None:
    prompts = [f"p{number}" for number in range(6)]
    one, parts = tmp_path / "one", tmp_path / "parts"
    assert generate(*prompts, "-o", one, "--batch-size", 2).exit_code == 0
    for index in (1, 2, 3):
        assert generate(*prompts, "-o", parts, "--shard", f"{index}/3", "--batch-size", 2).exit_code == 0
    assert pictures(one) == pictures(parts)
    assert "6 pictures" in (parts / "index.html").read_text()


@pytest.mark.slow
def test_guidance_and_profile_are_written_into_the_picture(generate, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(
        '[{"type": "deepcache", "interval": 2, "branch": 1}, {"type": "textkvcache"}]'
    )
    assert generate("p", "--profile", tmp_path / "profile.json", "--guidance", "one-time:delta=0.8").exit_code == 0
    path = next((tmp_path / "out").glob("*.png"))
    job = read_settings(path)
    assert (job.cache, job.guidance) == ("deepcache:interval=2,branch=1 + textkvcache", "one-time:delta=0.8")
    again = CliRunner().invoke(main, ["generate", "--from", str(path), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert pictures(tmp_path / "again") == pictures(tmp_path / "out")


@pytest.mark.slow
def test_files_that_caching_names_are_written_into_the_picture(
    generate, tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there := tmp_path / "there").mkdir()
    recipe(tiny_sd).save(there / "p.json")
    monkeypatch.chdir(there)
    (there / "p.csv").write_text("prompt,cache\nq,profile:recipe='p.json'\n")
    assert generate("p", there / "p.csv", "--cache", "profile:recipe='p.json'").exit_code == 0
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(there)
    for path in (tmp_path / "out").glob("*.png"):
        again = CliRunner().invoke(main, ["generate", "--from", str(path), "-o", str(tmp_path / "again")])
        assert again.exit_code == 0, again.output
    assert pictures(tmp_path / "again") == pictures(tmp_path / "out")
    assert len(pictures(tmp_path / "out")) == 2
    (tmp_path / "p.csv").write_text("prompt,cache\nq,profile:recipe='p.json'\nr,none\n")
    row = generate(tmp_path / "p.csv", "--dry-run")
    assert (row.exit_code, "p.csv:2: cache: cannot read p.json: No such file" in row.stderr) == (3, True)
    missing = generate("p", "--cache", "profile:recipe='p.json'")
    assert (missing.exit_code, "--cache: cannot read p.json: No such file" in missing.stderr) == (2, True)


@pytest.mark.slow
def test_another_autoencoder_is_part_of_the_settings(generate, tmp_path: Path, tiny_sd: Path) -> None:
    generate("p")
    plain = pictures(tmp_path / "out")
    assert "1 picture in" in generate("p", "--vae", tiny_sd).output  # another setting, although the same weights
    path = next((tmp_path / "out").glob("*.png"))
    assert read_settings(path).vae == str(tiny_sd)
    assert Image.open(path).tobytes() == Image.open(BytesIO(plain[path.name])).tobytes()


def test_tars_and_parquet(generate, tmp_path: Path) -> None:
    assert generate("a", "b", "c", "--tar", 2, "--parquet").exit_code == 0
    assert len(list((tmp_path / "out" / "tars").glob("*.tar"))) == 2
    assert (tmp_path / "out" / "pictures.parquet").exists()


@pytest.mark.slow
def test_shards_that_differ_in_batch_size_leave_pictures_out_and_say_so(generate, tmp_path: Path) -> None:
    """Each deals out the whole in batches of its own, so some are no one's."""
    prompts = [f"p{number}" for number in range(8)]
    generate(*prompts, "--shard", "1/2", "--batch-size", 2)
    last = generate(*prompts, "--shard", "2/2", "--batch-size", 4)
    assert len(pictures(tmp_path / "out")) == 6
    assert "2 of the 8 pictures of all shards are not there yet" in last.stderr
    for index in (1, 2):
        last = generate(*prompts, "--shard", f"{index}/2", "--batch-size", 4, "--format", "json")
    assert json.loads(last.stdout)["left_of_all"] == 0
    assert "not there yet" not in last.stderr


@pytest.mark.slow
def test_the_last_shard_packs_for_all(generate, tmp_path: Path) -> None:
    prompts = [f"p{number}" for number in range(6)]
    assert generate(*prompts, "-o", tmp_path / "one", "--tar", 4, "--batch-size", 2).exit_code == 0
    for index in (1, 2):
        assert not (tmp_path / "out" / "tars").exists()
        generate(*prompts, "--tar", 4, "--batch-size", 2, "--shard", f"{index}/2")
    for path in (tmp_path / "one" / "tars").iterdir():
        assert (tmp_path / "out" / "tars" / path.name).read_bytes() == path.read_bytes()


def test_limit_then_the_rest(generate) -> None:
    assert "2 pictures in" in generate("a", "b", "c", "--limit", 2).output
    assert "1 picture in" in generate("a", "b", "c").output


@pytest.mark.slow
def test_dry_run_does_not_wait_for_diffusers(tiny_sd: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['diffaccel', 'generate', 'p', '--model', {str(tiny_sd)!r}, '--dry-run']\ntry:\n"
    code += "    from diffaccel.cli import main; main()\nexcept SystemExit as end:\n    assert not end.code\n"
    code += "assert not {'diffusers', 'transformers'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_dry_run_touches_nothing(generate, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\na\n")
    result = generate(tmp_path / "p.txt", "--dry-run")
    assert result.output == "2 pictures, 2 to render; 0 bad rows, 1 repeated\n"
    counts = json.loads(generate(tmp_path / "p.txt", "--dry-run", "--format", "json").output)
    assert counts == {"jobs": 2, "todo": 2, "bad": 0, "duplicates": 1, "bad_rows": [], "notes": []}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_checking_rows_with_pictures_and_caching_prints_nothing(tiny_sd: Path, tmp_path: Path) -> None:
    Image.effect_noise((32, 32), 99).save(tmp_path / "start.png")
    (tmp_path / "p.csv").write_text("prompt,init_image,cache\na,start.png,\nb,,deepcache\n")
    command = [sys.executable, "-m", "diffaccel", "generate", "p.csv", "--dry-run", "--model", str(tiny_sd)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_dry_run_finds_the_rows_that_a_run_finds(generate, tmp_path: Path) -> None:
    Image.effect_noise((32, 32), 99).save(tmp_path / "start.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "start.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    rows = ["a,,,", "b,nowhere.png,,", "c,torn.png,,", "d,text.png,,", "e,,nowhere,", "f,,,2"]
    rows += ["g,start.png,,0.5", "h,,,0.5", "i,empty.png,,"]
    (tmp_path / "p.csv").write_text("\n".join(["prompt,init_image,lora,strength", *rows, ""]))
    result = generate(tmp_path / "p.csv", "--dry-run")
    assert result.exit_code == 3
    assert result.stdout == "2 pictures, 2 to render; 7 bad rows, 0 repeated\n"
    assert f"{tmp_path / 'p.csv'}:3: init_image: cannot read nowhere.png: No such file or directory\n" in result.stderr
    assert "text.png: not a PNG, JPEG, WebP, GIF, TIFF or BMP picture; convert it to one\n" in result.stderr
    assert "p.csv:6: lora: no LoRA at 'nowhere'" in result.stderr
    places = {line.rpartition("p.csv:")[2].partition(":")[0] for line in result.stderr.splitlines()}
    assert places == {"3", "4", "5", "6", "7", "9", "10"}
    assert not (tmp_path / "out").exists()
    ran = generate(tmp_path / "p.csv")
    assert ran.exit_code == 3
    assert len(pictures(tmp_path / "out")) == 2
    assert {
        line.partition("p.csv:")[2].partition(":")[0] for line in ran.stderr.splitlines() if "p.csv:" in line
    } == places
    found = json.loads(generate(tmp_path / "p.csv", "--dry-run", "--format", "json").stdout)
    assert (found["jobs"], found["todo"], found["bad"], len(found["bad_rows"])) == (2, 0, 7, 7)


def test_dry_run_tells_of_a_row_once_and_not_of_pictures_that_are_done(generate, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "start.png")
    (tmp_path / "p.csv").write_text("prompt,init_image\na,start.png\nb,nowhere.png\n")
    assert generate(tmp_path / "p.csv").exit_code == 3
    (tmp_path / "start.png").rename(tmp_path / "gone.png")
    result = generate(tmp_path / "p.csv", "--dry-run", "--num-images", 2, "--quiet")
    assert (result.exit_code, result.stdout) == (3, "")
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == ["2", "3"]


def test_dry_run_finds_caching_that_does_not_fit(generate, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "cache": "deepcache"}, {"prompt": "b", "cache": "blockcache:threshold=0.1"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = generate(tmp_path / "p.jsonl", "--dry-run")
    assert result.exit_code == 3
    assert "p.jsonl:2: cache: BlockCache needs a list of transformer blocks" in result.stderr
    ran = generate(tmp_path / "p.jsonl")
    assert (ran.exit_code, len(pictures(tmp_path / "out"))) == (3, 1)
    assert "BlockCache needs a list of transformer blocks" in ran.stderr


def recipe(folder: Path, total: int = 4) -> Recipe:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    sampler = sampler_of(pipe.scheduler)
    return Recipe("UNet2DConditionModel", layout_of(pipe.unet).fingerprint, *sampler, total, (Reuse(1, "branch 0"),))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_caching_that_fits_no_picture_is_told_once_before_anything_is_loaded(
    generate, tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr("diffaccel.batch.distribute.open_pipeline", lambda *_: pytest.fail("loaded the model"))
    profile = tmp_path / "p.json"
    recipe(tiny_sd, 5).save(profile)
    other = replace(recipe(tiny_sd), fingerprint="0" * 16)
    other.save(tmp_path / "other.json")
    cases = (
        (["--cache", "blockcache:threshold=0.1"], "--cache blockcache:threshold=0.1: BlockCache needs a list"),
        (["--cache", "blockcache:threshold=0.1"], "methods that fit it: deepcache, "),
        (["--cache", "deepcache:branch=40"], "branch of UNet2DConditionModel must be an integer in 0.."),
        (["--cache", "deepcache + encoderpropagation"], "cannot work together"),
        (["--cache", "deepcache:schedule=steps((0,9))"], "the run has 4 network calls"),
        (["--profile", profile], f"--profile {profile}: the profile was tuned for 5 network calls, and this run has 4"),
        (["--profile", profile, "--steps", 5, "--scheduler", "euler"], "the profile was tuned with "),
        (["--profile", tmp_path / "other.json"], "run diffaccel tune on it"),
    )
    for arguments, message in cases:
        for mode in ([], ["--dry-run"]):
            result = generate("p", "q", "--processes", processes, *arguments, *mode)
            assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_start_from_a_picture(generate, tmp_path: Path) -> None:
    start = tmp_path / "start.png"
    Image.new("RGB", (128, 128)).save(start)
    (tmp_path / "p.csv").write_text("prompt,init_image\na,start.png\nb,\n")
    words = "PixArtAlphaPipeline cannot start from a picture: leave init_image out"
    result = generate("p", "--init-image", start, model="emoji-dit")
    assert (result.exit_code, f"--init-image: {words}" in result.stderr) == (2, True)
    dry = generate(tmp_path / "p.csv", "--dry-run", model="emoji-dit")
    assert (dry.exit_code, f"p.csv:2: init_image: {words}" in dry.stderr) == (3, True)


@pytest.mark.slow
def test_a_profile_that_fits_some_pictures_costs_the_others_alone(generate, tmp_path: Path, tiny_sd: Path) -> None:
    recipe(tiny_sd).save(tmp_path / "profile.json")
    (tmp_path / "p.csv").write_text("prompt,steps\na,\nb,6\n")
    arguments = [tmp_path / "p.csv", "--profile", tmp_path / "profile.json"]
    dry, ran = generate(*arguments, "--dry-run"), generate(*arguments)
    for result in (dry, ran):
        assert result.exit_code == 3
        assert "p.csv:3: " in result.stderr
        assert "tuned for 4 network calls, and this run has 6" in result.stderr
    assert len(pictures(tmp_path / "out")) == 1


@pytest.mark.slow
def test_json_summary(generate) -> None:
    figures = json.loads(generate("p", "--cache", "deepcache:interval=2", "--format", "json").output)
    assert (figures["done"], figures["failed"], figures["skipped"]) == (1, 0, 0)
    assert (figures["calls"]["computed"], figures["calls"]["replayed"]) == (2, 2)


def test_quiet_prints_nothing(generate) -> None:
    assert generate("p", "--quiet").output == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompts; try: diffaccel generate 'a red heart'"),
        ([" "], "command line: prompt: must not be empty"),
        (["nowhere.txt"], "no such prompt file: nowhere.txt"),
        (["p", "--model", "emoji-xl"], "unknown model 'emoji-xl'; bundled: "),
        (["p", "--model", "someone/something"], "cannot reach the Hub for 'someone/something'"),
        (["p", "--lora", "nowhere"], "no LoRA at 'nowhere'"),
        (["p", "--steps", 0], "--steps: must be at least 1 (got 0)"),
        (["p", "--steps", "many"], "'many' is not a valid integer"),
        (["p", "--guidance-scale", "nan"], "--guidance-scale: must be a finite number"),
        (["p", "--seed", -2], "--seed: "),
        (["p", "--size", 33], "--size: must be a multiple of 8"),
        (["p", "--init-image", "nowhere.png"], "--init-image: cannot read nowhere.png: No such file or directory"),
        (["p", "--init-image", "."], "--init-image: no pictures in .; they end in .png, "),
        (["p", "--init-image", __file__], "test_generate.py: not a PNG, JPEG, WebP, GIF, TIFF or BMP picture"),
        (["p", "--size", "wide"], "--size: 'wide' is neither a number of pixels nor WIDTHxHEIGHT"),
        (["p", "--scheduler", "magic"], "--scheduler: unknown scheduler 'magic'; one of default, ddim"),
        (["p", "--cache", "magic"], "--cache: unknown method 'magic'"),
        (["p", "--cache", "deepcache:interval=0"], "--cache: interval must be an integer >= 1"),
        (["p", "--strength", 2], "--strength: "),
        (["p", "--guidance", "self", "--guidance-scale", 1], "--guidance: self needs a guidance_scale above 1 (got 1)"),
        (["p", "--guidance", "magic"], "--guidance: unknown guidance 'magic'; one of full, one-time, self"),
        (["p", "--vae", "nowhere"], "no autoencoder at 'nowhere'"),
        (["p", "--device-map", "balanced"], "device map 'balanced' needs an accelerator"),
        (["p", "--profile", "nowhere.json"], "--profile: cannot read nowhere.json: No such file or directory"),
        (["p", "--profile", "nowhere.json", "--cache", "none"], "--profile and --cache both"),
        (["p", "--num-images", 0], "'--num-images'"),
        (["p", "--batch-size", 0], "'--batch-size'"),
        (["p", "--shard", "3/2"], "'3/2' is not I/N"),
        (["p", "--device", "abacus"], "unknown device 'abacus'; this machine has cpu"),
        (["p", "--device", "maia"], "no device 'maia' here; this machine has cpu"),
        (["p", "--model", "~nobody/model"], "unknown model '~nobody/model'"),
        (["p", "--init-image", "~nobody/a.png"], "--init-image: cannot read ~nobody/a.png: No such file"),
        (["--from", "nowhere.png"], "no such picture: nowhere.png"),
        (["p", "--from", "nowhere.png"], "either prompts or --from"),
        (["p", "--address", "127.0.0.1:6379"], "add --engine ray"),
        (["p", "--wildcards", "words"], "--wildcards needs --dynamic-prompts"),
    ],
)
def test_bad_usage_is_one_sentence_and_writes_nothing(
    generate, tmp_path: Path, arguments: list[object], message: str
) -> None:
    result = generate(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_unwritable_folder(generate, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    result = generate("p")
    assert result.exit_code == 1
    assert "out is a file" in result.stderr


def test_folder_in_use(generate, tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out"):
        result = generate("p")
    assert result.exit_code == 1
    assert "another run holds" in result.stderr


def test_rows_that_fail_are_named_and_the_others_rendered(generate, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,init_image\na,\nb,nowhere.png\n")
    result = generate(tmp_path / "p.csv")
    assert result.exit_code == 3
    assert f"{tmp_path / 'p.csv'}:3: b-" in result.stderr
    assert "init_image: cannot read nowhere.png" in result.stderr
    assert len(pictures(tmp_path / "out")) == 1


@pytest.mark.slow
def test_real_process_is_quiet_and_self_contained(tiny_sd: Path, tmp_path: Path) -> None:
    """Without a terminal, a home or a network: pictures, one line on stdout, nothing on stderr."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "diffaccel", "generate", "a red heart", "--model", tiny_sd, "-o", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 picture in ")
    assert len(done.stdout.splitlines()) == 1
    assert len(pictures(tmp_path / "out")) == 1


def test_shards_deal_out_the_whole_run_after_its_limit(generate, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "p{row}"}}\n{{"prompt": 1}}\n' for row in range(6)) * 2)
    counts = []
    for index in (1, 2, 3):
        shard = ("--shard", f"{index}/3", "--limit", 5, "--batch-size", 1, "--dry-run", "--format", "json")
        counts.append(json.loads(generate(tmp_path / "p.jsonl", *shard).stdout))
    assert [sum(count[name] for count in counts) for name in ("jobs", "bad", "duplicates")] == [5, 4, 0]
    assert len({row["where"] for count in counts for row in count["bad_rows"]}) == 4

"""Prompts that are too long, weighted, drawn, or meant for another program: read as asked, or said to be not."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from diffaccel import models
from diffaccel.batch.jobs import Ingredients, Job, Planner
from diffaccel.batch.notes import Notes
from diffaccel.batch.rows import InputError, PlacedRow
from diffaccel.batch.settings import PictureSettings, PromptRow
from diffaccel.batch.store import read_manifest
from diffaccel.batch.templates import Templates, drawn
from diffaccel.batch.text_calls import TextCalls
from diffaccel.batch.text_limits import LONGEST_WORD, TextLimits, _beyond
from diffaccel.batch.text_rules import text_problem
from diffaccel.cli import main
from diffaccel.models.embedding import vectors_of
from diffaccel.models.markup import markup
from diffaccel.models.weighted_text import weighted_parts

LIMIT = 16  # of the tiny model's encoder; every character is a token, and two mark begin and end
JOB = Job(id="a", prompt="a cat", seed=0, model="m", dtype="float32")


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> Any:
    loaded = models.load(tiny_sd)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def job(prompt: str, **settings: Any) -> Job:
    return Job(**{"id": prompt, "prompt": prompt, "seed": 0, "model": "m", "dtype": "float32", **settings})


def generate(folder: Path, *arguments: object, model: object) -> Result:
    command = ["generate", "--model", model, "--output", folder / "out", "--steps", 2, *arguments]
    return CliRunner().invoke(main, [str(argument) for argument in command])


def notes_of(source: models.ModelSource, *jobs: Job, **how: Any) -> list[tuple[str, ...]]:
    return Notes(source, **how)(jobs)


def test_lost_words_are_named(tiny_sd: Path) -> None:
    limits = TextLimits(models.resolve(tiny_sd))
    assert limits.reach == ("tokenizer", LIMIT)
    texts = ["x" * 14, "x" * 15, "red hat on blue sofa", "", "é" * 20]
    assert limits.lost(texts) == ["", "x", "fa", "", "é" * 13]


@pytest.mark.parametrize(("model", "limit"), [("emoji-sd", 24), ("emoji-dit", 120)])
def test_the_bundled_models_reach(model: str, limit: int) -> None:
    limits = TextLimits(models.resolve(model))
    assert limits.reach == ("tokenizer", limit)
    assert limits.lost(["a red heart"]) == [""]
    assert limits.lost(["a red heart, " * 60])[0].endswith("heart,")


def test_lost_words_are_in_dry_run_manifest_and_sheet(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffaccel.cli.summary.LINES", 1)
    (tmp_path / "p.csv").write_text("prompt,negative_prompt\na cat on a blue sofa,\nb,a very ugly blue sofa\nc,\n")
    dry = generate(tmp_path, tmp_path / "p.csv", "--dry-run", model=tiny_sd)
    assert dry.exit_code == 0
    words = "prompt: beyond the encoder's 16 tokens, and not read: 'a'; --long-prompts reads all"
    assert f"p.csv:2: {words}\n" in dry.stderr
    assert "p.csv:3: negative_prompt: beyond the encoder's 16 tokens, and not read: 'ofa'" in dry.stderr
    assert len(dry.stderr.splitlines()) == 2
    ran = generate(tmp_path, tmp_path / "p.csv", model=tiny_sd)
    assert f"p.csv:2: {words}\n" in ran.stderr
    found = {record.settings["prompt"]: record.notes for record in read_manifest(tmp_path / "out").values()}
    assert (found["a cat on a blue sofa"], found["c"]) == ([words], [])
    assert "not read: &#39;a&#39;" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.slow
def test_long_prompts_change_what_is_beyond_the_limit_alone(tiny_sd: Path, tmp_path: Path) -> None:
    rows = {"one": "a cat on a blue sofa", "other": "a cat on a black sofa", "short": "a cat"}
    lines = [json.dumps({"prompt": prompt, "custom_id": name, "seed": 1}) for name, prompt in rows.items()]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    generate(tmp_path / "cut", tmp_path / "p.jsonl", model=tiny_sd)
    result = generate(tmp_path / "whole", tmp_path / "p.jsonl", "--long-prompts", model=tiny_sd)
    assert (result.exit_code, result.stderr) == (0, "")
    cut, whole = (
        {name: np.asarray(Image.open(tmp_path / run / "out" / f"{name}.png"), dtype=int) for name in rows}
        for run in ("cut", "whole")
    )
    assert np.array_equal(cut["short"], whole["short"])
    assert not np.array_equal(whole["one"], whole["other"])
    assert not np.array_equal(whole["one"], cut["one"])
    generate(tmp_path / "alone", "a cat on a blue sofa", "--seed", 1, "--long-prompts", model=tiny_sd)
    (alone,) = (tmp_path / "alone" / "out").glob("*.png")
    assert np.array_equal(np.asarray(Image.open(alone)), whole["one"])


def test_parts_are_encoded_one_by_one(pipe: Any) -> None:
    text = "abcdefgh. ijklmnop"  # the full stop is where it is parted
    long = job(text, long_prompts=True, negative_prompt="no")
    ((places, found),) = TextCalls(pipe)([long])
    encode = lambda part: pipe.encode_prompt(part, "cpu", 1, False)[0]  # noqa: E731
    with torch.inference_mode():
        expected = torch.cat([encode("abcdefgh."), encode("ijklmnop")], dim=1)
        negative = torch.cat([encode("no"), encode("")], dim=1)
    assert places == [0]
    assert torch.allclose(found["prompt_embeds"], expected, atol=1e-5)
    assert torch.allclose(found["negative_prompt_embeds"], negative, atol=1e-5)


def test_a_batch_of_several_lengths_is_called_once_for_each(pipe: Any) -> None:
    texts = ["a", "b" * 20, "c" * 40, "d" * 21, "e"]
    calls = TextCalls(pipe)([job(text, long_prompts=True) for text in texts])
    assert [places for places, _ in calls] == [[0, 4], [1, 3], [2]]
    assert [found["prompt_embeds"].shape[:2] if found else None for _, found in calls] == [None, (2, 32), (1, 48)]


def test_weights_of_one_are_none_and_others_pull(pipe: Any) -> None:
    def embedded(text: str) -> Any:
        ((_, found),) = TextCalls(pipe)([job(text, prompt_weights=True)])
        return found.get("prompt_embeds")

    assert embedded("a cat") is None
    assert embedded("a (cat:1.0)") is None
    with torch.inference_mode():
        plain = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
        empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    strong, stronger = embedded("a (cat:1.5)"), embedded("a (cat:2)")
    assert torch.allclose(strong[:, 2:5], empty[:, 2:5] + 1.5 * (plain - empty)[:, 2:5], atol=1e-4)
    assert (stronger - plain).norm() > (strong - plain).norm() > 0
    assert embedded("a BREAK cat").shape[1] == 2 * LIMIT


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a (cat:1.3) b", ((("a ", 1.0), ("cat", 1.3), (" b", 1.0)),)),
        ("((a)) [b]", ((("a", 1.21), (" ", 1.0), ("b", 0.9091)),)),
        ("(a (b:1.5):2)", ((("a ", 2.0), ("b", 3.0)),)),
        (r"\(a\): b \\", (((r"(a): b " + "\\", 1.0),),)),
        ("a BREAK b", ((("a", 1.0),), (("b", 1.0),))),
        ("(a:1.)(b:+.5)(c:0)", ((("a", 1.0), ("b", 0.5), ("c", 0.0)),)),
        ("(wait: ...)", ((("wait: ...", 1.1),),)),
        ("BREAKFAST at 9:30", ((("BREAKFAST at 9:30", 1.0),),)),
        ("", ((),)),
    ],
)
def test_weights_are_read_as_the_web_ui_does(text: str, parts: Any) -> None:
    assert weighted_parts(text) == parts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(a", "a ( is not closed"),
        ("a)", "a ) closes nothing"),
        ("(a]", "a ] closes nothing"),
        ("[a:1.2)", "a ) closes"),
        ("[a:b:0.5]", "in the middle of a run"),
        ("[a|b]", "in the middle"),
        ("(a:-0.5)", "a weight is 0 or more (got -0.5)"),
    ],
)
def test_weights_that_are_not_understood(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="in the middle|" + words.replace("(", r"\(").replace(")", r"\)")):
        weighted_parts(text)
    assert (text_problem("StableDiffusionPipeline", job(text, prompt_weights=True)) or "").startswith("prompt: ")


def test_other_encoders_read_prompts_as_they_are(tmp_path: Path) -> None:
    for option in ("--long-prompts", "--prompt-weights"):
        for mode in ([], ["--dry-run"]):
            result = generate(tmp_path, "p", option, *mode, model="emoji-dit")
            assert result.exit_code == 2
            assert f"{option}: PixArtAlphaPipeline does not read with CLIP alone" in result.stderr


def test_what_looks_meant_is_said(tiny_sd: Path) -> None:
    source = models.resolve(tiny_sd)
    prompts = ["(cat:1.3)", "{a|b}", "__c__", "<lora:x:1>", "a BREAK b", "a", "(a) {b}", "1:2"]
    found = ["".join(notes)[:60] for notes in notes_of(source, *map(job, prompts))]
    assert [bool(note) for note in found] == [True] * 5 + [False] * 3
    assert "--prompt-weights" in notes_of(source, job("(cat:1.3)"))[0][0]
    assert "--dynamic-prompts" in notes_of(source, job("{a|b}"))[0][0]
    assert "--lora" in notes_of(source, job("<lora:x:1>"))[0][0]
    assert notes_of(source, job("(cat:1.3)", prompt_weights=True), templates=True) == [()]
    assert markup("a (cat:1.3)")
    assert not markup(r"a \(cat:1.3\)")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guidance_scale": 1.0}, "guidance is off at guidance_scale 1: raise it above 1"),
        ({"guidance_scale": 0.0}, "guidance is off at guidance_scale 0"),
        ({"guidance_scale": 3.0, "guidance": "self:delta=0.8"}, "--guidance self never looks at it"),
        ({"guidance_scale": 3.0}, ""),
        ({"guidance_scale": 3.0, "guidance": "one-time"}, ""),
        ({}, ""),
    ],
)
def test_a_negative_prompt_that_changes_nothing_is_said(tiny_sd: Path, settings: Any, words: str) -> None:
    ((*notes,),) = notes_of(models.resolve(tiny_sd), job("p", negative_prompt="no", **settings))
    assert [note.startswith("negative_prompt: it changes nothing, for ") for note in notes] == [True] * bool(words)
    assert words in "".join(notes)
    assert notes_of(models.resolve(tiny_sd), job("p", **settings)) == [()]


def test_what_concerns_many_rows_is_said_once(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a --n x\nb --n y\nc --n z\nd\n")
    for mode in (["--dry-run"], []):
        result = generate(tmp_path, tmp_path / "p.txt", "--guidance-scale", 1, *mode, model=tiny_sd)
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"{tmp_path / 'p.txt'}:1 and 2 more rows: negative_prompt: it changes nothing, for")
    assert generate(tmp_path, "d", "-q", "--guidance-scale", 1, "--negative-prompt", "x", model=tiny_sd).output == ""


def test_templates_are_drawn_with_the_pictures_seed(tmp_path: Path) -> None:
    (tmp_path / "colour.txt").write_text("red\nblue\n")
    draw = Templates(tmp_path)
    drawn = [draw("a {big|small} __colour__ cat", seed) for seed in range(20)]
    assert drawn == [draw("a {big|small} __colour__ cat", seed) for seed in range(20)]
    assert set(drawn) == {f"a {size} {colour} cat" for size in ("big", "small") for colour in ("red", "blue")}
    assert draw("50% # (x:1.2) as it is", 0) == "50% # (x:1.2) as it is"
    for bad, words in {"{a|b": "cannot be read", "__sky__": "no wildcard __sky__ in", "{a|b} # c": "#"}.items():
        with pytest.raises(ValueError, match=words):
            draw(bad, 0)
    with pytest.raises(InputError, match="no such folder"):
        Templates(tmp_path / "nowhere")


@pytest.mark.slow
def test_drawn_prompts_are_recorded_and_bad_templates_cost_their_rows(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("{a|b|c|d|e|f}\n__nothing__\n")
    arguments = (tmp_path / "p.txt", "--dynamic-prompts", "--num-images", 6, "--seed", 0)
    for mode in (["--dry-run"], []):
        result = generate(tmp_path, *arguments, *mode, model=tiny_sd)
        assert (result.exit_code, "p.txt:2: prompt: no wildcard __nothing__" in result.stderr) == (3, True)
    records = [record for record in read_manifest(tmp_path / "out").values() if record.status == "done"]
    prompts = {record.settings["prompt"] for record in records}
    assert len(records) == 6
    assert len(prompts) > 1
    assert prompts <= set("abcdef")
    again = generate(tmp_path, *arguments, "--format", "json", model=tiny_sd)
    assert json.loads(again.stdout)["skipped"] == 6


@pytest.mark.parametrize("model", ["emoji-sd", "emoji-dit"])
def test_the_tokens_of_words_add_up_to_those_of_texts(model: str) -> None:
    limits, draw = TextLimits(models.resolve(model)), random.Random(0)
    letters = "abc xyz'é猫 1234 ,.!<|endoftext|> \t\u00a0\u3000\n don't 🙂👩‍🚀 ABC "
    texts = ["".join(draw.choices(letters, k=draw.randrange(5, 80))) for _ in range(500)]
    texts += ["\u732b\u3068" * 100, *(("it's 1234 " * n) + "e\u0301nd <|endoftext|>1a" for n in range(60))]
    found = limits.lost(texts)
    assert limits.reach is not None
    encoded = limits._tokenizer.encode_batch(texts)
    whole = [_beyond(text, each, limits.reach[1]) for text, each in zip(texts, encoded, strict=True)]
    assert found == whole
    assert any(found)
    assert not all(found)
    assert max(map(len, limits._words)) <= LONGEST_WORD


def test_what_looks_meant_in_a_negative_prompt_is_said(tiny_sd: Path) -> None:
    source = models.resolve(tiny_sd)
    (notes,) = notes_of(source, job("a", negative_prompt="(blurry:1.4)", guidance_scale=3.0))
    assert "negative_prompt: weights such as" in notes[0]
    (notes,) = notes_of(source, job("a", negative_prompt="(blurry:1.4)", guidance_scale=1.0))
    assert ["it changes nothing" in note for note in notes] == [True]


def test_templates_of_negative_prompts_are_drawn_too(tmp_path: Path) -> None:
    texts = {"prompt": "{a|b} cat", "negative_prompt": "{blurry|dark}"}
    found = [drawn(Templates(tmp_path), texts, seed) for seed in range(20)]
    assert {each["negative_prompt"] for each in found} == {"blurry", "dark"}
    planner = Planner(
        PictureSettings(negative_prompt="{x|}"), Ingredients("m", "float32"), draw_text=Templates(tmp_path)
    )
    jobs = [planner(PlacedRow(f"p:{n}", PromptRow(prompt="a", seed=n)))[0][1] for n in range(20)]
    assert {each.negative_prompt for each in jobs} == {"x", ""}
    planner(PlacedRow("p:0", PromptRow(prompt="a", negative_prompt="{x", custom_id="z")))
    assert planner.bad[0].error.startswith("negative_prompt: a template that cannot be read")


def test_a_control_scale_without_control_is_said(tiny_sd: Path) -> None:
    source = models.resolve(tiny_sd)
    assert "control_scale: it changes nothing" in notes_of(source, job("a", control_scale=0.5))[0][0]
    assert notes_of(source, job("a", control_scale=0.5, control_image="x.png", controlnet="n"), controlnet=True) == [()]


def test_every_vector_of_a_learned_word_is_a_token(tiny_sd: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(9, 16)}, tmp_path / "Glow.safetensors")
    limits = TextLimits(models.resolve(tiny_sd), vectors_of(str(tmp_path / "Glow.safetensors")))
    assert limits.lost(["a gLOW cat", "a gLOW cats", "abcdefghijklmn"]) == ["", "", ""]
    assert limits.lost(["a gLOW catfish", "a glow, cats"]) == ["ish", "s"]
    found = notes_of(models.resolve(tiny_sd), job("a glow catfish"), embeddings=str(tmp_path / "Glow.safetensors"))
    assert "not read: 'ish'" in found[0][0]

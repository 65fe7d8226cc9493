"""Every setting is decided once, in a fixed order, and a job's name and seed depend on its row alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diffaccel import models
from diffaccel.batch.jobs import Ingredients, Job, JobPlan, Planner, batches, dealt, plan_jobs, row_id
from diffaccel.batch.readers import BadRow, PlacedRow
from diffaccel.batch.settings import PictureSettings, PromptRow


def plan(
    *rows: PromptRow | BadRow, model: str = "some/model", num_images: int = 1, cache: str = "none", **options: object
) -> JobPlan:
    settings = PictureSettings.model_validate(options)
    placed = [row if isinstance(row, BadRow) else PlacedRow(f"p:{line}", row) for line, row in enumerate(rows, 1)]
    return plan_jobs(placed, Planner(settings, Ingredients(model, "float32"), cache=cache, num_images=num_images))


def test_row_comes_before_options_before_the_models_defaults() -> None:
    first, second = plan(
        PromptRow(prompt="a", steps=5), PromptRow(prompt="b"), model="emoji-sd", steps=7, guidance_scale=3.0
    ).jobs
    assert (first.steps, second.steps) == (5, 7)
    assert first.guidance_scale == 3.0
    assert (first.scheduler, first.width, first.cache) == ("dpm++", 128, "none")


def test_a_bundled_lora_brings_its_own_defaults() -> None:
    (job,) = plan(PromptRow(prompt="a"), model="emoji-sd", lora="emoji-lcm-lora").jobs
    assert (job.steps, job.guidance_scale, job.scheduler, job.cache, job.width) == (4, 1.0, "lcm", "none", 128)


def test_bundled_model_is_cached_by_default() -> None:
    assert plan(PromptRow(prompt="a"), model="emoji-sd").jobs[0].cache == models.defaults("emoji-sd")["cache"]


@pytest.mark.parametrize(("steps", "cached"), [(None, True), (10, True), (9, False)])
def test_few_steps_are_not_cached_unless_asked(steps: int | None, cached: bool) -> None:
    rows = (PromptRow(prompt="a", steps=steps), PromptRow(prompt="b", steps=steps, cache="deepcache:interval=2"))
    default, asked = plan(*rows, cache="deepcache").jobs
    assert default.cache == ("deepcache" if cached else "none")
    assert asked.cache == "deepcache:interval=2"


def test_id_and_seed_depend_on_the_row_alone() -> None:
    alone = plan(PromptRow(prompt="A red  heart!")).jobs[0]
    among = plan(PromptRow(prompt="b"), PromptRow(prompt="A red  heart!"), num_images=3, steps=9).jobs
    assert alone.id == among[3].id == row_id(PromptRow(prompt="A red  heart!"))
    assert alone.id.startswith("a-red-heart-")
    assert [job.seed - alone.seed for job in among[3:]] == [0, 1, 2]
    assert [job.id.removeprefix(alone.id) for job in among[3:]] == ["", "-2", "-3"]


def test_given_seed_counts_up() -> None:
    assert [
        job.seed for job in plan(PromptRow(prompt="a"), PromptRow(prompt="b", seed=40), num_images=2, seed=7).jobs
    ] == [
        7,
        8,
        40,
        41,
    ]


def test_seeds_begin_again_after_the_last() -> None:
    assert [job.seed for job in plan(PromptRow(prompt="a", seed=2**64 - 1), num_images=2).jobs] == [2**64 - 1, 0]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("心", "心"),
        ("Ein schöner Käfer", "ein-schoner-kafer"),
        ("й в небе", "й-в-небе"),
        ("が", "が"),
        ("\u0932\u093e\u0932 \u0926\u093f\u0932", "\u0932\u093e\u0932-\u0926\u093f\u0932"),  # with its vowels
        ("cafe\u0301 \u2764\ufe0f noir", "cafe-noir"),
        ("!?", "image"),
        ("漢" * 50, "漢" * 20),
    ],
)
def test_ids_have_words_in_the_letters_of_their_script(prompt: str, words: str) -> None:
    assert row_id(PromptRow(prompt=prompt)).rpartition("-")[0] == words


def test_repeated_rows_are_counted_and_rendered_once() -> None:
    result = plan(PromptRow(prompt="a"), PromptRow(prompt="a"), PromptRow(prompt="a", seed=1), num_images=2)
    assert len(result.jobs) == 4
    assert result.duplicates == 2


def test_one_id_for_two_rows_is_refused() -> None:
    result = plan(PromptRow(prompt="a", custom_id="One"), PromptRow(prompt="b", custom_id="one"))
    assert [job.prompt for job in result.jobs] == ["a"]
    problem = "custom_id one: p:1 has this id too and other settings; that one is rendered"
    assert result.bad == (BadRow("p:2", problem),)
    assert result.places == {"One": "p:1"}


def test_fingerprint_covers_everything_but_the_name() -> None:
    job = Job(id="a", prompt="p", seed=1, model="m", dtype="float32")
    assert replace(job, id="b").fingerprint == job.fingerprint
    changes = {"prompt": "q", "seed": 2, "model": "n", "dtype": "float16", "negative_prompt": "n", "steps": 3}
    changes |= {"guidance_scale": 1.0, "width": 8, "height": 8, "scheduler": "lcm", "cache": "c", "lora": "l"}
    changes |= {"init_image": "i", "strength": 0.5, "guidance": "self", "vae": "v"}
    assert len({replace(job, **{key: value}).fingerprint for key, value in changes.items()} | {job.fingerprint}) == 17


def test_batches_are_full_and_share_their_settings() -> None:
    rows = [PromptRow(prompt=f"p{number}", steps=2 + number % 2) for number in range(7)]
    sizes = [[job.steps for job in batch] for batch in batches(plan(*rows).jobs, 3)]
    assert sizes == [[2, 2, 2], [2], [3, 3, 3]]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_shards_are_the_batches_of_the_whole_dealt_out(batch_size: int) -> None:
    jobs = plan(*(PromptRow(prompt=f"p{number}", steps=2 + number % 2) for number in range(41))).jobs
    parts = dealt(jobs, 4, batch_size)
    assert sorted(job.id for part in parts for job in part) == sorted(job.id for job in jobs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 2 * batch_size
    assert {batch for part in parts for batch in batches(part, batch_size)} == set(batches(jobs, batch_size))


def test_a_start_keeps_its_shape_to_the_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (37, 37)).save(tmp_path / "a.png")
    for side in ("width", "height"):
        (job,) = plan(PromptRow(prompt="a", init_image=str(tmp_path / "a.png"), **{side: 312})).jobs
        assert (job.width, job.height) == (312, 312)


def test_pictures_of_long_names_are_told_apart(tmp_path: Path) -> None:
    names = [f"{'a-long-name-of-an-experiment-' * 2}{number}{end}" for number in (1, 2) for end in ("", " (1)")]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    found = plan(PromptRow(prompt="a", init_image=str(tmp_path)))
    assert [job.init_image for job in found.jobs] == sorted(str(tmp_path / f"{name}.png") for name in names)
    assert not found.bad

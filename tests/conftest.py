"""Shared fixtures: one thread, no network, and tiny models with random weights."""

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
# Of the programs that tests start, too: two of them with a thread for each core wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Stable Diffusion pipeline with random weights, as `save_pretrained` writes it."""
    from tiny_pipeline import build

    folder = tmp_path_factory.mktemp("tiny-sd")
    build(tmp_path_factory.mktemp("tokenizer")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_pipe(tiny_sd: Path) -> Any:
    """The pipeline in `tiny_sd`, loaded anew for every module."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_lora(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with LoRA weights for `tiny_sd` that change its pictures visibly."""
    from tiny_pipeline import build_lora

    folder = tmp_path_factory.mktemp("tiny-lora")
    build_lora(tiny_sd, folder)
    return folder

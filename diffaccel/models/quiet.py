"""Silence for messages that are known to be harmless: each by its logger and its words, only while a model loads.

- `AutoencoderTiny` saves a key (`block_out_channels`) that it does not accept back, and says so on every load.
- Stable Diffusion pipelines are annotated with `AutoencoderKL` and report any other autoencoder, the tiny one included.
- PixArt pipelines are annotated with T5 and report the small CLIP text encoder of emoji-dit; so they do a PT-DiT.
- A LoRA for the denoiser alone has no keys for the text encoder, and the other way round.
- A network is cast none of whose modules has to stay in float32, which is said all the same.
- Of a file that holds averaged weights, too, the others are read, as everywhere; the option that is named is none here.
- An encoder that learns words is made larger by some, each of which is given its vector then.
- transformers recommends torchvision whenever an image processor is imported; no pipeline here uses that processor.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

_HARMLESS = {
    "diffusers.configuration_utils": r"attributes \{'block_out_channels': .*\} were passed to AutoencoderTiny",
    "diffusers.models.modeling_utils": r"that should be kept in float32: \[\]",
    "diffusers.pipelines.pipeline_utils": (
        r"Expected types for (vae: .*, got .*AutoencoderTiny|text_encoder: .*T5.*, got .*CLIPText|"
        r"transformer: .*PixArt.*, got .*PTDiT)"
    ),
    "diffusers.loaders.lora_base": r"No LoRA keys associated to CLIPTextModel",
    "diffusers.loaders.peft": r"No LoRA keys associated to UNet2DConditionModel",
    "diffusers.loaders.single_file_utils": r"only the non-EMA weights are extracted",
    "transformers.modeling_utils": r"The new embeddings will be initialized from a multivariate normal",
    "transformers.utils.import_utils": r"`\w+ImageProcessor` requires torchvision",
}


def hold_back_lengths() -> None:
    """From now on, hold back what libraries say of prompts that are too long: callers name the words."""
    for library in ("diffusers", "transformers"):
        import_module(f"{library}.utils.logging").get_logger()  # sets up the handlers
        for handler in logging.getLogger(library).handlers:
            handler.addFilter(_LENGTHS)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hold back the known harmless messages and the loading bars inside the block, and nothing else."""
    with _no_messages(), _no_bars("diffusers.utils.logging"), _no_bars("transformers.utils.logging"):
        yield


@contextmanager
def _no_messages() -> Iterator[None]:
    filters = {name: _drop(pattern) for name, pattern in _HARMLESS.items()}
    loggers = {name: logging.getLogger(name) for name in filters}
    for name, logger in loggers.items():
        logger.addFilter(filters[name])
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.removeFilter(filters[name])


def _drop(pattern: str) -> logging.Filter:
    class Drop(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return re.search(pattern, record.getMessage()) is None

    return Drop()


_LENGTHS = _drop("input was truncated because|is longer than the specified maximum")


@contextmanager
def _no_bars(module: str) -> Iterator[None]:
    bars = import_module(module)
    was_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            bars.enable_progress_bar()

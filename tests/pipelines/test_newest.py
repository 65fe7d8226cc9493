"""Methods in pipelines of worlds, characters and sound, and in variants of others, against the walk's references."""

import pytest
import torch
import walk
import walk_newest
import walk_variants

pytestmark = pytest.mark.filterwarnings("ignore")  # what stock pipelines say of tiny parts
STOPS = {stop.name: stop for stop in (*walk_newest.STOPS, *walk_variants.STOPS)}
REFUSED = {
    "AnimateDiffSparseControlNetPipeline": (),
    "BriaFiboEditPipeline": (),
    "BriaFiboPipeline": (),
    "ChromaInpaintPipeline": (),
    "Cosmos2TextToImagePipeline": ("ResidualGuidance",),
    "Cosmos2VideoToWorldPipeline": ("ResidualGuidance",),
    "Cosmos2_5_PredictBasePipeline": (),
    "CosmosTextToWorldPipeline": ("ResidualGuidance",),
    "CosmosVideoToWorldPipeline": ("ResidualGuidance",),
    "DreamLiteMobilePipeline": (),
    "DreamLitePipeline": ("ResidualGuidance", "TGate"),
    "DreamLitePipeline, edit": (),
    "HeliosPyramidPipeline": (),
    "HunyuanDiTControlNetPipeline": (),
    "HunyuanImageRefinerPipeline": (),
    "HunyuanVideo15ImageToVideoPipeline": (),
    "IFImg2ImgSuperResolutionPipeline": (),
    "IFInpaintingSuperResolutionPipeline": (),
    "Ideogram4Pipeline": (),
    "Kandinsky5I2IPipeline": (),
    "Kandinsky6TI2VAPipeline": ("ResidualGuidance",),
    "LTX2ConditionPipeline": ("ResidualGuidance", "TGate"),
    "LTX2HDRPipeline": (),
    "LTX2HDRPipeline, guided": ("ResidualGuidance", "TGate"),
    "LTX2ImageToVideoPipeline": ("ResidualGuidance", "TGate"),
    "LTX2InContextPipeline": ("ResidualGuidance", "TGate"),
    "LongCatAudioDiTPipeline": (),
    "MotifVideoImage2VideoPipeline": (),
    "PRXPixelPipeline": (),
    "SanaImageToVideoPipeline": ("ResidualGuidance",),
    "StableAudio3AudioToAudioPipeline": (),
    "StableAudio3InpaintPipeline": (),
    "StableAudio3Pipeline": (),
    "WanAnimatePipeline": (),
    "ZImageControlNetInpaintPipeline": ("ResidualGuidance",),
    "ZImageControlNetPipeline": ("ResidualGuidance",),
    "ZImageOmniPipeline": ("ResidualGuidance",),
}
"""For each pipeline what it refuses; all else that fits is exact."""


def holds(name: str, dtypes: tuple[torch.dtype, ...] = walk.DTYPES) -> None:
    found = list(walk.rows(STOPS[name], dtypes))
    assert found
    for method, dtype, text in found:
        said = walk.REFUSED if method in REFUSED[name] else walk.EXACT
        assert text.partition(":")[0] == said, f"{method} in {dtype}: {text}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CosmosTextToWorldPipeline", "Ideogram4Pipeline"])
def test_schedulers_asked_twice_and_networks_beside_each_other(name: str) -> None:
    holds(name, (torch.float32,))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", REFUSED)
def test_all_of_them(name: str) -> None:
    holds(name)


def test_each_of_them_is_listed() -> None:
    assert REFUSED.keys() == STOPS.keys()

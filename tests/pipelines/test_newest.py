"""Methods in pipelines of worlds, characters and sound, against the walk's references; in single precision alone."""

import pytest
import torch
import walk
import walk_newest

pytestmark = pytest.mark.filterwarnings("ignore")  # what stock pipelines say of tiny parts
STOPS = {stop.name: stop for stop in walk_newest.STOPS}
REFUSED = {
    "BriaFiboPipeline": (),
    "Cosmos2TextToImagePipeline": ("ResidualGuidance",),
    "Cosmos2VideoToWorldPipeline": ("ResidualGuidance",),
    "CosmosTextToWorldPipeline": ("ResidualGuidance",),
    "CosmosVideoToWorldPipeline": ("ResidualGuidance",),
    "DreamLitePipeline": ("ResidualGuidance", "TGate"),
    "DreamLitePipeline, edit": (),
    "HunyuanDiTControlNetPipeline": (),
    "Ideogram4Pipeline": (),
    "Kandinsky6TI2VAPipeline": ("ResidualGuidance",),
    "LTX2ConditionPipeline": ("ResidualGuidance", "TGate"),
    "LTX2ImageToVideoPipeline": ("ResidualGuidance", "TGate"),
    "LongCatAudioDiTPipeline": (),
    "PRXPixelPipeline": (),
    "SanaImageToVideoPipeline": ("ResidualGuidance",),
    "StableAudio3Pipeline": (),
    "WanAnimatePipeline": (),
    "ZImageControlNetPipeline": ("ResidualGuidance",),
}
"""For each pipeline what it refuses; all else that fits is exact."""


def holds(name: str) -> None:
    found = {method: text for method, _, text in walk.rows(STOPS[name], (torch.float32,))}
    said = {method: walk.REFUSED if method in REFUSED[name] else walk.EXACT for method in found}
    assert {method: text.partition(":")[0] for method, text in found.items()} == said
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CosmosTextToWorldPipeline", "Ideogram4Pipeline"])
def test_schedulers_asked_twice_and_networks_beside_each_other(name: str) -> None:
    holds(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", REFUSED)
def test_all_of_them(name: str) -> None:
    holds(name)


def test_each_of_them_is_listed() -> None:
    assert REFUSED.keys() == STOPS.keys()

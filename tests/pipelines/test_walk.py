"""Methods in diffusers' pipelines, against references that know each pipeline's calls."""

import pytest
import torch
import walk

from diffaccel import TGate, accelerate

pytestmark = pytest.mark.filterwarnings("ignore")  # what stock pipelines say of tiny parts
QUICK = [name for name, stop in walk.STOPS.items() if not stop.slow]
SLOW = [name for name, stop in walk.STOPS.items() if stop.slow]


def table() -> dict[str, dict[str, str]]:
    """The document's table: outcomes by pipeline and method."""
    lines = [line for line in walk.PAGE.read_text().splitlines() if line.startswith("| ")]
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows if not row[0].startswith("---")}


def places(text: str) -> list[str]:
    """Where the document says this, word for word."""
    begin = walk.noted(text)
    found = [line for line in walk.PAGE.read_text().splitlines() if line.startswith(begin)]
    return [place for line in found for place in line.removeprefix(begin).removesuffix(".").split("; ")]


def agrees(name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    said, found = table()[name], {}
    for method, dtype, text in walk.rows(walk.STOPS[name], dtypes):
        assert not text.startswith("WRONG"), f"{method} in {dtype}: {text}"
        found[method] = walk.outcome({dtype: text})
        assert found[method] in said[method]
        assert text == walk.EXACT or f"{method} in {name}" in places(text)
    assert found.keys() == {method for method, cell in said.items() if cell}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "DiTPipeline",
        "FluxPipeline",
        "WanPipeline, 2.2",
        "CosmosTextToWorldPipeline",  # asks its scheduler twice
        "Ideogram4Pipeline",  # two networks in every step
        "DreamLitePipeline",
        "UnCLIPPipeline, prior",
    ],
)
def test_quick_pipelines(name: str) -> None:
    agrees(name, (torch.float32,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FluxKontextPipeline, true guidance"])
def test_half_precision(name: str) -> None:
    agrees(name, (torch.bfloat16,))


@pytest.mark.slow
def test_a_gate_on_three_rows_that_hide_their_guidance_is_refused() -> None:
    stop = walk.STOPS["DreamLitePipeline, edit"]
    pipe = walk.built(stop, torch.float32)
    with accelerate(pipe, TGate(2)), pytest.raises(ValueError, match="guided"):
        walk.made_by(pipe, stop, torch.float32)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*SLOW, *QUICK])
def test_all_pipelines(name: str) -> None:
    agrees(name, walk.DTYPES)


def test_the_document_lists_every_pipeline() -> None:
    found = table()
    assert list(found) == list(walk.STOPS)
    assert not [cell for row in found.values() for cell in row.values() if "WRONG" in cell]
    classes = {name.partition(",")[0] for name in walk.STOPS}
    assert len(classes) >= 40
    assert walk.PAGE.read_text().startswith(walk.head(len(classes)))


def test_a_wrong_method_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With calls of both prompts taken for one, the walk fails, as it must."""
    from diffaccel.runtime.contexts import Contexts

    monkeypatch.setattr(Contexts, "of", lambda self, inputs, name, step, peek=False: ("all", 0, (), None, 0))
    stop = walk.STOPS["FluxKontextPipeline, true guidance"]
    with pytest.raises(AssertionError, match="differs"):
        walk.walk(stop, "IntervalCache", torch.float32)

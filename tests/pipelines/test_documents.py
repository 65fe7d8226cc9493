"""The pipelines' pages are what their script wrote of what it measured; their examples and the notebook run."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from pipeline_docs.pages import PAGES, Page
from pipeline_docs.writing import markdown

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

FILES = sorted(
    file.stem for file in (ROOT / "pipelines").glob("*.py") if file.stem not in ("__init__", "base", "stock")
)
EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_every_pipeline_has_a_page() -> None:
    assert sorted(page.name for page in PAGES) == FILES


@EVERY
def test_pages_say_what_was_measured(page: Page) -> None:
    figures = json.loads((ROOT / "docs" / "pipelines" / "figures.json").read_text()).get(page.name)
    assert (ROOT / "docs" / "pipelines" / f"{page.name}.md").read_text() == markdown(page, figures)
    if not page.variants:
        assert figures is None
        return
    assert list(figures["rows"]) == list(page.variants)
    with Image.open(ROOT / "docs" / "pictures" / "pipelines" / f"{page.name}.png") as sheet:
        assert sheet.height > sheet.width // 4
        assert len(sheet.convert("RGB").getcolors(2**24) or []) > 100


@EVERY
def test_examples_run(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "pipelines" / f"{page.name}.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(code.replace('"num_inference_steps": 20', '"num_inference_steps": 4'), names)
    images = names["images"]
    pictures = images.frames[0] if "frames" in images else images.images
    assert all(picture.size == (128, 128) for picture in pictures)
    assert any(len(set(picture.convert("L").tobytes())) > 20 for picture in pictures)


def test_the_notebook_runs() -> None:
    notebook = nbformat.read(ROOT / "samples" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in outputs)
    assert "replayed" in printed
    assert "pictures a second" in printed

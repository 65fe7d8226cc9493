"""Lay every custom pipeline out as a folder that can be uploaded to the Hub as it is: pipeline.py and README.md.

    python scripts/make_hub_folders.py --output hub
    hf upload you/fast-text-to-image hub/fast-text-to-image

Then `DiffusionPipeline.from_pretrained(model, custom_pipeline="you/fast-text-to-image", trust_remote_code=True)`.
"""

from __future__ import annotations

import argparse
import ast
import shutil
from pathlib import Path

PIPELINES = Path(__file__).parents[1] / "pipelines"
CARD = """---
license: apache-2.0
library_name: diffusers
tags: [diffusers, custom-pipeline, diffaccel]
---
# {name}

{doc}

Needs `pip install diffaccel`. Load it with `custom_pipeline=` and `trust_remote_code=True`.
"""


def files() -> list[Path]:
    """The custom pipelines, one file each."""
    return sorted(f for f in PIPELINES.glob("*.py") if f.name != "__init__.py")


def make(file: Path, output: Path) -> Path:
    """One folder."""
    folder = output / file.stem.replace("_", "-")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / "pipeline.py")
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    (folder / "README.md").write_text(CARD.format(name=folder.name, doc=doc))
    return folder


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("hub"))
    args = parser.parse_args()
    for file in files():
        print(make(file, args.output))


if __name__ == "__main__":
    main()

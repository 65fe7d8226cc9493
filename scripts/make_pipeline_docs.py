"""Run the example of every custom pipeline and write docs/pipelines: `python scripts/make_pipeline_docs.py`.

--only NAME   one pipeline; the figures of the others stay as they were measured
--write-only  run nothing, write the pages from what was measured
"""

import argparse
import json
from pathlib import Path

from pipeline_docs.measuring import examine
from pipeline_docs.pages import PAGES
from pipeline_docs.writing import markdown

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES, PICTURES = DOCS / "pipelines" / "figures.json", DOCS / "pictures" / "pipelines"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[page.name for page in PAGES])
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    FIGURES.parent.mkdir(exist_ok=True)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for page in PAGES:
        if page.variants and not args.write_only and args.only in (None, page.name):
            figures[page.name], sheet = examine(page, args.rounds)
            sheet.save(PICTURES / f"{page.name}.png")
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            print(f"{page.name}: {sheet.size}", flush=True)
        if page.name in figures or not page.variants:
            (FIGURES.parent / f"{page.name}.md").write_text(markdown(page, figures.get(page.name)), encoding="utf-8")


if __name__ == "__main__":
    main()

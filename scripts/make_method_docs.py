"""Fill the tables of docs/methods.md: `python scripts/make_method_docs.py`.

The page is written by hand, but for what stands between `<!-- DeepCache: parameters -->` and `<!-- end -->`:
parameters, with their defaults, come from the classes and their docstrings, and `figures` from the published reports.
"""

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import diffaccel
from diffaccel.methods import Method

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"
REPORTS = ("emoji-sd", "emoji-dit")
TABLE = re.compile(r"(<!-- (\w+): (parameters|figures) -->\n).*?(<!-- end -->)", re.DOTALL)


def write() -> None:
    """Fill the tables."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """The page with its tables as they should be."""
    tables = {"parameters": parameters, "figures": figures}
    return TABLE.sub(lambda m: m[1] + tables[m[3]](getattr(diffaccel, m[2])) + m[4], page)


def parameters(config: type) -> str:
    """A row for each field of a configuration, in the order in which text takes them without their names."""
    about = described(config)
    lines = ["| parameter | default | meaning |", "|---|---|---|"]
    for field in fields(config):
        default = "required" if field.default is MISSING else f"`{field.default!r}`"
        lines.append(f"| `{field.name}` | {default} | {about[field.name]} |")
    return "\n".join(lines) + "\n"


def described(config: type) -> dict[str, str]:
    """What the docstrings of a configuration and of its bases say about each field."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        _, _, block = (cls.__doc__ or "").partition("    Args:\n")
        for name, text in re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", block.partition("\n\n")[0], re.MULTILINE):
            found[name] = " ".join(text.split()).replace("``", "`").replace("|", r"\|")
    return found


def figures(method: type[Method]) -> str:
    """What the published reports measured of a method."""
    lines = ["| network | settings | times as fast | PSNR, dB | SSIM |", "|---|---|--:|--:|--:|"]
    for network in REPORTS:
        report = json.loads((ROOT / "benchmarks" / network / "report.json").read_text(encoding="utf-8"))
        for row in report["rows"]:
            if re.match(r"\w+", row["name"])[0] == method.__name__.lower() and row["kind"] == "diffaccel":  # type: ignore[index]
                lines.append(f"| {network} | {_row(row)} |")
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    quality = row["quality"]
    name = row["name"] if " " in row["name"] else f"`{row['name']}`"
    return f"{name} | {row['speedup']:.2f} | {quality['psnr']:.1f} | {quality['ssim']:.3f}"


if __name__ == "__main__":
    write()

"""Fill the tables of docs/methods.md and docs/pt-dit.md: `python scripts/make_method_docs.py`.

The pages are written by hand, but for what stands between `<!-- DeepCache: parameters -->` and `<!-- end -->`:
parameters, with their defaults, come from the classes and their docstrings, `figures` from the published reports,
`equal` and `best` from the tables of caches at equal cost, `saved` from those of fewer tokens, `trained` from what
`evaluate_models.py --json` wrote, and `streams` from what
the classes say of streams, on tiny networks that each works on.
"""

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from benchmarks.equal import COMPUTES_ALL, SLACK, best_rival
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

import diffaccel
from diffaccel.config import ordered_fields
from diffaccel.methods import Calibration, DeepCache, KindSteps, MagCurve, Method
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.networks.layout import Layout

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"
PAGES = (PAGE, ROOT / "docs" / "pt-dit.md")
REPORTS = ("emoji-sd", "emoji-dit")
SHAPES = {"TokenReduction": "sd15", "PTDiTTransformer2DModel": "ptdit"}  # names of the measured files
BUDGETS = (0.7, 0.5, 0.35)
TABLE = re.compile(
    r"(<!-- (\w+): (parameters|figures|streams|equal|best|saved|trained) -->\n).*?(<!-- end -->)", re.DOTALL
)


def write() -> None:
    """Fill the tables."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """The page with its tables as they should be."""
    tables = {
        "parameters": parameters,
        "figures": figures,
        "streams": streams,
        "equal": equal,
        "best": best,
        "saved": saved,
        "trained": trained,
    }
    return TABLE.sub(lambda m: m[1] + tables[m[3]](named(m[2])) + m[4], page)


def named(name: str) -> type:
    """The class of that name."""
    return Method if name == "Method" else getattr(diffaccel, name)


def parameters(config: type) -> str:
    """A row for each field of a configuration, in the order in which text takes them without their names."""
    about = described(config)
    lines = ["| parameter | default | meaning |", "|---|---|---|"]
    for field in own_fields(config):
        default = "required" if field.default is MISSING else f"`{field.default!r}`"
        lines.append(f"| `{field.name}` | {default} | {about[field.name]} |")
    return "\n".join(lines) + "\n"


def own_fields(config: type) -> list[Any]:
    """Fields that a table shows: of a method, those that it does not have as every method has them."""
    shared = {f.name: f for f in fields(Method)} if config is not Method and issubclass(config, Method) else {}
    return [f for f in ordered_fields(config) if f.name not in shared or f.default != shared[f.name].default]


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
        reports = sorted((ROOT / "benchmarks" / network).glob("*.json"))
        before = len(lines)
        for row in (row for report in reports for row in json.loads(report.read_text(encoding="utf-8"))["rows"]):
            if re.match(r"\w+", row["name"])[0] == method.__name__.lower() and row["kind"] == "diffaccel":  # type: ignore[index]
                lines.append(f"| {network} | {_row(row)} |")
        if len(lines) > before:
            floor = json.loads((reports[0].parent / "report.json").read_text(encoding="utf-8"))["different_seed_floor"]
            lines.append(f"| {network} | *different seed (floor)* | | {floor['psnr']:.1f} | {floor['ssim']:.3f} |")
    return "\n".join(lines) + "\n"


def equal(method: type[Method]) -> str:
    """What of a method was run at counted cost: the settings that no other one of it beats."""
    lines = ["| network | settings | MACs | PSNR, dB | SSIM | against diffusers' best |", "|---|---|--:|--:|--:|--:|"]
    for network, rows in _equal_costs():
        own = {name: row for name, row in rows.items() if re.match(r"\w+", name)[0] == method.__name__.lower()}  # type: ignore[index]
        for name, row in sorted(own.items(), key=lambda item: -item[1]["macs"]):
            if not any(_beats(other, row) for other in own.values()):
                figures = f"{row['macs']:.2f} | {row['psnr']:.1f} | {row['ssim']:.3f}"
                lines.append(f"| {network} | `{name}` | {figures} | {_gain(row, rows)} |")
    return "\n".join(lines) + "\n"


def best(_: type) -> str:
    """For some costs the best of this package, of diffusers' own caches, and fewer steps."""
    lines = ["| network | MACs | diffaccel | dB | diffusers | dB | steps | dB |", "|---|--:|---|--:|---|--:|--:|--:|"]
    for network, rows in _equal_costs():
        for budget in BUDGETS:
            found = [_most_alike(rows, whose, budget) for whose in ("diffaccel", "diffusers", "steps")]
            cells = [f"{_code(name, whose)} | {psnr:.1f}" if name else " | " for name, whose, psnr in found]
            lines.append(f"| {network} | {budget:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def saved(cls: type) -> str:
    """Shares of multiply-accumulates and of time that fewer tokens save, and how much of the one the other is."""
    lines = ["| | settings | MACs saved | time saved | of that |", "|---|---|--:|--:|--:|"]
    for file in sorted((ROOT / "benchmarks").glob(f"tokens-{SHAPES[cls.__name__]}-*.json")):
        parts = json.loads(file.read_text(encoding="utf-8"))
        for title, rows in (table for part in parts.keys() - {"machine"} for table in parts[part].items()):
            for name, row in rows.items():
                shares = [f"{row[key]:.1%}" if key in row else "" for key in ("MACs saved", "time saved", "reached")]
                if any(shares) and name != "plain":
                    lines.append(f"| {title.removesuffix(', float32')} | {name} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def trained(cls: type) -> str:
    """What networks of equal training draw, those of a class and what they are held against."""
    file = ROOT / "benchmarks" / f"trained-{SHAPES[cls.__name__]}.json"
    columns = {"top1": "top-1", "top5": "top-5", "unseen_colourings_top1": "unseen colourings", "pairs_top1": "pairs"}
    lines = [f"| | {' | '.join(columns.values())} | Fréchet distance |", "|---|--:|--:|--:|--:|--:|"]
    for name, row in json.loads(file.read_text(encoding="utf-8")).items():
        shares = " | ".join(f"{row[key]:.0%}" for key in columns)
        lines.append(f"| {name} | {shares} | {row['frechet_distance']:.3g} |")
    return "\n".join(lines) + "\n"


def _equal_costs() -> list[tuple[str, dict[str, Any]]]:
    """Each table of caches at equal cost, under the name of its network and run."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "benchmarks").glob("equal-*.json"))]
    runs = [f"{known['model']}, {known['steps']} steps{' of LCM' if known['lcm'] else ''}" for known in read]
    return [(run, known["rows"]) for run, known in zip(runs, read, strict=True)]


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a row is no more expensive and no less alike than another one, and better in one of both."""
    better = (-one["macs"], one["psnr"]), (-other["macs"], other["psnr"])
    return one is not other and all(a >= b for a, b in zip(*better, strict=True)) and better[0] != better[1]


def _gain(row: dict[str, Any], rows: dict[str, Any]) -> str:
    """How much nearer to the plain pictures than the best of diffusers' own caches that costs no more."""
    if row["macs"] > COMPUTES_ALL:
        return "computes everything"
    rival = best_rival(row, rows)
    return "none as cheap" if rival is None else f"{row['psnr'] - rows[rival]['psnr']:+.1f} dB"


def _most_alike(rows: dict[str, Any], whose: str, budget: float) -> tuple[str, str, float]:
    """The best within a cost."""
    allowed = {n: r["psnr"] for n, r in rows.items() if r["whose"] == whose and r["macs"] <= budget * SLACK}
    name = max(allowed, key=allowed.__getitem__, default="")
    return name, whose, allowed.get(name, 0.0)


def _code(name: str, whose: str) -> str:
    """A name as it is typed, where it is."""
    return f"`{name}`" if whose == "diffaccel" else name.removesuffix(" steps")


def streams(_: type) -> str:
    """How each method works in a stream, by stage and by frame, or why it does not."""
    layouts = [layout_of(network) for network in _networks()]
    lines = ["| method | by stage | by frame |", "|---|---|---|"]
    for name in diffaccel.methods.__all__:
        cls = getattr(diffaccel, name)
        if issubclass(cls, Method):
            lines.append(f"| [`{name.lower()}`](#{name.lower()}) | {' | '.join(_in_a_stream(cls, layouts))} |")
    return "\n".join(lines) + "\n"


def _networks() -> list[Any]:
    unet = UNet2DConditionModel(
        8, 4, 4, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    transformer = PixArtTransformer2DModel(
        2, 4, 4, 4, num_layers=2, cross_attention_dim=8, caption_channels=8, sample_size=8,
        use_additional_conditions=False,
    )  # fmt: skip
    return [unet, transformer]


def _in_a_stream(cls: type[Method], layouts: list[Layout]) -> tuple[str, str]:
    """By stage, by frame."""
    calibration = [
        Calibration(layout.model, layout.fingerprint, 4, 0.1, (KindSteps(layout.units[0].kind, (0, 2)),))
        for layout in layouts
        if layout.units
    ]
    curves = [MagCurve(layout.model, layout.fingerprint, "", (1.0,)) for layout in layouts if layout.blocks]
    given: dict[str, Any] = {
        "CalibratedCache": calibration,
        "LearnedCache": ["routers.json"],
        "MagCache": curves,
        "NetworkSwitch": ["emoji-sd"],
        "Profile": ["profile.json"],
        "Staged": [((DeepCache(2),), (DeepCache(3),))],
    }
    methods = [cls(value) for value in given[cls.__name__]] if cls.__name__ in given else [cls()]  # type: ignore[call-arg]
    reason = methods[0].no_stream
    if reason is not None:
        return (f"no: it {reason.partition(':')[0]}",) * 2  # type: ignore[return-value]
    parts: list[Any] = next(
        found for method in methods for layout in layouts if (found := _parts(method, layout)) is not None
    )
    if not any(part.schedule.counts_run for part in parts):
        return "yes", "yes"
    takes = "schedule" in {field.name for field in fields(cls)}
    ends = "its schedule counts the calls of a run, and a stream has no end"
    return (f"with `schedule=uniform(3)` or `threshold(0.15)`: {ends}" if takes else f"no: {ends}"), "yes"


def _parts(method: Method, layout: Layout) -> list[Any] | None:
    try:
        return method.parts(layout)
    except (UnsupportedModelError, ValueError):
        return None


def _row(row: dict[str, Any]) -> str:
    quality = row["quality"]
    name = row["name"] if " " in row["name"] else f"`{row['name']}`"
    return f"{name} | {row['speedup']:.2f} | {quality['psnr']:.1f} | {quality['ssim']:.3f}"


if __name__ == "__main__":
    write()

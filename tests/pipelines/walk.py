"""A walk through diffusers' pipelines: what each method does in each of them, against references made here.

`python tests/pipelines/walk.py [NAME...]` walks and, without names, writes docs/pipelines-walk.md.

The references know from the table which network call belongs to which sampling step and prompt, and work with forward
hooks of torch alone: outputs of the modules that are replayed are overridden by those of the last computed step.
"""

import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parents[1]):
    sys.path.insert(0, str(folder)) if str(folder) not in sys.path else None

import diffusers
import torch
import walk_adapters
import walk_edits
import walk_further_pictures
import walk_further_videos
import walk_newest
import walk_pictures
import walk_priors
import walk_rest
import walk_unets
import walk_variants
import walk_videos
from walk_parts import Draw, Stop
from walk_references import REFERENCES, Calls

from diffaccel.attach.handle import accelerate
from diffaccel.methods import BlockCache, DeepCache, IntervalCache, Method, ResidualGuidance, TextKVCache, TGate
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.reuse.schedule import Uniform

ROUTE = (
    walk_unets,
    walk_adapters,
    walk_edits,
    walk_pictures,
    walk_further_pictures,
    walk_videos,
    walk_further_videos,
    walk_newest,
    walk_variants,
    walk_priors,
    walk_rest,
)
STOPS = {stop.name: stop for part in ROUTE for stop in part.STOPS}
DTYPES = (torch.float32, torch.bfloat16)
PAGE = HERE.parents[1] / "docs" / "pipelines-walk.md"
EXACT, REFUSED, FULL = "exact", "refused", "in full"
# Relative errors up to which results count as the reference's: rows may be computed in other company.
NEAR = {torch.float32: 2e-3, torch.bfloat16: 0.06}


@dataclass(frozen=True)
class Try:
    """A method told to reuse nothing, and told to reuse."""

    never: Method
    reuse: Method


def tries(stop: Stop) -> dict[str, Try]:
    """The methods that fit a pipeline."""
    last = stop.steps
    return {
        "DeepCache": Try(DeepCache(interval=1), DeepCache(interval=2)),
        "IntervalCache": Try(IntervalCache(interval=1), IntervalCache(schedule=Uniform(2))),
        "BlockCache": Try(BlockCache(threshold=0.0), BlockCache(threshold=1e9, max_consecutive=1)),
        "TextKVCache": Try(TextKVCache(), TextKVCache()),
        "TGate": Try(TGate(gate=last, self_interval=1), TGate(gate=2, self_interval=1)),
        "ResidualGuidance": Try(ResidualGuidance(renew=1), ResidualGuidance()),
    }


def fits(method: Method, pipe: Any, stop: Stop) -> bool:
    """Whether a method has something to do in a pipeline."""
    if isinstance(method, TGate | ResidualGuidance) and not set("".join(stop.step)) & set("bBn"):
        return False
    try:
        method.parts(layout_of(getattr(pipe, stop.networks[0])))
    except UnsupportedModelError:
        return False
    return True


def chosen(method: Method, stop: Stop) -> Any:
    """A method as `accelerate` takes it, for the denoisers that are meant."""
    return dict.fromkeys(stop.networks, method) if stop.alone else method


def made_by(pipe: Any, stop: Stop, dtype: torch.dtype) -> torch.Tensor:
    """What a pipeline makes."""
    torch.manual_seed(1)
    draw = Draw(dtype)
    inputs = {"num_inference_steps": stop.steps, "generator": torch.Generator().manual_seed(1), **stop.inputs(draw)}
    if inputs["num_inference_steps"] is None:  # the pipeline takes none
        del inputs["num_inference_steps"]
    with torch.no_grad():
        found = next(iter(pipe(**inputs).values()))
    if isinstance(found, list):
        found = found[0]
    return torch.as_tensor(found).float()


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the second."""
    return float((one - other).norm() / other.norm())


def walk(stop: Stop, name: str, dtype: torch.dtype, pipe: Any = None, plain: Any = None) -> str:
    """What a method does in a pipeline.

    Returns:
        "exact": right in both settings; else "refused: ..." or "in full: ..." with what is said.

    Raises:
        AssertionError: if something is wrong.
    """
    pipe = built(stop, dtype) if pipe is None else pipe
    plain = made_by(pipe, stop, dtype) if plain is None else plain
    assert torch.isfinite(plain).all(), "plain is not finite"
    found = tries(stop)[name]
    try:
        with accelerate(pipe, chosen(found.never, stop)):
            never = made_by(pipe, stop, dtype)
    except Exception as e:
        return f"{REFUSED}: {refusal(e)}"
    assert torch.equal(never, plain), f"told to reuse nothing, it differs by {error(never, plain):.3g}"
    if name == "TextKVCache":
        return EXACT
    try:
        with accelerate(pipe, chosen(found.reuse, stop)) as handle:
            ours = made_by(pipe, stop, dtype)
            again = made_by(pipe, stop, dtype)
            report = handle.report()
    except Exception as e:
        return f"{REFUSED}: {refusal(e)}"
    assert torch.equal(ours, again), f"a second run differs by {error(again, ours):.3g}"
    if torch.equal(ours, plain) and report.full:
        return f"{FULL}: {', '.join(report.full)}"
    with reference(pipe, stop, name):
        theirs = made_by(pipe, stop, dtype)
    far, near = error(plain, theirs), error(ours, theirs)
    assert far > 0, "the reference does nothing"
    limit = min(NEAR[dtype], 0.25 * far)
    if near > limit and dtype is not torch.float32:  # both are rounded, as far from each other as two such errors are
        limit = max(limit, 1.5 * error(theirs, in_full_precision(stop, name)))
    assert near <= limit, f"it differs from the reference by {near:.3g}, and plain by {far:.3g}"
    return EXACT + (f", {report.full}" if report.full else "")


def in_full_precision(stop: Stop, name: str) -> torch.Tensor:
    """What the reference gives in float32."""
    pipe = built(stop, torch.float32)
    with reference(pipe, stop, name):
        return made_by(pipe, stop, torch.float32)


def refusal(e: BaseException) -> str:
    """What an error says, if the package raises it and its message says what to do.

    Raises:
        AssertionError: if it comes from somewhere else.
    """
    last = traceback.extract_tb(e.__traceback__)[-1]
    said = "/diffaccel/" in last.filename and (last.line or "").startswith("raise ")
    assert said, f"{type(e).__name__} from {Path(last.filename).name}: {e}"
    return str(e)


def built(stop: Stop, dtype: torch.dtype) -> Any:
    return stop.build().to(dtype)


@contextmanager
def reference(pipe: Any, stop: Stop, name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for network in stop.networks:
            model = getattr(pipe, network)
            hooks: list[Any] = []
            REFERENCES[name](pipe, model, Calls(model, stop, hooks), hooks)
            stack.callback(lambda hooks=hooks: [hook.remove() for hook in hooks])
        yield


def rows(stop: Stop, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Iterator[tuple[str, torch.dtype, str]]:
    """All methods in one pipeline."""
    for dtype in dtypes:
        if stop.large and dtype is not torch.float32:
            continue
        pipe = built(stop, dtype)
        try:
            plain = made_by(pipe, stop, dtype)
        except (RuntimeError, TypeError):
            if dtype is torch.float32:
                raise
            continue  # diffusers' own pipeline does not run in half precision
        for name, one in tries(stop).items():
            if fits(one.reuse, pipe, stop):
                try:
                    yield name, dtype, walk(stop, name, dtype, pipe, plain)
                except AssertionError as e:
                    yield name, dtype, f"WRONG: {e}"


HEAD = """# Methods in diffusers' pipelines

What the main methods do in {classes} pipelines of diffusers {version}, each built tiny with random weights, in float32
and, but for a few whose pictures are always large, in bfloat16. Written by `python tests/pipelines/walk.py`; what is not
in the table has not been tried.

- **exact**: told to reuse nothing, the method gives the plain result bit for bit; told to reuse, it gives what a
  reference gives that overrides the outputs of the replayed modules for each sampling step and each prompt, and a second
  run gives the same again.
- **refused**: an error says why, and what to do instead.
- **in full**: all network calls computed, and the report says how many and why.
- An empty cell: the method has nothing to do there, for want of cross-attention, of guidance or of transformer blocks.

Where a pipeline has denoisers of several kinds, as a prior and a decoder, a row is about one of them, which is given the
method by its name: `accelerate(pipe, {{"prior": IntervalCache()}})`.

"""


def head(classes: int) -> str:
    """How the document begins."""
    return HEAD.format(classes=classes, version=diffusers.__version__)


def outcome(found: dict[torch.dtype, str]) -> str:
    """What a cell says: one word, where both types agree."""
    words = {dtype: re.split(r"[:,]", text)[0] for dtype, text in found.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{word} in {str(dtype).removeprefix('torch.')}" for dtype, word in words.items())


def noted(text: str) -> str:
    """The beginning of the document's line that says so; the places where it is said follow."""
    return f"- {text[0].upper()}{text[1:]}. "


def page(results: dict[str, dict[str, dict[torch.dtype, str]]]) -> str:
    """The document: a table, and below it what is said where a method does not reuse."""
    methods = list(tries(next(iter(STOPS.values()))))
    classes = len({name.partition(",")[0] for name in results})
    lines = [f"| pipeline | {' | '.join(methods)} |", f"| --- |{' --- |' * len(methods)}"]
    notes: dict[str, list[str]] = {}
    for name, found in results.items():
        cells = [outcome(found[method]) if method in found else "" for method in methods]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        for method, texts in found.items():
            for text in dict.fromkeys(text for text in texts.values() if text != EXACT):
                places = notes.setdefault(text, [])
                if f"{method} in {name}" not in places:
                    places.append(f"{method} in {name}")
    said = [f"{noted(text)}{'; '.join(places)}." for text, places in notes.items()]
    return head(classes) + "\n".join(lines) + "\n\n## What is said\n\n" + "\n".join(said) + "\n"


def main(names: list[str], tell: Callable[[str], Any]) -> None:
    results: dict[str, dict[str, dict[torch.dtype, str]]] = {}
    for name in names or STOPS:
        start = time.perf_counter()
        for method, dtype, found in rows(STOPS[name]):
            results.setdefault(name, {}).setdefault(method, {})[dtype] = found
            tell(f"{name}: {method}, {str(dtype)[6:]}: {found}")
        tell(f"{name}: {time.perf_counter() - start:.1f} s")
    if not names:
        PAGE.write_text(page(results))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    main(sys.argv[1:], lambda text: print(text, flush=True))

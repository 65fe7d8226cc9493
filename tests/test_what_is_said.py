"""What the pages say can be done can be done: links lead somewhere, examples compile, commands and options exist."""

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import diffusers
import pytest

import diffaccel
import diffaccel.control
import diffaccel.measure
import diffaccel.pipelines
import diffaccel.tune
from diffaccel import models
from diffaccel.batch.jobs import MIN_STEPS_TO_CACHE
from diffaccel.batch.settings import PromptRow
from diffaccel.cli import main
from diffaccel.cli.planning import DEFAULT_CACHE
from diffaccel.config import Config
from diffaccel.methods import Method, parse_all
from diffaccel.realtime.controls import ControlNetControls, Controls

ROOT = Path(diffaccel.__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "pipelines/*.md", "benchmarks/README.md", "diffaccel/models/*/README.md")
    for path in ROOT.glob(pattern)
)
EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OURS = {*diffaccel.__all__, *diffaccel.pipelines.__all__, "da", "diffaccel", "models"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SCRIPTS, SOURCES = (
    "".join(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    for folders in (("scripts", "samples"), ("diffaccel", "pipelines", "scripts"))
)
FOLDERS = "benchmarks|diffaccel|docs|pipelines|samples|scripts|tests"


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^    .*$", "", FENCED.sub("", page.read_text()), flags=re.MULTILINE)


def spans(page: Path) -> list[str]:
    """Code within lines."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def blocks(page: Path, language: str) -> list[str]:
    return [code for named, code in FENCED.findall(page.read_text()) if named == language]


def commands(page: Path) -> Iterator[str]:
    """Command lines: those that are indented or fenced, and code within lines that begins with a program."""
    text = page.read_text()
    lines = [line.strip() for line in FENCED.sub("", text).splitlines() if line.startswith("    ")]
    lines += [line.strip() for code in blocks(page, "sh") for line in code.splitlines()]
    lines += spans(page)
    for line in lines:
        for command in line.split(" && "):
            if re.match(r"(diffaccel|python \S+\.py|accelerate launch -m)( |$)", command):
                yield command


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found}


@EVERY
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!http)[^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


def test_every_page_of_docs_is_in_their_list() -> None:
    listed = set(re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / "README.md").read_text())) | {"README.md"}
    assert {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} <= listed


@EVERY
def test_files_that_are_named_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(rf"({FOLDERS})/[\w/.*+-]+|[\w-]+/[\w/*-]+\.py", span):
            assert any(list(place.glob(span)) for place in (ROOT, ROOT / "diffaccel")), span


@pytest.mark.slow
@EVERY
def test_classes_that_are_named_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"[A-Z][a-z]+[A-Z]\w*[a-z]\w*", span):
            assert re.search(rf"\b{span}\b", SOURCES) or hasattr(diffusers, span), span


@EVERY
def test_extras_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    named = [*re.findall(r"\[extra:? `([\w-]+)`|extra:? `([\w-]+)`", text), *re.findall(r"# extra: ([\w-]+)", text)]
    named += [name for names in re.findall(r"diffaccel\[([\w,-]+)\]", text) for name in names.split(",")]
    for name in (part for found in named for part in ([found] if isinstance(found, str) else found) if part):
        assert name in EXTRAS, name


@EVERY
def test_options_that_are_named_exist(page: Path) -> None:
    params = [param for command in main.commands.values() for param in command.params]
    known = {option for param in params for option in (*param.opts, *param.secondary_opts)}
    for span in spans(page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in known | OTHERS or in_scripts(option), f"{span}: {option}"


OTHERS = {"--help", "--n", "--s", "--d"}  # the last three are kohya's


def in_scripts(option: str) -> bool:
    """Whether a script has an option: by its own name, or as a keyword of `diffusion.arguments`."""
    return f'"{option}"' in SCRIPTS or f"{option[2:].replace('-', '_')}=" in SCRIPTS


@EVERY
def test_command_lines_parse(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] == "accelerate":
            words = words[words.index("-m") + 1 :]
        if words[0] == "python":
            assert (ROOT / words[1]).exists(), line
            assert all(in_scripts(word) for word in words[2:] if word.startswith("--")), line
            if words[1] == "scripts/bench.py" and len(words) > 2:
                benchmark = (ROOT / "scripts" / "benchmarks" / f"{words[2]}.py").read_text()
                parts = [value for option, value in pairwise(words) if option == "--part"]
                assert all(f'"{part}"' in benchmark for part in parts), line
        elif len(words) > 1 and words[1] != "--help":
            assert words[1] in main.commands, line
            understood(main.commands[words[1]], words[2:], line)


def understood(command: click.Command, words: list[str], line: str) -> None:
    """The words are options and arguments of the command, and their values such as it takes."""
    context = click.Context(command)
    try:
        given, left, order = command.make_parser(context).parse_args([word for word in words if word != "..."])
        assert not left, f"{line}: what is {' '.join(left)}?"
        for param in order:
            value = given.get(str(param.name))
            if not isinstance(param.type, click.Path) and isinstance(value, str | list | tuple):
                param.type_cast_value(context, value)
    except click.BadOptionUsage as error:  # an option that is named alone
        if not line.endswith(error.option_name):
            pytest.fail(f"{line}: {error.format_message()}")
    except click.UsageError as error:
        pytest.fail(f"{line}: {error.format_message()}")


@EVERY
def test_text_of_methods_can_be_read(page: Path) -> None:
    for span in spans(page):
        name, colon, rest = span.partition(":")
        if colon and not rest.startswith("/") and name in Config.names():
            parse_all(span) if name in Method.names() else Config.parse(span)


@EVERY
def test_examples_compile_and_call_what_there_is(page: Path) -> None:
    made: set[str] = set()
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        checked(tree, known_names())
        named = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        made |= {node.id for node in named if isinstance(node.ctx, ast.Store)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        made |= {alias.asname or alias.name for node in imports for alias in node.names}
        missing = {node.id for node in named} - made
        assert not missing & OURS, f"not imported: {sorted(missing & OURS)}"


@EVERY
def test_calls_within_lines_are_such_as_there_are(page: Path) -> None:
    for span in spans(page):
        try:
            tree = ast.parse(span)
        except SyntaxError:
            continue
        checked(tree, known_names())


def known_names() -> dict[str, Any]:
    names = {name: getattr(diffaccel, name) for name in diffaccel.__all__}
    return {**names, "da": diffaccel, "diffaccel": diffaccel, "models": models}


def checked(tree: ast.Module, names: dict[str, Any]) -> None:
    """Imports are of what there is, and calls of what is known have its parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            home = import_module(node.module)
            for alias in node.names:
                if not hasattr(home, alias.name):
                    import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = getattr(home, alias.name, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (function := found(node.func, names)) is not None:
            takes(function, node)


def found(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (home := found(node.value, names)) is not None:
        assert hasattr(home, node.attr), ast.unparse(node)
        return getattr(home, node.attr)
    return None


def takes(function: Any, node: ast.Call) -> None:
    """Whether the arguments fit, but for those that are left out."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return
    if any(isinstance(argument, ast.Starred) for argument in node.args):
        return
    values = [argument for argument in node.args if not (isinstance(argument, ast.Constant) and argument.value is ...)]
    named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
    try:
        signature.bind_partial(*values, **named)
    except TypeError as error:
        pytest.fail(f"{ast.unparse(node)}: {error}")


def described(kind: type | Any) -> set[str]:
    """The parameters that a docstring's ``Args`` tell of."""
    _, _, block = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    block = re.split(r"^\S", block, maxsplit=1, flags=re.MULTILINE)[0]
    listed = re.findall(r"^ {4}(\w[\w,\s]*?):", block, re.MULTILINE)
    return {name for names in listed for name in re.split(r",\s+", names)}


def callables() -> Iterator[tuple[str, Any]]:
    """What the package and its public rooms export, and the public methods of the classes."""
    rooms = (diffaccel, diffaccel.control, diffaccel.measure, diffaccel.methods, models, diffaccel.tune)
    for name, value in ((name, getattr(room, name)) for room in rooms for name in room.__all__):
        if callable(value):
            yield name, value
        if isinstance(value, type):
            own = {n: m for n, m in vars(value).items() if not n.startswith("_") and inspect.isfunction(m)}
            yield from ((f"{name}.{n}", m) for n, m in own.items() if "Args:" in (m.__doc__ or ""))


CALLABLES = dict(callables())


@pytest.mark.parametrize("name", CALLABLES)
def test_docstrings_tell_of_the_parameters_that_there_are(name: str) -> None:
    value = CALLABLES[name]
    lines = value.__mro__ if isinstance(value, type) else (value,)
    told = set().union(*(described(each) for each in lines if each.__module__.startswith("diffaccel")))
    if not told:
        return
    taken = set(inspect.signature(value).parameters) - {"self"}
    assert taken <= told, f"not told: {sorted(taken - told)}"
    assert described(value) <= taken | set(getattr(value, "__annotations__", ())), f"not taken: {sorted(told - taken)}"


def test_every_control_of_the_page_is_told() -> None:
    told = re.findall(r"^\| ([\w, ]+) \|", (ROOT / "docs" / "live.md").read_text(), re.MULTILINE)
    names = {name.casefold() for cell in told for name in cell.split(", ")}
    titles = {field.title for kind in (Controls, ControlNetControls) for field in kind.model_fields.values()}
    assert {str(title).casefold() for title in titles} - {"dream"} <= names  # dream is a tab


FAMILIES = {
    "Allegro": "Allegro",
    "AnimateDiff": "AnimateDiff",
    "AnyFlow": "AnyFlow",
    "AnyFlowFAR": "AnyFlow-FAR",
    "AuraFlow": "AuraFlow",
    "Bria": "Bria",
    "Chroma": "Chroma",
    "ChronoEdit": "ChronoEdit",
    "CogVideoX": "CogVideoX",
    "CogView": "CogView",
    "ConsisID": "ConsisID",
    "DiT": "DiT",
    "EasyAnimate": "EasyAnimate",
    "ErnieImage": "ERNIE-Image",
    "Flux": "FLUX",
    "Flux2": "FLUX.2",
    "GlmImage": "GLM-Image",
    "Helios": "Helios",
    "HiDream": "HiDream",
    "HunyuanDiT": "Hunyuan-DiT",
    "HunyuanImage": "HunyuanImage",
    "HunyuanSkyreels": "SkyReels",
    "HunyuanVideo": "HunyuanVideo",
    "JoyImage": "JoyImage",
    "Kandinsky5": "Kandinsky 5",
    "Krea2": "Krea 2",
    "LTX": "LTX",
    "LatentConsistencyModel": "LCM",
    "Latte": "Latte",
    "LongCat": "LongCat-Image",
    "LucyEdit": "Lucy-Edit",
    "Lumina": "Lumina",
    "Mochi": "Mochi",
    "MotifVideo": "Motif-Video",
    "Nucleus": "Nucleus-Image",
    "OvisImage": "Ovis-Image",
    "PRX": "PRX",
    "PixArt": "PixArt",
    "QwenImage": "Qwen-Image",
    "Sana": "Sana",
    "SanaVideo": "SANA-Video",
    "SkyReelsV2": "SkyReels",
    "StableDiffusion3": "SD3",
    "StableDiffusionXL": "SDXL",
    "StableVideo": "Stable Video Diffusion",
    "TextToVideoSD": "ModelScope",
    "VideoToVideoSD": "ModelScope",
    "Wan": "Wan",
    "ZImage": "Z-Image",
}


@pytest.mark.parametrize("name", diffaccel.pipelines.__all__)
@pytest.mark.parametrize("page", ["README.md", "pipelines/README.md"])
def test_every_family_of_a_custom_pipeline_is_told(page: str, name: str) -> None:
    file = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Pipeline")).lower()
    (row,) = (line for line in (ROOT / page).read_text().splitlines() if re.match(rf"\| .*`{file}(\.py)?`", line))
    row = row.replace("the same", "Stable Diffusion or SDXL")
    for stock in getattr(diffaccel.pipelines, name).stock:
        family = max((begin for begin in FAMILIES if stock.__name__.startswith(begin)), key=len, default="")
        assert FAMILIES.get(family, "Stable Diffusion") in row, stock.__name__


def test_every_method_is_in_the_documents() -> None:
    page, matrix = ((ROOT / "docs" / name).read_text() for name in ("methods.md", "support-matrix.md"))
    (head,) = (line for line in matrix.splitlines() if line.startswith("| network |"))
    columns = {name.strip().lower() for name in head.split("|")} | {"residualguidance", "controlcache"}  # as it says
    for name in Method.names():
        assert f"| [`{name}`](#{name}) |" in page, f"docs/methods.md does not list {name}"
        assert name in columns, f"run python tests/support_matrix.py for {name}"


def test_every_setting_of_a_row_is_told() -> None:
    _, _, after = (ROOT / "docs" / "batch.md").read_text().partition("A row may have ")
    assert set(re.findall(r"`(\w+)`", after.partition(";")[0])) == {*PromptRow.model_fields, "size"}


def test_the_default_cache_is_told() -> None:
    text = (ROOT / "docs" / "batch.md").read_text()
    assert f"`--cache {DEFAULT_CACHE}`" in text
    assert MIN_STEPS_TO_CACHE == 10
    assert "in ten steps or more" in text

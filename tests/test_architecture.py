"""The shape of the package: imports point down, none go round in circles, and the public API is what it says."""

import ast
import graphlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import diffaccel
from diffaccel import methods
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.measure import Measure
from diffaccel.reuse.schedule import Schedule
from diffaccel.runtime.act import Act, PartState, Place

ROOT = Path(diffaccel.__file__).parent
PIPELINES = ROOT.parent / "pipelines"
# The rooms of the house, floor by floor, from the top down. A module may import its own floor and those below.
FLOORS = (
    {"__main__", "cli"},
    {"batch", "realtime", "tune"},
    {"measure", "media", "pipelines"},
    {"video"},
    {"attach", "stream"},
    {"methods"},
    {"runtime"},
    {"networks"},
    {"control", "models", "reuse", "sampling"},
    {"_diffusers", "config"},
)

# The top level of the repository, but for files whose names begin with a point.
TOP = {
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "NOTICE", "README.md", "constraints.txt"),
    "pyproject.toml",
    *("benchmarks", "diffaccel", "docs", "pipelines", "samples", "scripts", "tests"),
}


@pytest.mark.skipif(not (ROOT.parent / ".git").exists(), reason="needs the repository")
def test_nothing_lies_about_at_the_top() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT.parent, capture_output=True, text=True, check=True).stdout
    assert {name.partition("/")[0] for name in listed.splitlines() if name[0] != "."} == TOP


def test_a_source_distribution_has_all_of_it() -> None:
    packages_and_what_setuptools_takes = {"diffaccel", "pipelines", "LICENSE", "NOTICE", "README.md", "pyproject.toml"}
    named = set((ROOT.parent / "MANIFEST.in").read_text().split())
    assert TOP - packages_and_what_setuptools_takes - {"MANIFEST.in"} <= named


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def modules() -> dict[str, Path]:
    files = {"diffaccel." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items() if name != "diffaccel.__init__"}


def imports(node: ast.AST, *, at_load: bool) -> Iterator[str]:
    """Names under `diffaccel` that a module imports; with `at_load`, without those in functions and for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.module and child.module.split(".")[0] == "diffaccel":
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name.startswith("diffaccel"))
        elif not (at_load and (isinstance(child, ast.FunctionDef) or _is_type_checking(child))):
            yield from imports(child, at_load=at_load)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def floor(name: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if name.split(".")[1] in rooms)


def test_every_room_is_named() -> None:
    rooms = {"__main__", "_diffusers", "pipelines"} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set.union(*FLOORS) == rooms
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "__main__", "_diffusers"}


def test_newcomers_are_told_of_every_room() -> None:
    table = (ROOT.parent / "CONTRIBUTING.md").read_text()
    for room in set.union(*FLOORS) - {"__main__", "_diffusers"}:
        assert f"| `{room}/` |" in table, f"CONTRIBUTING.md does not show {room}/"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name: str) -> None:
    tree = parsed(modules()[name])
    for imported in imports(tree, at_load=False):
        if imported == "diffaccel.__version__":
            continue
        top = imported.split(".")[1]
        assert (ROOT / top).is_dir() or (ROOT / f"{top}.py").exists(), f"{name}: import {imported} from its own module"
        assert floor(imported) >= floor(name), f"{name} imports {imported}, which is on a higher floor"


def test_imports_do_not_go_round() -> None:
    files = modules()
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set(imports(parsed(path), at_load=True))
        targets = {target if target in files else target.rpartition(".")[0] for target in found}
        graph[name] = {target for target in targets if target in files and not name.startswith(f"{target}.")}
    for package in [name for name, path in files.items() if path.name == "__init__.py"]:
        graph[package] -= {name for name in graph[package] if package in graph[name]}
    graphlib.TopologicalSorter(graph).prepare()


def names_defined(path: Path) -> Iterator[str]:
    """Classes of a file, and its type aliases: capitalised names that are assigned at its top and are no constants."""
    tree = parsed(path)
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            yield from [name] if name[0].isupper() and not name.isupper() else []


def test_no_name_means_two_things() -> None:
    found = Counter(name for path in [*ROOT.rglob("*.py"), *PIPELINES.glob("*.py")] for name in names_defined(path))
    assert found["Handle"] == found["RunNetwork"] == 1  # a class, and an alias
    assert [name for name, times in found.items() if times > 1] == []


def test_kinds_are_asked_for_only_where_they_are_defined() -> None:
    """What an act, a schedule, a state, a place or a forecast does is up to itself: nobody asks which one it is."""
    kinds = [kind for base in (Act, Schedule, PartState, Place, Forecast) for kind in [base, *subclasses(base)]]
    assert len(kinds) >= 25
    homes = {kind.__name__: kind.__module__ for kind in kinds}
    for name, path in modules().items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)} & set(homes)
                assert all(homes[kind] == name for kind in asked), f"{name} asks for {asked}"


def subclasses(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("diffaccel."):
            yield from (kind, *subclasses(kind))


def test_methods_know_the_text_of_what_they_are_given() -> None:
    """A schedule is read from text wherever methods are, and not only once somebody has imported it."""
    files, loaded, left = modules(), set(), ["diffaccel.methods"]
    while left:
        name = left.pop()
        if name in files and name not in loaded:
            loaded.add(name)
            found = imports(parsed(files[name]), at_load=True)
            left += [each for target in found for each in (target, target.rpartition(".")[0])]
    given = [getattr(diffaccel, name) for name in diffaccel.__all__]
    kinds = [kind for kind in given if isinstance(kind, type) and issubclass(kind, Schedule | Forecast | Measure)]
    assert len(kinds) >= 12
    assert {kind.__module__ for kind in kinds} <= loaded


def test_no_chain_of_rooms_is_longer_than_ten() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        targets = {found.split(".")[1] for found in imports(parsed(path), at_load=False)} - {"__version__"}
        graph.setdefault(name.split(".")[1], set()).update(targets - {name.split(".")[1]})
    height: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(graph).static_order():
        height[room] = 1 + max((height[below] for below in graph.get(room, ())), default=0)
    assert max(height.values()) <= 10


def test_no_relative_imports() -> None:
    for name, path in modules().items():
        for node in ast.walk(parsed(path)):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}: relative import"


def test_only_the_command_line_prints_and_nothing_exits() -> None:
    for name, path in modules().items():
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("exit", "quit", "sys.exit"), f"{name} calls {called}"
            assert called != "os._exit" or name == "diffaccel.cli.signals", f"{name} calls {called}"
            assert called != "print", f"{name} prints"
            assert not called.startswith("click.echo") or name.startswith("diffaccel.cli"), f"{name} prints"


def test_public_names_are_sorted_and_real() -> None:
    assert diffaccel.__all__ == sorted(diffaccel.__all__)
    assert set(diffaccel.__all__) == {*diffaccel._HOME, *methods.__all__, "__version__"}
    assert set(diffaccel.__all__) <= set(dir(diffaccel))
    assert all(getattr(diffaccel, name) is getattr(methods, name) for name in methods.__all__)
    starred: dict[str, object] = {}
    exec("from diffaccel import *", starred)
    assert set(diffaccel.__all__) <= set(starred)
    for name, home in diffaccel._HOME.items():
        assert getattr(diffaccel, name) is getattr(import_module(home, "diffaccel"), name)


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if _is_type_checking(node))
    seen = {
        alias.name: "." + node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == {**diffaccel._HOME, "*": ".methods"}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diffaccel.nothing  # noqa: B018


NEW_METHOD = '''
"""A method that somebody adds: replay the middle block of a UNet."""

from dataclasses import dataclass

from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.schedule import Uniform
from diffaccel.runtime.act import Part
from diffaccel.runtime.replay_act import Replay


@dataclass(frozen=True)
class NewMethod(Method):
    """Replay the middle block.

    Args:
        interval: calls from one that computes to the next.
    """

    interval: int = 2

    def parts(self, layout: Layout) -> list[Part]:
        """One part."""
        return [Part(Replay(Branch(("mid_block",))), Uniform(self.interval))]
'''
USE = """
import diffaccel.methods, torch
from diffusers import UNet2DModel
assert diffaccel.__file__.startswith({folder!r})
unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, norm_num_groups=4,
    up_block_types=("UpBlock2D",) * 2, layers_per_block=1).eval()
method = diffaccel.methods.parse("newmethod:interval=3")
assert method == diffaccel.NewMethod(3) and "NewMethod" in diffaccel.__all__
with torch.no_grad(), diffaccel.accelerate(unet, diffaccel.NewMethod()) as handle:
    for t in (900, 500, 100):
        unet(torch.ones(1, 1, 8, 8), t)
    assert (handle.report().computed, handle.report().replayed) == (2, 1)
"""


@pytest.mark.slow
def test_a_new_method_is_its_file_and_one_line_in_one_list(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "diffaccel", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    room = tmp_path / "diffaccel" / "methods"
    (room / "new_method.py").write_text(NEW_METHOD)
    listed = (room / "__init__.py").read_text()
    line, name = "from diffaccel.methods.profile import Profile\n", '    "Profile",\n'
    assert line in listed
    assert name in listed
    listed = listed.replace(line, "from diffaccel.methods.new_method import NewMethod\n" + line)
    (room / "__init__.py").write_text(listed.replace(name, '    "NewMethod",\n' + name))
    code = USE.format(folder=str(tmp_path))
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )


def test_import_is_light() -> None:
    code = "import diffaccel, sys; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", [*modules().values(), *(ROOT.parent / "pipelines").glob("*.py")], ids=lambda p: p.name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0].lineno
            assert (node.end_lineno or start) - start < 60, node.name


def test_the_distribution_has_every_package() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    folders = {"diffaccel." + ".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.rglob("__init__.py")}
    packages = {name if name != "diffaccel." else "diffaccel" for name in folders} | {"diffaccel.pipelines"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages

"""The package's structure: rooms, the order of their floors, and what is shipped for use without the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files


# CONTRIBUTING.md draws this order. The root's modules are the model's folder; `__init__` and `__main__` are its doors.
FLOORS = (
    "utils",
    "root",
    "data",
    "metrics",
    "publishing",
    "interop",
    "training",
    "pictures",
    "labelling",
    "transfer",
    "app",
    "commands",
)
DOORS = ("__init__.py", "__main__.py")


@pytest.fixture
def package(repository) -> Path:
    return repository / "src/c2fmae_hf"


def modules(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py") if path.relative_to(package).as_posix() not in DOORS)


def floor(package: Path, path: Path) -> str:
    parts = path.relative_to(package).parts
    return parts[0] if len(parts) > 1 else "root"


def imported_files(package: Path, path: Path) -> set[Path]:
    """Files of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = path.parents[node.level - 1]
        elif (node.module or "").split(".")[0] == "c2fmae_hf":
            base = package.parent
        else:
            continue
        base = base.joinpath(*(node.module or "").split("."))
        for candidate in (base, *(base / name.name for name in node.names)):
            for file in (candidate.with_suffix(".py"), candidate / "__init__.py"):
                if file.is_file():
                    found.add(file)
    return found - {package / name for name in DOORS}


def test_every_room_has_its_floor(package):
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()} | {"root"}
    assert rooms == set(FLOORS)


def test_the_root_is_the_models_folder(package):
    assert len([path for path in package.glob("*.py") if path.name not in DOORS]) <= 12


@pytest.mark.parametrize("module", ["modeling_c2fmae.py", "image_processing_c2fmae.py"])
def test_what_is_shipped_for_trust_remote_code_lies_at_the_root(package, module):
    shipped = [Path(file) for file in get_relative_import_files(package / module)]
    assert {path.parent for path in shipped} == {package}
    assert all(path.is_file() for path in shipped)


def test_no_module_is_reached_by_its_name(package):
    """But for scripts of `evaluate`, which it copies elsewhere before it imports them."""
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [one.name for one in node.names if one.name.split(".")[0] == "c2fmae_hf"], path
            if isinstance(node, ast.ImportFrom) and not node.level and floor(package, path) != "metrics":
                assert (node.module or "").split(".")[0] != "c2fmae_hf", path
            if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                assert not [text for text in ast.walk(node) if "c2fmae_hf" in str(getattr(text, "value", ""))], path


def test_no_wing_imports_a_later_one(package):
    for path in modules(package):
        for other in imported_files(package, path):
            here, there = floor(package, path), floor(package, other)
            assert FLOORS.index(there) <= FLOORS.index(here), f"{path} imports {other}"


def test_no_circle(package):
    graph = {path: imported_files(package, path) - {path} for path in modules(package)}
    while free := [path for path, needs in graph.items() if not needs & graph.keys()]:
        for path in free:
            del graph[path]
    assert not graph, sorted(map(str, graph))


def test_models_open_no_files(package):
    """`modeling_c2fmae` computes: files and the Hub are others' business."""
    tree = ast.parse((package / "modeling_c2fmae.py").read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"open", "read_text", "read_bytes", "write_text", "Path", "cached_file", "hf_hub_download"}

"""The house rules that a machine can read: who imports whom, lint, types, and one idea a file."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxdiff"

# what each room of the house may import of ours; a file at the top level is a room of its own
MAY = {
    "version": set(),
    "types": set(),
    "trees": {"types"},
    "hardware": set(),
    "sde": {"types", "trees"},
    "networks": {"types", "trees"},
    "data": {"types", "trees"},
    "training": {"types", "trees", "version"},
    "evaluation": {"types", "trees"},
    "interop": {"types", "trees", "networks"},
    "denoiser": {"types", "trees", "sde"},
    "conditioning": {"types", "trees", "sde"},
    "guidance": {"types", "trees", "sde", "conditioning"},
    "losses": {"types", "trees", "sde", "denoiser"},
    "samplers": {"types", "trees", "sde"},
    "observe": {"types", "trees", "sde"},
    "augmentation": {"types", "trees", "sde"},
    "cascade": {"types", "trees", "sde", "samplers", "augmentation"},
}
# the floors above may import all that is below them, in this order
TOP = ["spread", "tables", "configfile", "facts", "build", "latents", "prompts", "guiding", "run", "codec", "caching",
       "feed", "objective", "stages", "fit", "judge", "cas", "realism", "inverse", "autoencoding", "score", "stream",
       "cascading", "sweeping", "cascade_likelihood", "planning", "benchmark",
       "commands", "flags", "grammar", "cli"]
HOMES = {
    "flax": {"networks", "evaluation"},
    "optax": {"training"},
    "orbax": {"training"},
    "grain": {"data"},
    "array_record": {"data"},
    "tokenizers": {"data"},
    "safetensors": {"interop"},
    "tensorflow_datasets": {"data"},
    "tensorflow": {"data"},
    "diffrax": {"samplers", "observe"},
    "ml_collections": {"tables", "configfile", "build", "prompts", "run", "codec", "caching", "feed", "objective", "fit",
                       "judge", "cas", "inverse", "score", "planning", "benchmark", "cli"},
    "torch": {"evaluation", "benchmark"},
    "diffusers": {"benchmark"},
}


def room(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports, wherever in the file, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((f"{node.module}.{alias.name}" if node.module == "jaxdiff" else node.module) for alias in node.names)


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_keep_to_their_floor(path):
    here = room(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "jaxdiff" and rest:
            there = rest[0]
            if there == here or not ((PACKAGE / there).is_dir() or (PACKAGE / f"{there}.py").exists()):
                continue
            allowed = MAY[here] if here in MAY else {*MAY, *TOP[: TOP.index(here)]}
            assert there in allowed, f"{path.name} in {here} imports {there}"
        elif top in HOMES:
            assert here in HOMES[top], f"{path.name} in {here} imports {name}, whose home is {HOMES[top]}"


def test_every_file_has_a_docstring_and_one_idea():
    for path in FILES:
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert len(text.splitlines()) <= 320, f"{path} has {len(text.splitlines())} lines; split it by idea"


def test_every_public_name_has_a_docstring():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name} has no docstring"


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["mypy"]], ids=["lint", "types"])
def test_tools_are_content(command):
    program = Path(sys.executable).parent / command[0]
    found = str(program) if program.exists() else shutil.which(command[0])
    if found is None:
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[test]'")
    done = subprocess.run([found, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

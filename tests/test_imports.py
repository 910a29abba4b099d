"""Imports go one way, and importing jea is light."""
import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jea"
# Later layers may import earlier ones, never the reverse; checkpoint, data and metrics stand beside them.
LAYERS = ["runtime", "_jittor", "ranks", "ops", "nn", "models", "tasks", "engine", "cli"]
PLAIN = ("metrics", "checkpoint", "data", "runtime", "info")  # must not need Jittor at import


def imported_by(path):
    """Modules that a file imports at its top level, as dotted names below jea."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    package = ("jea", *relative.parts[:-1])
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer_of(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "jea" and len(parts) > 1 else None


def test_layers():
    files = [p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts]
    assert len(files) > 30
    for path in files:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name in imported_by(path):
            root, other = name.split(".")[0], layer_of(name)
            assert root != "torch", f"{path} imports torch"
            if own in PLAIN:
                assert root != "jittor" and other not in set(LAYERS) - {"runtime"}, f"{path} imports {name}"
            if own in LAYERS and other in LAYERS:
                assert LAYERS.index(other) <= LAYERS.index(own), f"{path} imports {name}"
            if root == "jittor":
                assert path.name == "_jittor.py" or own == "ops", f"{path} imports jittor itself"


def test_importing_jea_imports_neither_jittor_nor_torch():
    code = ("import sys, jea, jea.checkpoint, jea.data, jea.metrics, jea.config, jea.commands.cli, jea.commands.info\n"
            "print([m for m in ('jittor', 'jittor_utils', 'torch') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_public_names_resolve():
    import jea
    for name in jea.__all__:
        assert getattr(jea, name) is not None, name
    assert set(jea.__all__) <= set(dir(jea))


def test_nothing_that_calls_python_while_it_is_compiled():
    """Jittor compiles in threads without Python's lock: from 3.12 on the process crashes, and hangs, on a cold cache."""
    forbidden = {"isnan", "isfinite", "isinf", "isneginf", "isposinf", "searchsorted"}
    found = [f"{path.name}: jt.{node.attr}" for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jt"
             and node.attr in forbidden]
    assert found == []

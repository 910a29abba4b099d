"""Imports go one way, inside functions too, and importing jea is light."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jea"
# From the ground up: whoever stands further down the list may import what stands above, never the reverse.
ORDER = ["errors", "named", "reading", "files", "progress", "downloads", "environment", "_jittor", "ranks",
         "checkpoint", "metrics", "draw", "data", "results", "ops", "nn", "models", "export", "training", "tasks",
         "config", "predictor", "commands"]
WITHOUT_JITTOR = {"errors", "reading", "files", "progress", "downloads", "environment", "checkpoint", "metrics", "draw",
                  "data", "results", "config"}
# Importing these must not bring Jittor either: config reads names, options and signatures from them.
LIGHT = ["jea", "jea.models", "jea.tasks", "jea.commands"]
# (importing module, imported module): the one arrow to Jittor from below. load_weights sets the variables of a model,
# which has imported Jittor by then; reading, writing and converting files never go there.
EXCEPTIONS = {("jea.checkpoint.loading", "jea._jittor")}


def module_name(path, package=PACKAGE):
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package=PACKAGE):
    """name -> its file, of all modules below a package."""
    return {module_name(path, package): path for path in package.rglob("*.py") if "__pycache__" not in path.parts}


def imports(path, package=PACKAGE, *, everywhere=True):
    """(line, name) of what a file imports: absolute dotted names, and texts such as
    "jea.tasks.segmentation:Segmentation".

    Without `everywhere` only what runs when the file itself is imported: nothing inside functions.
    """
    own = module_name(path, package).split(".")
    base = own if path.name == "__init__.py" else own[:-1]
    root = package.name

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if everywhere or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield child
                yield from walk(child)
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[:len(base) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif everywhere and isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.partition(":")[0]
            if text.startswith(root + ".") and all(part.isidentifier() for part in text.split(".")):
                yield node.lineno, text


def to_module(name, known):
    """The longest known module that a dotted name begins with, or the name itself."""
    parts = name.split(".")
    return next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in known), name)


def layer(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def violations(package=PACKAGE, order=ORDER):
    """{(importing, imported module): "file:line"} of imports that go up, to Jittor, or to PyTorch."""
    known, found = modules(package), {}
    for own, path in known.items():
        if own in (package.name, f"{package.name}.__main__"):
            continue  # the root hands out names of all layers, on demand
        for line, name in imports(path, package):
            other = to_module(name, known)
            root = other.split(".")[0]
            if root == package.name:
                # `from jea import x`: a subpackage is known by then; an attribute of the root is the root's business.
                wrong = layer(other) and order.index(layer(other)) > order.index(layer(own))
                wrong = wrong or layer(other) in ("_jittor", "ranks") and layer(own) in WITHOUT_JITTOR
            else:
                wrong = root == "torch" or root == "tqdm" and layer(own) != "progress" \
                    or root in ("jittor", "jittor_utils") and layer(own) not in ("_jittor", "environment") \
                    or root == "jittor" and layer(own) != "_jittor"
            if wrong:
                found[own, other] = f"{path}:{line}"
    return found


def closure(names, known):
    """All modules of jea that importing these imports, with their parents."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        waiting += [".".join(name.split(".")[:n]) for n in range(1, len(name.split(".")))]
        waiting += [to_module(other, known) for _, other in imports(known[name], everywhere=False)]
    return seen


def test_every_module_has_its_place_in_the_order():
    known = modules()
    assert len(known) > 100 and {layer(name) for name in known} - {"", "__main__"} <= set(ORDER)


def test_imports_go_one_way():
    everything = violations()
    found = {pair: place for pair, place in everything.items() if pair not in EXCEPTIONS}
    assert EXCEPTIONS <= set(everything)  # an exception that nothing needs any more has to go
    assert not found, "\n".join(f"{place}: {own} imports {other}" for (own, other), place in found.items())


def test_what_reads_files_and_configs_never_imports_jittor():
    known = modules()
    light = [name for name in known if layer(name) in WITHOUT_JITTOR] + LIGHT
    reached = {layer(name) for name in closure(light, known)}
    assert "config" in reached and not {"_jittor", "ranks"} & reached


@pytest.mark.parametrize("source, wrong", [
    ("from p.commands import x", True),
    ("def f():\n    from p.commands import x", True),  # fails only when f is called, and goes up all the same
    ("from ..commands import x", True),
    ("T = {'a': 'p.commands.x:F'}", True),
    ("import torch.nn", True),
    ("def f():\n    import jittor", True),
    ("import tqdm", True),
    ("from p.errors import x", False),
    ("'p.commands is read by nobody here'", False),
])
def test_the_test_sees_arrows_that_go_up(tmp_path, source, wrong):
    for name, text in {"__init__.py": "", "errors.py": "", "data/__init__.py": "", "data/x.py": source,
                       "commands/__init__.py": "", "commands/x.py": ""}.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(text)
    assert bool(violations(tmp_path / "p")) == wrong


def test_importing_jea_imports_neither_jittor_nor_torch():
    code = ("import sys, jea, jea.checkpoint, jea.data, jea.draw, jea.metrics, jea.config, jea.models, jea.tasks\n"
            "from jea.commands import cli, info\n"
            "print([m for m in ('jittor', 'jittor_utils', 'torch') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_public_names_resolve():
    import jea
    for name in jea.__all__:
        assert getattr(jea, name) is not None, name
    assert set(jea.__all__) <= set(dir(jea))


def test_nothing_that_calls_python_while_it_is_compiled():
    """Jittor compiles in threads without Python's lock: from 3.12 on the process crashes, and hangs, on a cold
    cache."""
    forbidden = {"isnan", "isfinite", "isinf", "isneginf", "isposinf", "searchsorted"}
    found = [f"{path.name}: jt.{node.attr}" for path in PACKAGE.rglob("*.py")
             for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jt"
             and node.attr in forbidden]
    assert found == []

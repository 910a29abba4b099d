"""What the models' constructors take, read from their source: no Jittor is imported for a config's check.

A parameter's annotation is the text that stands in the source, such as "int | None"; jea.config judges values by it.
"""
from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import types
from pathlib import Path

_FOLDER = Path(__file__).parent


class _Class:
    """Stands for a class of a family's file while its ENTRY_POINTS are evaluated."""

    def __init__(self, node: ast.ClassDef | types.SimpleNamespace):
        self.node = node

    def __call__(self):
        raise TypeError("only its signature is known here")


class _Module:
    """A file's classes and, as far as they need nothing else, its constants."""

    def __init__(self, path: Path, *, trusted: bool):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.imported = {alias.asname or alias.name: (node.module, alias.name) for node in tree.body
                         if isinstance(node, ast.ImportFrom) and node.module and not node.level for alias in node.names}
        families = {name: types.SimpleNamespace(name=name) for name, (origin, _) in self.imported.items()
                    if origin.startswith("jea.models.")}  # a family that is a folder names its files' classes
        self.names = {"functools": functools,
                      **{name: _Class(node) for name, node in {**families, **self.classes}.items()}}
        for node in tree.body if trusted else ():
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                try:
                    self.names[node.targets[0].id] = self.evaluate(node.value)
                except Exception:  # it needs Jittor, a function of the file ...: no constructor's default does
                    continue

    def evaluate(self, node: ast.expr):
        return eval(compile(ast.Expression(node), "signature", "eval"), self.names)

    def constructor(self, name: str) -> ast.FunctionDef | None:
        """A class's own __init__, or that of its first base that has one; None where it is not in jea's source."""
        if name not in self.classes:
            origin, original = self.imported.get(name, ("", ""))
            return _module_of(origin).constructor(original) if origin.startswith("jea.") else None
        node = self.classes[name]
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return item
        return next((found for base in node.bases if isinstance(base, ast.Name)
                     for found in [self.constructor(base.id)] if found is not None), None)

    def parameters(self, function: ast.FunctionDef) -> dict:
        """The keywords of an __init__: name -> inspect.Parameter. None as a whole where it has **keywords."""
        arguments = function.args
        positional = [*arguments.posonlyargs, *arguments.args][1:]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults[-len(positional):]
        found = {}
        for argument, default in (*zip(positional, defaults), *zip(arguments.kwonlyargs, arguments.kw_defaults)):
            found[argument.arg] = inspect.Parameter(
                argument.arg, inspect.Parameter.KEYWORD_ONLY, default=self._default(default),
                annotation=ast.unparse(argument.annotation) if argument.annotation else inspect.Parameter.empty)
        return found

    def _default(self, node):
        if node is None:
            return inspect.Parameter.empty
        try:
            return ast.literal_eval(node)
        except ValueError:
            try:
                return self.evaluate(node)
            except Exception:
                return None  # there is one; its value is not known here


@functools.lru_cache(maxsize=None)
def _module_of(name: str) -> _Module:
    path = _FOLDER.parent.joinpath(*name.split(".")[1:])
    return _Module(path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py", trusted=True)


def entry_arguments(family: str, name: str) -> dict:
    """The keywords of a model of jea: those of the class in its family's ENTRY_POINTS, less what is fixed there."""
    module = _module_of(f"jea.models.{family}")
    cls, fixed = module.names["ENTRY_POINTS"][name]
    bound = {}
    while isinstance(cls, functools.partial):
        cls, bound = cls.func, {**cls.keywords, **bound}
    found = module.parameters(module.constructor(cls.node.name))
    return {key: parameter.replace(default=bound.get(key, parameter.default)) for key, parameter in found.items()
            if key not in fixed}


def own_arguments(name: str) -> dict | None:
    """The keywords of the user's own "module:Class", whose module is not imported; None where they cannot be told, as
    with **keywords, and creating the model has to."""
    module_name, _, class_name = name.partition(":")
    try:
        spec = importlib.util.find_spec(module_name)
        module = _Module(Path(spec.origin), trusted=False)
    except (ImportError, AttributeError, TypeError, ValueError, OSError, SyntaxError):
        return None
    function = module.constructor(class_name)
    return None if function is None or function.args.kwarg is not None else module.parameters(function)


def text_of(annotation) -> str:
    """An annotation as it stands in a source: "int", "int | None", "Optional[Sequence[float]]"; "" for none."""
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) \
        else inspect.formatannotation(annotation)

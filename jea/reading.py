"""Reading the files that people give: only regular files, of a bounded size; and YAML that cannot do harm."""
from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Callable

import yaml

from jea.errors import ConfigError, shortened

MAX_YAML = 128 * 1024  # bytes of a file; PyYAML takes about 1 s for as many
MAX_DEPTH = 32  # of YAML's lists and mappings in each other
_LONGEST_PATH = 4200  # characters that a message shows of a path; a system takes up to 4,096
MAX_WEIGHT = 50_000  # of a YAML document with all of its aliases written out: nodes, and one more per 16 characters

Error = Callable[[str], Exception]


def read_file(path: str | Path, *, limit: int, error: Error, what: str = "file", too_large: str = "",
              empty: bool = False) -> bytes:
    """Read a whole file. Its size is compared with `limit` before anything is allocated.

    Args:
        limit: most bytes. error: makes the exception of a message. what: the messages' word for the file.
        too_large: what to do about a file over the limit. empty: a file of 0 bytes is none to complain about.
    Raises:
        error(message): no such file; a folder, pipe, socket or device; unreadable; empty; over the limit.
    """
    shown = shortened(path, _LONGEST_PATH)
    try:
        # Opening a pipe would wait for its writer, hence the flag; a regular file does not know it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise error(f"{shown}: {what} does not exist") from None
    except OSError as problem:  # a folder under Windows, a socket, no permission
        raise error(f"{shown}: cannot read the {what}: {problem.strerror or problem}") from None
    except ValueError:  # a NUL in the path
        raise error(f"{shown!r}: no name of a {what}") from None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise error(f"{shown}: {what} is {_kind(state.st_mode)}; expected a regular file")
        if state.st_size > limit:
            raise error(f"{shown}: {what} of {state.st_size} bytes is over the limit of {limit}"
                        + (f"; {too_large}" if too_large else ""))
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(state.st_size)
    except OSError as problem:  # a bad disk
        raise error(f"{shown}: cannot read the {what}: {problem.strerror or problem}") from None
    finally:
        os.close(descriptor)
    if not data and not empty:
        raise error(f"{shown}: {what} is empty (0 bytes)")
    return data


def check_regular(path: str | Path, *, error: Error, what: str = "file") -> int:
    """The size of a file that something else opens; error(message) unless it is a regular one that is not empty."""
    shown = shortened(path, _LONGEST_PATH)
    try:
        state = os.stat(path)
    except FileNotFoundError:
        raise error(f"{shown}: {what} does not exist") from None
    except OSError as problem:
        raise error(f"{shown}: cannot read the {what}: {problem.strerror or problem}") from None
    except ValueError:  # a NUL in the path
        raise error(f"{shown!r}: no name of a {what}") from None
    if not stat.S_ISREG(state.st_mode):
        raise error(f"{shown}: {what} is {_kind(state.st_mode)}; expected a regular file")
    if not state.st_size:
        raise error(f"{shown}: {what} is empty (0 bytes); fetch it again")
    return state.st_size


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"),
             (stat.S_ISBLK, "a device"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "something else")


def decode(data: bytes, path: str | Path, *, error: Error, what: str = "file") -> str:
    """UTF-8 text of a file's bytes, without a byte order mark; line ends become "\\n"."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}: {what} is not UTF-8 text: byte 0x{data[problem.start]:02x} in line {line}; save it as "
                    "UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# -- YAML ------------------------------------------------------------------------------------------------------------

def read_yaml(path: str | Path, *, error: Error = ConfigError, what: str = "file", as_text: bool = False) -> Any:
    """Read a YAML file as `parse_yaml` does. Raises what `read_file` raises, too."""
    data = read_file(path, limit=MAX_YAML, error=error, what=what, too_large="is it the right file?")
    return parse_yaml(decode(data, path, error=error, what=what), path, error=error, as_text=as_text)


def parse_yaml(text: str, where: str | Path, *, error: Error = ConfigError, as_text: bool = False) -> Any:
    """Make dicts, lists, text, numbers, booleans and None of YAML.

    Dates stay text. Work and memory are linear in the text, aliases included: what they would expand to is bounded.

    Args:
        where: the beginning of messages. as_text: all scalars stay text, "yes", "1" and "null" too.
    Raises:
        error(message): not YAML, a key that is there twice, other tags, nested too deep, aliases that grow too large or
            contain themselves, whole numbers of over 100 digits.
    """
    loader = None
    try:
        loader = (_TextLoader if as_text else _Loader)(text)
        return loader.get_single_data()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = str(getattr(problem, "problem", None) or getattr(problem, "reason", None) or problem)
        raise error(f"{where}: not valid YAML{place}: {said[:300]}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader for plain values only, which knows how large the document would be with its aliases written out."""

    def __init__(self, text):
        self.depth, self.weight, self.weights = 0, 0, {}
        super().__init__(text)

    def compose_node(self, parent, index):
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = self.anchors.get(self.peek_event().anchor)
            if node is not None and id(node) not in self.weights:
                raise yaml.MarkedYAMLError(problem="an alias inside of what it stands for", problem_mark=mark)
            node = super().compose_node(parent, index)
            self._add(self.weights[id(node)], mark)
            return node
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"lists and mappings nested deeper than {MAX_DEPTH}", problem_mark=mark)
        before = self.weight
        node = super().compose_node(parent, index)
        self._add(1 + (len(node.value) // 16 if isinstance(node, yaml.ScalarNode) else 0), mark)
        self.weights[id(node)] = self.weight - before
        self.depth -= 1
        return node

    def _add(self, weight, mark):
        self.weight += weight
        if self.weight > MAX_WEIGHT:
            raise yaml.MarkedYAMLError(problem=f"over {MAX_WEIGHT} values, aliases written out", problem_mark=mark)

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key, _ in getattr(node, "value", ()) if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in keys:
                    raise yaml.MarkedYAMLError(problem=f"the key {key.value[:40]!r} is there twice",
                                               problem_mark=key.start_mark)
                keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        if len(node.value) > 100:
            raise yaml.MarkedYAMLError(problem=f"a number of {len(node.value)} digits", problem_mark=node.start_mark)
        return self._number(super().construct_yaml_int, node)

    def construct_yaml_float(self, node):
        return self._number(super().construct_yaml_float, node)

    def _number(self, construct, node):
        try:
            return construct(node)
        except (ValueError, OverflowError):
            said = f"{node.value[:40]!r} is no number"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark) from None


_PLAIN = tuple(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_Loader.yaml_constructors = {tag: function for tag, function in yaml.SafeLoader.yaml_constructors.items()
                             if tag in (*_PLAIN, None)}
_Loader.add_constructor(_PLAIN[2], _Loader.construct_yaml_int)
_Loader.add_constructor(_PLAIN[3], _Loader.construct_yaml_float)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN or tag.endswith(":merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class _TextLoader(_Loader):
    yaml_implicit_resolvers: dict = {}

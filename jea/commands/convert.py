"""`jea convert`: write a checkpoint in another format or naming, and prove that nothing changed."""
from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.keymap import is_counter
from jea.checkpoint.loading import SUFFIXES, match, rename_for, require_complete, write
from jea.checkpoint.prefixes import shared
from jea.checkpoint.reader import read
from jea.checkpoint.readers.json_text import parse_json
from jea.commands.common import console
from jea.commands.inspect import as_json, parameter_count
from jea.errors import CheckpointError, UserError, printable, quoted

_LAYOUTS = {None: "auto", "jea": "ours", "upstream": "upstream"}
_ROOM = 1 << 30  # bytes that making the model of a file may take, beside 16 times its weights
_LARGEST = 4096  # of a number among the file's own arguments, where nothing in the file is larger


def main(argv=None):
    """Return `jea convert IN OUT`: write another format, another naming, and prove that nothing changed.

    Returns the exit status, see jea.commands.common.console.
    """
    parser = argparse.ArgumentParser(
        prog="jea convert", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Convert a checkpoint, read the result back and compare every tensor bit by bit.\n"
                    f"OUT's suffix chooses the format: {', '.join(SUFFIXES)}. Where the model is known\n"
                    "(--model, or an .npz or .safetensors that jea wrote) the names are checked against it and\n"
                    "translated: to upstream's for a .pth, to jea's own for the others, or as --names says.",
        epilog="examples:\n  jea convert eanet.pth eanet.npz --model eanet_resnet101\n"
               "  jea convert runs/voc/best.npz eanet.pth --wrap net")
    parser.add_argument("source", metavar="IN", help=".pth, .safetensors, .npz or Jittor's .pkl")
    parser.add_argument("target", metavar="OUT", help="the file to write; never IN")
    parser.add_argument("--model", metavar="NAME",
                        help="a name of jea.list_models(), where the file does not say it")
    parser.add_argument("--names", choices=("jea", "upstream"), help="whose names OUT holds")
    parser.add_argument("--num-classes", type=int, metavar="N",
                        help="classes of the model, if not to be inferred")
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE",
                        help="another argument of the model; may be repeated")
    parser.add_argument("--no-ema", action="store_true", help="take the raw weights, not the averaged ones")
    parser.add_argument("--wrap", default="", metavar="KEY", help="put the state dict of a .pth under KEY")
    arguments = parser.parse_args(argv)
    if os.path.realpath(arguments.source) == os.path.realpath(arguments.target):
        parser.error("IN and OUT are the same file; IN is never overwritten")
    if os.path.splitext(arguments.target)[1].lower() not in SUFFIXES:
        parser.error(f"OUT's suffix must be one of {', '.join(SUFFIXES)}")
    try:
        arguments.kwargs = dict(_key_value(text) for text in arguments.arg)
    except ValueError as error:
        parser.error(str(error))
    if arguments.num_classes is not None:
        arguments.kwargs["num_classes"] = arguments.num_classes
    if arguments.kwargs and not arguments.model:
        parser.error("--num-classes and --arg are arguments of a model; give --model NAME too")
    return console.run("convert", _convert, arguments)


def _key_value(text):
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise ValueError(f"--arg takes KEY=VALUE, such as output_stride=8; got {quoted(text)}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _convert(arguments):
    checkpoint = read(arguments.source, ema=not arguments.no_ema)
    name, kwargs = _model_of(arguments, checkpoint)
    meta = as_json(checkpoint.meta)
    for note in checkpoint.notes:
        print(f"note: {note}")
    tensors, dropped, names = _translated(arguments, checkpoint, name, kwargs, meta) if name else \
        _kept(arguments, checkpoint)
    if not tensors:
        raise CheckpointError(arguments.source, "holds nothing to convert")
    if dropped:
        print(f"note: {len(dropped)} tensors without a use here dropped, such as {shown(dropped[0])}")
    print(f"names: {names}")
    write(arguments.target, tensors, meta=meta, wrapper=arguments.wrap)
    prove(arguments.target, tensors)
    count = parameter_count({key: array.shape for key, array in tensors.items()})
    print(f"{printable(arguments.target)}: {len(tensors):,} tensors, {count:,} parameters: "
          f"every one bit-identical after re-reading")


def _translated(arguments, checkpoint, name, kwargs, meta):
    """The tensors under the names that are wanted, those dropped, and the words for what was done to the names."""
    model, kwargs = _create(name, kwargs, checkpoint, from_file=not arguments.model)
    key_maps = getattr(model, "key_maps", ())
    shapes = {key: (tuple(var.shape), str(var.dtype)) for key, var in model.state_dict().items()}
    ours, report = match(key_maps, shapes, checkpoint)
    require_complete(report, shapes, otherwise="")
    for note in report.notes[len(checkpoint.notes):]:
        print(f"note: {note}")
    if report.initialised:
        print(f"note: this kind of file holds no {', '.join(_heads(report.initialised))}: "
              f"{len(report.initialised)} tensors of {name} are not in {printable(arguments.target)}")
    tensors = rename_for(arguments.target, ours, key_maps, _LAYOUTS[arguments.names])
    upstream = next((key_map.name for key_map in key_maps if key_map.writable), "")
    meta["model"] = {"name": name, **kwargs}
    words = f"upstream's, {upstream}" if upstream and tensors is not ours else "jea's own"
    return tensors, report.dropped, f"{words} (of the model {name})"


def _kept(arguments, checkpoint):
    """As _translated, where the model is not known."""
    if arguments.names:
        raise CheckpointError(arguments.source, "does not say which model it is, so its names cannot be translated to "
                              f"{arguments.names}'s; add --model NAME")
    dropped = [key for key in checkpoint.tensors if is_counter(key)]
    tensors = {key: array for key, array in checkpoint.tensors.items() if not is_counter(key)}
    return tensors, dropped, "as in the file, which does not say its model (--model NAME translates them)"


def _model_of(arguments, checkpoint):
    """The model's name and arguments: as given, or as an .npz or .safetensors of jea's remembers them."""
    if arguments.model:
        return arguments.model, arguments.kwargs
    stored = checkpoint.meta.get("model")
    if checkpoint.format == "safetensors" and isinstance(stored, str):
        try:
            stored = parse_json(stored)
        except Malformed:
            return None, {}
    elif checkpoint.format != "npz":
        return None, {}
    if not isinstance(stored, dict) or not isinstance(stored.get("name"), str):
        return None, {}
    if not stored["name"].isidentifier():  # "module:Class" would import what the file asks for
        print(f"note: the file names a model of its own, {shown(stored['name'])}, which is not made: give --model for "
              "it")
        return None, {}
    return stored["name"], {key: value for key, value in stored.items() if key != "name"}


def _create(name, kwargs, checkpoint, from_file=False):
    from jea.models import create_model, infer_kwargs
    if from_file:
        _check_stored(name, kwargs, checkpoint)
    inferred = _inferred(infer_kwargs, name, checkpoint.tensors)
    kwargs = {**inferred, **kwargs}
    if not from_file:
        return create_model(name, **kwargs), kwargs
    nbytes = sum(array.nbytes for array in checkpoint.tensors.values())
    try:
        with _limited_memory(_ROOM + 16 * nbytes):
            return create_model(name, **kwargs), kwargs
    except MemoryError as error:
        room = f"{(_ROOM + 16 * nbytes) >> 20:,} MB"
        raise _refused(checkpoint, name, f"which would take over {room} of memory") from error
    except UserError as error:
        raise _refused(checkpoint, name, str(error)) from error
    except Exception as error:  # the arguments are the file's, so what goes wrong with them is the file's fault
        raise _refused(checkpoint, name, f"{shown(repr(kwargs), 200)}, which its constructor does not take "
                       f"({type(error).__name__}: {shown(str(error), 150)})") from error


def _refused(checkpoint, name, reason):
    return CheckpointError(checkpoint.path, f"says that it is {shown(name)} with arguments of its own: "
                           f"{shown(reason, 600)}. Give --model {shown(name)}, and --arg KEY=VALUE for what is not "
                           "inferred")


def _check_stored(name, kwargs, checkpoint):
    """Refuse arguments from a file that are of wrong types, or far larger than anything in it."""
    from jea.config import check_values
    from jea.models import MODELS, model_arguments
    if name in MODELS:
        problems = check_values("model", kwargs, model_arguments(name), name)
        if problems:
            raise _refused(checkpoint, name, "; ".join(problems[:5]))
    largest = max((size for array in checkpoint.tensors.values() for size in array.shape), default=1)
    for key, value in kwargs.items():
        entries = value if isinstance(value, list) else [value]
        numbers = [entry for entry in entries if isinstance(entry, (int, float))]
        if len(entries) > 64 or any(abs(number) > max(largest, _LARGEST) for number in numbers):
            raise _refused(checkpoint, name, f"{key} is {shown(repr(value))}, larger than anything in the file")


def _inferred(infer, name, tensors):
    """What the tensors tell of the model's arguments, also where a prefix stands before all of their names."""
    best = infer(name, tensors)
    for prefix in shared(tensors):
        found = infer(name, {key[len(prefix):]: array for key, array in tensors.items()})
        best = found if len(found) > len(best) else best
    return best


@contextlib.contextmanager
def _limited_memory(nbytes):
    """Let this process take `nbytes` more of address space and then get MemoryErrors, where the system can do that."""
    try:
        import resource
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    limit = used + nbytes if before[1] == resource.RLIM_INFINITY else min(used + nbytes, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _heads(keys):
    return sorted({key.partition(".")[0] for key in keys})


def prove(path, tensors):
    """Read `path` again; raise a CheckpointError unless it holds exactly `tensors`, bit by bit."""
    again = read(path).tensors
    if set(again) != set(tensors):
        raise CheckpointError(path, f"was written, but reading it back gives other names "
                                    f"({shown(next(iter(set(again) ^ set(tensors))))}); do not use it")
    for key, array in tensors.items():
        if (again[key].shape, again[key].dtype) != (array.shape, array.dtype) \
                or again[key].tobytes() != array.tobytes():
            raise CheckpointError(path, f"was written, but {shown(key)} is not the same after reading it "
                                        f"back; do not use it")


if __name__ == "__main__":
    raise SystemExit(main())

"""`jea convert`: write a checkpoint in another format or naming, and prove that nothing changed."""
from __future__ import annotations

import argparse
import json
import os

from jea.checkpoint.errors import shown
from jea.checkpoint.keymap import is_counter
from jea.checkpoint.loading import SUFFIXES, match, rename_for, require_complete, write
from jea.checkpoint.reader import read
from jea.commands import console
from jea.commands.inspect import as_json, parameter_count
from jea.errors import CheckpointError


def main(argv=None):
    """``jea convert IN OUT``: another format, another naming, and the proof that nothing changed.

    Returns the exit status, see jea.commands.console.
    """
    parser = argparse.ArgumentParser(
        prog="jea convert", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Convert a checkpoint, read the result back and compare every tensor bit by bit.\n"
                    f"OUT's suffix chooses the format: {', '.join(SUFFIXES)}. With --model the names are\n"
                    "checked against that model and translated: to jea's own, or to upstream's for a .pth.",
        epilog="examples:\n  jea convert eanet.pth eanet.npz --model eanet_resnet101\n"
               "  jea convert runs/voc/best.npz eanet.pth --wrap net")
    parser.add_argument("source", metavar="IN", help=".pth, .safetensors, .npz or Jittor's .pkl")
    parser.add_argument("target", metavar="OUT", help="the file to write; never IN")
    parser.add_argument("--model", metavar="NAME",
                        help="a name of jea.list_models(); an .npz of jea's knows its own")
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
        raise ValueError(f"--arg takes KEY=VALUE, such as output_stride=8; got {text!r}")
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
    if name:
        model, kwargs = _create(name, kwargs, checkpoint)
        key_maps = getattr(model, "key_maps", ())
        shapes = {key: (tuple(var.shape), str(var.dtype)) for key, var in model.state_dict().items()}
        ours, report = match(key_maps, shapes, checkpoint)
        require_complete(report, shapes, otherwise="")
        for note in report.notes[len(checkpoint.notes):]:
            print(f"note: {note}")
        if report.initialised:
            print(f"note: this kind of file holds no {', '.join(_heads(report.initialised))}: "
                  f"{len(report.initialised)} tensors of {name} are not in {arguments.target}")
        dropped = report.dropped
        tensors = rename_for(arguments.target, ours, key_maps)
        meta["model"] = {"name": name, **kwargs}
    else:
        dropped = [key for key in checkpoint.tensors if is_counter(key)]
        tensors = {key: array for key, array in checkpoint.tensors.items() if not is_counter(key)}
    if not tensors:
        raise CheckpointError(arguments.source, "holds nothing to convert")
    if dropped:
        print(f"note: {len(dropped)} tensors without a use here dropped, such as {shown(dropped[0])}")
    write(arguments.target, tensors, meta=meta, wrapper=arguments.wrap)
    prove(arguments.target, tensors)
    count = parameter_count({key: array.shape for key, array in tensors.items()})
    print(f"{arguments.target}: {len(tensors):,} tensors, {count:,} parameters: "
          f"every one bit-identical after re-reading")


def _model_of(arguments, checkpoint):
    """The model's name and arguments: as given, or as an .npz of jea's remembers them."""
    if arguments.model:
        return arguments.model, arguments.kwargs
    stored = checkpoint.meta.get("model")
    if checkpoint.format == "npz" and isinstance(stored, dict) and isinstance(stored.get("name"), str):
        return stored["name"], {key: value for key, value in stored.items() if key != "name"}
    return None, {}


def _create(name, kwargs, checkpoint):
    from jea.models import create_model, infer_kwargs
    kwargs = {**infer_kwargs(name, checkpoint.tensors), **kwargs}
    return create_model(name, **kwargs), kwargs


def _heads(keys):
    return sorted({key.partition(".")[0] for key in keys})


def prove(path, tensors):
    """Read ``path`` again; :class:`CheckpointError` unless it holds exactly ``tensors``, bit by bit."""
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

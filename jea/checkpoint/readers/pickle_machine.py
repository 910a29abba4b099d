"""A pickle interpreter that cannot execute anything.

Python's unpickler runs what the file names, and restricting ``find_class`` leaves a good deal of machinery
that was not made for hostile input: ``BUILD`` calls ``__setstate__`` or writes ``__dict__``, ``LONG_BINPUT``
with a huge index allocates a huge memo, ``BINBYTES8`` allocates before it reads, and a dict key of nested
tuples takes exponential time to hash.  So this module does not subclass it.  It is a loop over an allow-list
of the opcodes that picklers write for data (protocols 2 to 5), in which

* a global is looked up in a literal table of exact (module, name) pairs and becomes a :class:`Symbol`,
  never the real object; there is no import, no getattr and no switch that turns this off;
* ``REDUCE``, ``NEWOBJ`` and ``BUILD`` call only the functions of that table, all written in this package;
* every length is compared with the bytes that are left before anything is made from it, the memo is a dict,
  dict keys are plain scalars, and the number of opcodes is limited.

About 1 microsecond per opcode; a model of 660 tensors has 30 thousand.
"""
from __future__ import annotations

import re
import struct

import numpy as np

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.tensors import ITEMSIZE, LazyTensor, checked_shape

#: An opcode makes at most one small object, so this also bounds the memory, to about 100 bytes per opcode.
MAX_OPCODES = 500_000
_ZERO_COPY = 4096  # byte strings from this length on are views of the input
_KEY_TYPES = (str, int, bool, bytes, type(None))


class Symbol:
    """A global that the file names.  ``build(machine, *args)`` is what calling it means here, if anything."""

    __slots__ = ("module", "name", "build", "is_class")

    def __init__(self, module, name, build=None, is_class=False):
        self.module, self.name, self.build, self.is_class = module, name, build, is_class

    def __str__(self):
        return f"{self.module}.{self.name}"


class OrderedDictStandIn(dict):
    """collections.OrderedDict; torch hangs a ``_metadata`` attribute on it, which is of no use here."""

    def build_state(self, machine, state):
        if not isinstance(state, dict):
            raise Malformed("an OrderedDict has a state that is not a dict")


class NamespaceStandIn(dict):
    """argparse.Namespace as the plain dict of its attributes."""

    def build_state(self, machine, state):
        if not isinstance(state, dict):
            raise Malformed("an argparse.Namespace has a state that is not a dict of names")
        machine.copy(len(state))
        self.update(state)


class NumpyDtype:
    """A plain numeric numpy dtype: its name, and the byte order that BUILD sets."""

    __slots__ = ("name", "big_endian")

    def __init__(self, name):
        self.name, self.big_endian = name, False

    def build_state(self, machine, state):
        # (version, byte order, subdtype, names, fields, itemsize, alignment[, flags]) of dtype.__reduce__
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", "|", ">", "=") \
                or any(part is not None for part in state[2:5]):
            raise Malformed("a numpy dtype in the pickle is not a plain number type")
        self.big_endian = state[1] == ">"

    def numpy(self):
        return np.dtype((">" if self.big_endian else "<") + np.dtype(self.name).str[1:])


class NumpyArray(LazyTensor):
    """A numpy array of the pickle; its data stays a view of the pickle until :meth:`load`."""

    __slots__ = ("element", "data", "fortran")

    def __init__(self):
        self.shape, self.dtype, self.data = (0,), "float32", None

    def build_state(self, machine, state):
        # (version, shape, dtype, is_fortran, data) of ndarray.__reduce__
        if type(state) is not tuple or len(state) != 5 or not isinstance(state[2], NumpyDtype) \
                or type(state[3]) is not bool:
            raise Malformed("a numpy array in the pickle has an unknown state (an array of objects?)")
        _, shape, element, self.fortran, data = state
        shape = checked_shape(shape, ITEMSIZE[element.name])
        if type(data) is str:  # a Python 2 string that happens to be UTF-8
            machine.produce(len(data))
            data = data.encode("utf-8", "surrogatepass")
        if not isinstance(data, (bytes, memoryview)):
            raise Malformed("a numpy array in the pickle has no raw data (an array of objects?)")
        self.shape, self.dtype, self.element = shape, element.name, element
        if self.size * ITEMSIZE[self.dtype] != len(data):
            raise Malformed(f"a numpy array in the pickle has shape {shape} but {len(data):,} bytes of data")
        self.data = data

    def check(self):
        if self.data is None:
            raise Malformed("a numpy array in the pickle has no data")

    def load(self, budget):
        self.check()
        budget.take(self.size * np.dtype(self.loaded_dtype).itemsize, "a numpy array in the pickle")
        if not self.size:
            return np.empty(self.shape, np.dtype(self.loaded_dtype))
        if self.dtype == "bool":
            flat = np.frombuffer(self.data, np.uint8) != 0
        else:
            flat = np.frombuffer(self.data, self.element.numpy())
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return np.array(array, dtype=self.loaded_dtype, order="C")


_DTYPE_NAMES = {np.dtype(name).str[1:]: name for name in ITEMSIZE if name != "bfloat16"}


def _ordered_dict(machine, items=()):
    made = OrderedDictStandIn()
    if type(items) not in (tuple, list):
        raise Malformed("an OrderedDict is made from something else than a list of pairs")
    machine.copy(len(items))
    for pair in items:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise Malformed("an OrderedDict is made from something else than a list of pairs")
        made[machine.key(pair[0])] = pair[1]
    return made


def _namespace(machine):
    return NamespaceStandIn()


def _encode(machine, text, encoding="utf-8"):
    """``_codecs.encode``: how protocol 2 writes bytes, as text with one character per byte."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Malformed("_codecs.encode is used for something else than bytes")
    machine.produce(len(text))
    return text.encode("latin-1")


def _dtype(machine, code, align=False, copy=True):
    code = re.sub("^[<>=|]", "", code) if type(code) is str else code
    if type(code) is not str or code not in _DTYPE_NAMES:
        raise Malformed(f"a numpy array or number of type {shown(code)!r}; only plain numbers are read (no "
                        f"objects, text, complex numbers or records)")
    return NumpyDtype(_DTYPE_NAMES[code])


def _scalar(machine, dtype, data):
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, (bytes, memoryview)) \
            or len(data) != ITEMSIZE[dtype.name]:
        raise Malformed("a numpy number in the pickle has data of another size than its type")
    return np.frombuffer(data, dtype.numpy())[0].item()


def _reconstruct(machine, kind, shape, typecode):
    if not isinstance(kind, Symbol) or str(kind) != "numpy.ndarray":
        raise Malformed("numpy's _reconstruct is used for something else than an ndarray")
    return NumpyArray()


def table(*symbols):
    """The allow-list ``{(module, name): Symbol}`` of the given symbols."""
    return {(symbol.module, symbol.name): symbol for symbol in symbols}


#: What every pickle may name: containers, and numpy's arrays and numbers.
COMMON = table(
    Symbol("collections", "OrderedDict", _ordered_dict),
    Symbol("argparse", "Namespace", _namespace, is_class=True),
    Symbol("_codecs", "encode", _encode),
    Symbol("numpy", "ndarray"),
    Symbol("numpy", "dtype", _dtype),
    *(Symbol(module, name, build) for module in ("numpy.core.multiarray", "numpy._core.multiarray")
      for name, build in (("scalar", _scalar), ("_reconstruct", _reconstruct))),
)


class Machine:
    """Interprets one pickle in ``data`` from ``position``; :meth:`run` returns its value.

    ``symbols`` is the allow-list, ``persistent(id)`` gives meaning to persistent ids (torch's
    storages).  After :meth:`run`, ``position`` is the first byte behind the pickle.
    """

    def __init__(self, data, position=0, *, symbols=COMMON, persistent=None):
        self.data, self.position, self.end = memoryview(data).cast("B"), position, len(data)
        self.symbols, self.persistent = symbols, persistent
        self.stack, self.marks, self.memo = [], [], {}
        self.producible, self.copyable = self.end - position, MAX_OPCODES

    def run(self):
        operations, data = _OPERATIONS, self.data
        for _ in range(MAX_OPCODES):
            if self.position >= self.end:
                raise Malformed("the pickle is cut off; the file is incomplete, fetch it again")
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                if len(self.stack) != 1 or self.marks:
                    raise Malformed("the pickle leaves more or less than one value; the file is damaged")
                return self.stack.pop()
            operation = operations[code]
            if operation is None:
                raise Malformed(f"the pickle uses {_opcode_name(code)}, which no checkpoint needs; refused")
            operation(self)
        raise Malformed(f"the pickle has over {MAX_OPCODES:,} opcodes; no checkpoint of a model has")

    # -- what the opcodes are made of

    def take(self, count):
        """The next ``count`` bytes as a view."""
        if count > self.end - self.position:
            raise Malformed("the pickle is cut off; the file is incomplete, fetch it again")
        view = self.data[self.position:self.position + count]
        self.position += count
        return view

    def number(self, form):
        return form.unpack(self.take(form.size))[0]

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        stack = self.stack
        if len(stack) <= (self.marks[-1] if self.marks else 0):
            raise Malformed("the pickle takes more values than it made; the file is damaged")
        return stack.pop()

    def top(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Malformed("the pickle takes more values than it made; the file is damaged")
        return self.stack[-1]

    def pop_to_mark(self):
        if not self.marks:
            raise Malformed("the pickle closes a list that it did not open; the file is damaged")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def produce(self, nbytes):
        """Charge for bytes that a call makes from others: all calls together at most the pickle's length."""
        self.producible -= nbytes
        if self.producible < 0:
            raise Malformed("the pickle blows its own data up; refused")

    def copy(self, items):
        """Charge for items that a call copies: one call is one opcode, however large its argument."""
        self.copyable -= items
        if self.copyable < 0:
            raise Malformed("the pickle blows its own data up; refused")

    def key(self, value):
        # Hashing nested tuples can take exponential time, and big integers and NaNs can be made to collide.
        if type(value) not in _KEY_TYPES or (type(value) is int and value.bit_length() > 63):
            raise Malformed(f"a dict key of type {type(value).__name__}; only names and numbers are read")
        return value

    def text(self, count):
        return str(self.take(count), "utf-8", "surrogatepass")

    def raw(self, count):
        view = self.take(count)
        return view if count >= _ZERO_COPY else bytes(view)

    def old_text(self, count):
        """A Python 2 string: text where it can be, else bytes."""
        view = self.take(count)
        try:
            return str(view, "utf-8")
        except UnicodeDecodeError:
            return bytes(view)

    def line(self, limit=256):
        start = self.position
        head = bytes(self.data[start:start + limit])
        length = head.find(b"\n")
        if length < 0:
            raise Malformed("the pickle names a global without an end; the file is damaged")
        self.position = start + length + 1
        return head[:length].decode("utf-8")

    def symbol(self, module, name):
        found = self.symbols.get((module, name)) if type(module) is type(name) is str else None
        if found is None:
            raise Malformed(f"names {shown(module)}.{shown(name)}, which is not on the list of what a "
                            f"checkpoint may use; refused, nothing was executed. Have the file saved again "
                            f"with nothing but tensors and plain values in it")
        return found

    def call(self, function, arguments, wants_class=False):
        if not isinstance(function, Symbol) or function.build is None or type(arguments) is not tuple \
                or (wants_class and not function.is_class):
            raise Malformed(f"the pickle calls {_described(function)}, which cannot be called here; refused")
        try:
            return function.build(self, *arguments)
        except TypeError as error:
            raise Malformed(f"the pickle calls {function} with wrong arguments") from error


def _described(value):
    return str(value) if isinstance(value, Symbol) else f"a value of type {type(value).__name__}"


# -- the opcodes, by the names of pickletools

_UINT2, _INT4, _UINT4, _UINT8 = (struct.Struct(form) for form in ("<H", "<i", "<I", "<Q"))
_FLOAT8 = struct.Struct(">d")
_STOP = ord(".")
_LONGEST_INT = 16  # bytes; the magic number of torch's old format has 10


def _proto(machine):
    version = machine.take(1)[0]
    if version not in (2, 3, 4, 5):
        raise Malformed(f"pickle protocol {version}; protocols 2 to 5 are read")


def _frame(machine):
    if machine.number(_UINT8) > machine.end - machine.position:
        raise Malformed("the pickle is cut off; the file is incomplete, fetch it again")


def _long(machine, count):
    if not 0 <= count <= _LONGEST_INT:
        raise Malformed(f"the pickle holds a whole number of {count:,} bytes; refused")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _append(machine):
    value = machine.pop()
    _list(machine).append(value)


def _appends(machine):
    items = machine.pop_to_mark()
    _list(machine).extend(items)


def _list(machine):
    target = machine.top()
    if type(target) is not list:
        raise Malformed("the pickle appends to something that is not a list; the file is damaged")
    return target


def _set_item(machine):
    value = machine.pop()
    key = machine.pop()
    _dict(machine)[machine.key(key)] = value


def _set_items(machine):
    items = machine.pop_to_mark()
    target = _dict(machine)
    if len(items) % 2:
        raise Malformed("the pickle sets a key without a value; the file is damaged")
    for key, value in zip(items[::2], items[1::2]):
        target[machine.key(key)] = value


def _dict(machine):
    target = machine.top()
    if type(target) not in (dict, OrderedDictStandIn):
        raise Malformed("the pickle sets items of something that is not a dict; the file is damaged")
    return target


def _tuple(count):
    def operation(machine):
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))
    return operation


def _put(machine, index):
    machine.memo[index] = machine.top()


def _get(machine, index):
    try:
        machine.push(machine.memo[index])
    except KeyError:
        raise Malformed("the pickle refers to a value that it did not make; the file is damaged") from None


def _global(machine):
    module = machine.line()
    machine.push(machine.symbol(module, machine.line()))


def _stack_global(machine):
    name = machine.pop()
    machine.push(machine.symbol(machine.pop(), name))


def _reduce(machine):
    arguments = machine.pop()
    machine.push(machine.call(machine.pop(), arguments))


def _new_object(machine):
    arguments = machine.pop()
    machine.push(machine.call(machine.pop(), arguments, wants_class=True))


def _build(machine):
    state = machine.pop()
    build_state = _BUILDABLE.get(type(machine.top()))
    if build_state is None:
        raise Malformed(f"the pickle sets the state of {_described(machine.top())}; refused")
    build_state(machine.top(), machine, state)


_BUILDABLE = {kind: kind.build_state
              for kind in (OrderedDictStandIn, NamespaceStandIn, NumpyDtype, NumpyArray)}


def _persistent_id(machine):
    if machine.persistent is None:
        raise Malformed("the pickle refers to data outside of itself, as only torch's own containers may")
    machine.push(machine.persistent(machine.pop()))


def _opcode_name(code):
    import pickletools  # only to word an error
    names = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    return f"the opcode {names[code]}" if code in names else f"an unknown opcode ({code})"


def _table_of_operations():
    by_code = {
        "\x80": _proto,
        "\x95": _frame,
        "(": lambda m: m.marks.append(len(m.stack)),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "J": lambda m: m.push(m.number(_INT4)),
        "K": lambda m: m.push(m.take(1)[0]),
        "M": lambda m: m.push(m.number(_UINT2)),
        "\x8a": lambda m: _long(m, m.take(1)[0]),
        "\x8b": lambda m: _long(m, m.number(_INT4)),
        "G": lambda m: m.push(m.number(_FLOAT8)),
        "X": lambda m: m.push(m.text(m.number(_UINT4))),
        "\x8c": lambda m: m.push(m.text(m.take(1)[0])),
        "\x8d": lambda m: m.push(m.text(m.number(_UINT8))),
        "B": lambda m: m.push(m.raw(m.number(_UINT4))),
        "C": lambda m: m.push(m.raw(m.take(1)[0])),
        "\x8e": lambda m: m.push(m.raw(m.number(_UINT8))),
        "T": lambda m: m.push(m.old_text(m.number(_UINT4))),
        "U": lambda m: m.push(m.old_text(m.take(1)[0])),
        "]": lambda m: m.push([]),
        "a": _append,
        "e": _appends,
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.pop_to_mark())),
        "\x85": _tuple(1),
        "\x86": _tuple(2),
        "\x87": _tuple(3),
        "}": lambda m: m.push({}),
        "s": _set_item,
        "u": _set_items,
        "h": lambda m: _get(m, m.take(1)[0]),
        "j": lambda m: _get(m, m.number(_UINT4)),
        "q": lambda m: _put(m, m.take(1)[0]),
        "r": lambda m: _put(m, m.number(_UINT4)),
        "\x94": lambda m: _put(m, len(m.memo)),
        "c": _global,
        "\x93": _stack_global,
        "R": _reduce,
        "\x81": _new_object,
        "b": _build,
        "Q": _persistent_id,
    }
    return [by_code.get(chr(code)) for code in range(256)]


_OPERATIONS = _table_of_operations()

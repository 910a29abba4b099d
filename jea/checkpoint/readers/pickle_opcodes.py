"""Does to the interpreter of pickle_machine.py what each opcode says, and tells how much memory that is charged.

The list holds the opcodes that picklers write for data, of protocols 2 to 5; any other is refused by its name. The
costs are bytes of CPython, rounded up: what the opcode makes and its place on the stack.
"""
from __future__ import annotations

import struct

from jea.checkpoint.errors import Malformed
from jea.checkpoint.readers.pickle_symbols import BUILDABLE, Symbol
from jea.checkpoint.readers.pickle_values import OrderedDictStandIn, SetStandIn

STOP = ord(".")
_UINT2, _INT4, _UINT4, _UINT8 = (struct.Struct(form) for form in ("<H", "<i", "<I", "<Q"))
_FLOAT8 = struct.Struct(">d")
_LONGEST_INT = 16  # bytes; the magic number of torch's old format has 10
_ENTRY = 100  # bytes that one more entry of a dict may take while it grows


def _proto(machine):
    version = machine.take(1)[0]
    if version not in (2, 3, 4, 5):
        raise Malformed(f"pickle protocol {version}; protocols 2 to 5 are read")


def _frame(machine):
    if machine.number(_UINT8) > machine.left:
        raise Malformed("the pickle is cut off; the file is incomplete, fetch it again")


def _long(machine, count):
    if not 0 <= count <= _LONGEST_INT:
        raise Malformed(f"the pickle holds a whole number of {count:,} bytes; refused")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _empty_list(machine):
    machine.container()
    machine.push([])


def _empty_dict(machine):
    machine.container()
    machine.push({})


def _empty_set(machine):
    machine.container()
    machine.push(SetStandIn())


def _append(machine):
    value = machine.pop()
    _list(machine).append(value)


def _appends(machine):
    items = machine.pop_to_mark()
    machine.charge(10 * len(items))
    _list(machine).extend(items)


def _list(machine):
    target = machine.top()
    if type(target) is not list:
        raise Malformed("the pickle appends to something that is not a list; the file is damaged")
    return target


def _add_items(machine):
    items = machine.pop_to_mark()
    target = machine.top()
    if type(target) is not SetStandIn:
        raise Malformed("the pickle adds to something that is not a set; the file is damaged")
    machine.charge(10 * len(items))
    target.extend(items)


def _set_item(machine):
    value = machine.pop()
    key = machine.pop()
    _dict(machine)[machine.key(key)] = value


def _set_items(machine):
    items = machine.pop_to_mark()
    target = _dict(machine)
    if len(items) % 2:
        raise Malformed("the pickle sets a key without a value; the file is damaged")
    machine.charge(_ENTRY * (len(items) // 2))
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


def _long_tuple(machine):
    items = machine.pop_to_mark()
    machine.charge(8 * len(items))
    machine.push(tuple(items))


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
    build_state = BUILDABLE.get(type(machine.top()))
    if build_state is None:
        raise Malformed(f"the pickle sets the state of {described(machine.top())}; refused")
    build_state(machine.top(), machine, state)


def described(value):
    return str(value) if isinstance(value, Symbol) else f"a value of type {type(value).__name__}"


def _persistent_id(machine):
    if machine.persistent is None:
        raise Malformed("the pickle refers to data outside of itself, as only torch's own containers may")
    machine.push(machine.persistent(machine.pop()))


def opcode_name(code):
    import pickletools  # only to word an error
    names = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    return f"the opcode {names[code]}" if code in names else f"an unknown opcode ({code})"


#: code -> (bytes of memory, function)
_BY_CODE = {
    "\x80": (8, _proto),
    "\x95": (8, _frame),
    "(": (8, lambda m: m.marks.append(len(m.stack))),
    "N": (8, lambda m: m.push(None)),
    "\x88": (8, lambda m: m.push(True)),
    "\x89": (8, lambda m: m.push(False)),
    "J": (40, lambda m: m.push(m.number(_INT4))),
    "K": (8, lambda m: m.push(m.take(1)[0])),
    "M": (40, lambda m: m.push(m.number(_UINT2))),
    "\x8a": (48, lambda m: _long(m, m.take(1)[0])),
    "\x8b": (48, lambda m: _long(m, m.number(_INT4))),
    "G": (32, lambda m: m.push(m.number(_FLOAT8))),
    "X": (8, lambda m: m.push(m.text(m.number(_UINT4)))),
    "\x8c": (8, lambda m: m.push(m.text(m.take(1)[0]))),
    "\x8d": (8, lambda m: m.push(m.text(m.number(_UINT8)))),
    "B": (8, lambda m: m.push(m.raw(m.number(_UINT4)))),
    "C": (8, lambda m: m.push(m.raw(m.take(1)[0]))),
    "\x8e": (8, lambda m: m.push(m.raw(m.number(_UINT8)))),
    "T": (8, lambda m: m.push(m.old_text(m.number(_UINT4)))),
    "U": (8, lambda m: m.push(m.old_text(m.take(1)[0]))),
    "]": (64, _empty_list),
    "a": (16, _append),
    "e": (8, _appends),
    "\x8f": (72, _empty_set),
    "\x90": (8, _add_items),
    ")": (8, lambda m: m.push(())),
    "t": (56, _long_tuple),
    "\x85": (56, _tuple(1)),
    "\x86": (64, _tuple(2)),
    "\x87": (72, _tuple(3)),
    "}": (72, _empty_dict),
    "s": (_ENTRY, _set_item),
    "u": (8, _set_items),
    "h": (8, lambda m: m.get(m.take(1)[0])),
    "j": (8, lambda m: m.get(m.number(_UINT4))),
    "q": (16, lambda m: m.put(m.take(1)[0])),
    "r": (16, lambda m: m.put(m.number(_UINT4))),
    "\x94": (16, lambda m: m.put(m.memoized)),
    "c": (8, _global),
    "\x93": (8, _stack_global),
    "R": (200, _reduce),
    "\x81": (100, _new_object),
    "b": (8, _build),
    "Q": (200, _persistent_id),
}

OPERATIONS = [_BY_CODE[chr(code)][1] if chr(code) in _BY_CODE else None for code in range(256)]
COSTS = [_BY_CODE[chr(code)][0] if chr(code) in _BY_CODE else 0 for code in range(256)]

"""Interprets pickles and cannot execute anything.

Python's unpickler runs what the file names, and restricting `find_class` leaves a good deal of machinery that was not
made for hostile input: `BUILD` calls `__setstate__` or writes `__dict__`, `LONG_BINPUT` with a huge index allocates a
huge memo, `BINBYTES8` allocates before it reads, and a dict key of nested tuples takes exponential time to hash. So
this module does not subclass it. It is a loop over an allow-list of opcodes (pickle_opcodes.py), in which

* a global is looked up in a literal table of exact (module, name) pairs (pickle_symbols.py) and becomes a `Symbol`,
  never
  the real object; there is no import, no getattr and no switch that turns this off;
* `REDUCE`, `NEWOBJ` and `BUILD` call only the functions of that table, all written in this package;
* every length is compared with the bytes that are left before anything is made from it, and each opcode is charged the
  memory that it takes: together at most 16 times the file's size and 32 MB.

About 1 microsecond per opcode; a model of 660 tensors has 30 thousand.
"""
from __future__ import annotations

import sys

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.readers.pickle_opcodes import COSTS, OPERATIONS, STOP, described, opcode_name
from jea.checkpoint.readers.pickle_symbols import COMMON, Symbol
from jea.checkpoint.readers.pickle_values import Chunk, TupleKey, checked_key

#: Lists, dicts, sets and calls in one pickle. They are what can be nested; plain values are limited by memory alone.
MAX_OPCODES = 500_000
_MEMORY_FACTOR, _MEMORY_FLOOR = 16, 32 << 20
_ZERO_COPY = 4096  # byte strings from this length on are views of the input, or stay in the file
_LONG_TEXT = 1 << 20  # texts from this length on stay in the file, where there is one
_WINDOW = 1 << 18  # bytes of a file that are held at a time
_CUT_OFF = "the pickle is cut off; the file is incomplete, fetch it again"
_TAKES_MORE = "the pickle takes more values than it made; the file is damaged"


class Machine:
    """Interprets one pickle in `data` from `position`; `run` returns its value.

    `symbols` is the allow-list, `persistent(id)` gives meaning to persistent ids (torch's storages). `file_size`: of
    the file that the pickle is from, where it was compressed in it; memory is limited by that. After `run`,
    `position` is the first byte behind the pickle.
    """

    def __init__(self, data, position=0, *, symbols=COMMON, persistent=None, file_size=None):
        self.data, self.position, self.end = memoryview(data).cast("B"), position, len(data)
        self.symbols, self.persistent = symbols, persistent
        self.stack, self.marks, self._memo, self._sparse = [], [], [], {}
        size = self.end - position
        self.producible, self.copyable, self.containers = size, MAX_OPCODES + size // 4, MAX_OPCODES
        self.memory = _MEMORY_FLOOR + _MEMORY_FACTOR * (size if file_size is None else min(size, file_size))

    def run(self):
        operations, costs = OPERATIONS, COSTS
        while True:
            if self.position >= self.end:
                self.more(1)
            code = self.data[self.position]
            self.position += 1
            if code == STOP:
                if len(self.stack) != 1 or self.marks:
                    raise Malformed("the pickle leaves more or less than one value; the file is damaged")
                return self.stack.pop()
            operation = operations[code]
            if operation is None:
                raise Malformed(f"the pickle uses {opcode_name(code)}, which no checkpoint needs; refused")
            self.memory -= costs[code]
            if self.memory < 0:
                self.charge(0)
            operation(self)

    # -- the input

    @property
    def left(self):
        """Return how many bytes there are from here to the end."""
        return self.end - self.position

    def more(self, count):
        """Make `count` bytes available from `position` on; here all there are are available already."""
        raise Malformed(_CUT_OFF)

    def take(self, count):
        """Return the next `count` bytes as a view."""
        if count > self.end - self.position:
            self.more(count)
        view = self.data[self.position:self.position + count]
        self.position += count
        return view

    def number(self, form):
        return form.unpack(self.take(form.size))[0]

    def text(self, count):
        made = str(self.take(count), "utf-8", "surrogatepass")
        self.charge(sys.getsizeof(made))
        return made

    def raw(self, count):
        view = self.take(count)
        self.charge(200 + min(count, _ZERO_COPY))
        return view if count >= _ZERO_COPY else bytes(view)

    def old_text(self, count):
        """Return a Python 2 string: text where it can be, else bytes."""
        view = self.take(count)
        self.charge(100 + count)
        try:
            return str(view, "utf-8")
        except UnicodeDecodeError:
            return bytes(view)

    def line(self, limit=256):
        if self.end - self.position < limit:
            self.ahead(limit)
        start = self.position
        head = bytes(self.data[start:start + limit])
        length = head.find(b"\n")
        if length < 0:
            raise Malformed("the pickle names a global without an end; the file is damaged")
        self.position = start + length + 1
        return head[:length].decode("utf-8")

    def ahead(self, count):
        """Make up to `count` bytes available, fewer at the end."""

    # -- what the opcodes are made of

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        stack = self.stack
        if len(stack) <= (self.marks[-1] if self.marks else 0):
            raise Malformed(_TAKES_MORE)
        return stack.pop()

    def top(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Malformed(_TAKES_MORE)
        return self.stack[-1]

    def pop_to_mark(self):
        if not self.marks:
            raise Malformed("the pickle closes a list that it did not open; the file is damaged")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    # Picklers number what they remember from 0 on, so the memo is a list; other numbers go into a dict.

    @property
    def memoized(self):
        return len(self._memo) + len(self._sparse)

    def put(self, index):
        value, memo = self.top(), self._memo
        if index < len(memo):
            memo[index] = value
        elif index == len(memo):
            memo.append(value)
            if self._sparse:
                self._sparse.pop(index, None)
        else:
            self.charge(150)
            self._sparse[index] = value

    def get(self, index):
        if index < len(self._memo):
            self.stack.append(self._memo[index])
        elif index in self._sparse:
            self.stack.append(self._sparse[index])
        else:
            raise Malformed("the pickle refers to a value that it did not make; the file is damaged")

    def key(self, value):
        made = checked_key(value)
        if type(made) is TupleKey:
            self.charge(100 + 4 * len(made))
        return made

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
            raise Malformed(f"the pickle calls {described(function)}, which cannot be called here; refused")
        self.container()
        try:
            return function.build(self, *arguments)
        except TypeError as error:
            raise Malformed(f"the pickle calls {function} with wrong arguments") from error

    # -- limits

    def charge(self, nbytes):
        """Charge for memory: all of a pickle together at most 16 times the file's size and 32 MB."""
        self.memory -= nbytes
        if self.memory < 0:
            raise Malformed("the pickle makes far more of its bytes than a checkpoint does; refused, as it would fill "
                            "the memory")

    def container(self):
        """Charge for a list, dict, set or call, whose nesting takes more than its bytes."""
        self.containers -= 1
        if self.containers < 0:
            raise Malformed(f"the pickle has over {MAX_OPCODES:,} opcodes that make lists, dicts or objects; no "
                            f"checkpoint of a model has")

    def produce(self, nbytes):
        """Charge for bytes that a call makes from others: all calls together at most the pickle's length."""
        self.producible -= nbytes
        if self.producible < 0:
            raise Malformed("the pickle blows its own data up; refused")

    def copy(self, items):
        """Charge for items that a call copies: one call is one opcode, however large its argument."""
        self.memory -= 64 * items
        self.copyable -= items
        if self.copyable < 0 or self.memory < 0:
            raise Malformed("the pickle blows its own data up; refused")


class FileMachine(Machine):
    """Interprets the pickle in an open `file` between `begin` and `end`, of which it holds a small window at a time.

    Long byte strings and texts become a `Chunk`, which stays in the file until it is asked for. `offset` is the place
    in the file that `position` stands for.
    """

    def __init__(self, file, begin, end, **how):
        super().__init__(b"", **how)
        self._file, self._base, self._stop = file, begin, end  # of the window's first byte; of the file
        size = end - begin
        self.producible, self.copyable = size, MAX_OPCODES + size // 4
        self.memory = _MEMORY_FLOOR + _MEMORY_FACTOR * size

    @property
    def offset(self):
        return self._base + self.position

    @property
    def left(self):
        return self._stop - self.offset

    def more(self, count):
        if count > self.left:
            raise Malformed(_CUT_OFF)
        self.ahead(count)
        if self.end - self.position < count:
            raise Malformed(_CUT_OFF)

    def ahead(self, count):
        self._base, self.position = self.offset, 0
        self._file.seek(self._base)
        self.data = memoryview(self._file.read(min(max(count, _WINDOW), self._stop - self._base)))
        self.end = len(self.data)

    def raw(self, count):
        return super().raw(count) if count < _ZERO_COPY else self._chunk(count)

    def text(self, count):
        return super().text(count) if count < _LONG_TEXT else self._chunk(count, is_text=True)

    def old_text(self, count):
        return super().old_text(count) if count < _LONG_TEXT else self._chunk(count)

    def _chunk(self, count, **how):
        if count > self.left:
            raise Malformed(_CUT_OFF)
        self.charge(200)
        made = Chunk(self._file, self.offset, count, **how)
        self._base, self.position, self.end = self.offset + count, 0, 0
        return made

"""Read the values in a pickle of CIFAR without running the pickle.

A pickle is a program: it may name any function to call, and a few hundred bytes can ask for gigabytes. This
interpreter follows the instructions that CIFAR's files need and refuses all others. It calls no function that a file
names: arrays are recognised by NumPy's names, and made from bytes in the file.
"""

import pickle
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_train.contract import bounds

_NUMBERS = frozenset(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"))
_TEXTS = frozenset(
    ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)
_BYTES = frozenset(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"))
_VALUES = _NUMBERS | _TEXTS | _BYTES
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_STORES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_FETCHES = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KINDS = {name: np.dtype(name) for name in ("u1", "i4", "i8", "f8")}
_NAMES = {
    ("numpy", "ndarray"): "kind",
    ("numpy", "dtype"): "dtype",
    ("numpy._core.multiarray", "_reconstruct"): "empty",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("_codecs", "encode"): "bytes",
}


@dataclass(frozen=True)
class _Name:
    """The role of a function that the file names; see `_NAMES`."""

    role: str


@dataclass
class _Array:
    """An array that a later instruction fills."""

    filled: npt.NDArray[Any] | None = None


_MARK = _Name("mark")


def read_pickle(data: bytes) -> dict[str, Any]:
    """The dictionary in a pickle, with NumPy arrays.

    Raises:
        pickle.UnpicklingError: the pickle names a function, or has an instruction, that no file of CIFAR has.
        Exception: damaged bytes may raise many other errors.
    """
    machine = _Machine(room=2 * len(data))
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        bounds.require(step, bounds.PICKLE_STEPS, "its instructions are", "take another file")
        machine.follow(opcode.name, argument)
    (value,) = machine.stack
    if not isinstance(value, dict):
        raise pickle.UnpicklingError("it holds no dictionary")
    return {key: item.filled if isinstance(item, _Array) else item for key, item in value.items()}


class _Machine:
    """The stack of the interpreter.

    Args:
        room: most bytes that texts may become, as a file may use one text a thousand times.
    """

    def __init__(self, room: int) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._room = room

    def follow(self, name: str, argument: Any) -> None:
        """Execute one instruction; `argument` is None if the instruction has none."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _STORES:
            self._memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in _FETCHES:
            self.stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._make(name, argument)

    def _make(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("LIST", "TUPLE", "DICT"):
            items = self._since_mark()
            stack.append(items if name == "LIST" else tuple(items) if name == "TUPLE" else _pairs(items))
        elif name in _TUPLES:
            cut = len(stack) - _TUPLES[name]
            stack[cut:] = [tuple(stack[cut:])]
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(_pairs(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, function = argument.split(" ", 1) if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            stack.append(_named(str(module), str(function)))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._call(stack.pop().role, *arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Array):
                _, shape, dtype, fortran, raw = state
                stack[-1].filled = self._shape(raw, dtype, shape, "F" if fortran else "C")
        else:
            raise pickle.UnpicklingError(f"it holds the instruction {name}, which no data file needs")

    def _call(self, role: str, *arguments: Any) -> Any:
        if role == "dtype":
            return _KINDS[arguments[0]]
        if role == "empty":
            return _Array()
        if role == "bytes":
            return self._encoded(arguments[0])
        if role == "buffer":
            return _Array(self._shape(*arguments))
        raise pickle.UnpicklingError("it makes an array without bytes")

    def _encoded(self, text: str) -> bytes:
        """Bytes from a call of `_codecs.encode`, as Python 3 writes bytes in protocol 2."""
        self._room -= len(text)
        if self._room < 0:
            raise pickle.UnpicklingError("it uses the same text again and again")
        return text.encode("latin1")

    def _shape(self, raw: bytes | str, dtype: Any, shape: tuple[int, ...], order: Any) -> npt.NDArray[Any]:
        raw = self._encoded(raw) if isinstance(raw, str) else raw
        if not isinstance(dtype, np.dtype) or bounds.array_bytes(shape, dtype.itemsize) != len(raw):
            raise pickle.UnpicklingError("an array has another length than its shape says")
        return np.frombuffer(raw, dtype).reshape(shape, order=order)

    def _since_mark(self) -> list[Any]:
        last = next(index for index in reversed(range(len(self.stack))) if self.stack[index] is _MARK)
        items = self.stack[last + 1 :]
        del self.stack[last:]
        return items


def _named(module: str, function: str) -> _Name:
    role = _NAMES.get((module.replace("numpy.core.", "numpy._core."), function))  # the name before NumPy 2
    if role is None:
        raise pickle.UnpicklingError(f"it wants to load {module}.{function}, which no data file needs")
    return _Name(role)


def _pairs(items: list[Any]) -> dict[str, Any]:
    keys = items[::2]
    # Only such keys: hashing tuples of tuples can take forever.
    if not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("a dictionary has keys that are no texts")
    return dict(zip(keys, items[1::2], strict=True))

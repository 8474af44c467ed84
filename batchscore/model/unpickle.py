"""What a pipeline's pickle may name: looked at before anything of it runs, and held to while it is loaded.

A pickle is a program that imports names and calls them. Here it may name the classes of scikit-learn and of what
stands beside it, some functions that only compute, what the bundle's own features module defines, and what the
operator allows; it may call few of them, and with values only. This narrows what a changed pickle can do, and is no
sandbox: the libraries' own classes read the numbers that they are given without much doubt, and nothing here looks at
what a pipeline does when it predicts. A signature is what says whose it is.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import numpy as np
from joblib.compressor import BinaryZlibFile
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler

from batchscore.errors import BundleCorrupt, BundleUntrusted
from batchscore.model.allowed import Allowed
from batchscore.model.calls import Odd, check_arguments, check_filled, check_names, check_state

__all__ = ["checked", "names_in"]

_ARRAY_STATE = {"subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"}


def names_in(data: bytes, where: str) -> list[str]:
    """Every `module.name` that the bytes of a pipeline name, sorted; nothing of it is imported or run.

    Raises:
        BundleCorrupt: It is no pickle of joblib's, or one that calls or changes what no pickler would.
    """
    scanner = _Scanner(_opened(data))
    _read(scanner, where)
    return sorted({f"{module}.{name}" for module, name in scanner.named})


def checked(data: bytes, where: str, own: str, modules: Collection[str] = ()) -> Callable[[], Any]:
    """Look through all of a pipeline's bytes before any of it is loaded.

    Args:
        data: What `joblib.dump` wrote.
        where: What it is, for messages.
        own: The name of the bundle's features module, which need not be imported yet.
        modules: Modules and packages that may be named besides.

    Returns:
        What loads the pipeline, once the features module is imported.

    Raises:
        BundleUntrusted: It names or calls what it may not; so does what loads it, of the features module.
        BundleCorrupt: See `names_in`.
        ImportError, AttributeError: What it may name is not installed here.
    """
    scanner = _Scanner(_opened(data))
    _read(scanner, where)
    policy = Allowed(where, own, tuple(modules))
    # The features module is not imported yet, and is trusted.
    found = {named: policy.find(*named) for named in sorted(scanner.named) if named[0] != own}
    for called in sorted(scanner.called & found.keys()):
        policy.check_called(found[called])
    return lambda: _read(_Loader(_opened(data), policy), where)


def _opened(data: bytes) -> io.BufferedReader:
    raw = io.BytesIO(data)
    # A bundle's are compressed; bytes that are not, begin with the pickle's own mark.
    return io.BufferedReader(raw if data[:1] == b"\x80" else BinaryZlibFile(raw, "rb"))


def _read(unpickler: _Guarded, where: str) -> Any:
    try:
        return unpickler.load()
    except (BundleUntrusted, ImportError, MemoryError):
        raise
    except AttributeError:
        if isinstance(unpickler, _Loader):
            raise
        raise _unreadable(where) from None
    except Odd as odd:
        raise _unreadable(where, f": {odd}") from None
    except Exception as error:
        raise _unreadable(where, f": {type(error).__name__}: {error}") from error


def _unreadable(where: str, told: str = "") -> BundleCorrupt:
    return BundleCorrupt(f"{where}: pipeline.joblib is not what a training writes{told}. Do not use it: retrain.")


class _Array(NumpyArrayWrapper):  # type: ignore[misc]
    """The place of an array, whose bytes stand behind it in the stream."""


class _Guarded(NumpyUnpickler):  # type: ignore[misc]
    """An unpickler that calls nothing but what it was given by name, and changes nothing of that."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = NumpyUnpickler.dispatch.copy()
    # Of old protocols, or of picklers with a memory outside of the pickle.
    for _opcode in (pickle.INST, pickle.OBJ, pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        del dispatch[_opcode[0]]

    def __init__(self, stream: io.BufferedReader) -> None:
        super().__init__("", stream, ensure_native_byte_order=True)
        self.found: dict[int, Any] = {}

    def given(self, module: str, name: str) -> Any:
        """What a name stands for."""
        raise NotImplementedError

    def read_array(self, array: _Array) -> Any:
        """The array whose bytes follow."""
        raise NotImplementedError

    def find_class(self, module: str, name: str) -> Any:
        found = self.given(module, name)
        self.found[id(found)] = found
        return found

    def check_call(self, function: Any, arguments: Any) -> None:
        """Look at a call of what was named."""
        raise NotImplementedError

    def check_build(self, thing: Any, state: Any) -> None:
        """Look at the state that is given to what was made."""

    def check_fill(self, thing: Any, kinds: type | tuple[type, ...], keys: Sequence[Any] = ()) -> None:
        """Look at what is filled with items, and the keys of those."""

    def _check_called(self, function: Any, arguments: Any, *, makes_empty: bool = False) -> None:
        if id(function) not in self.found:
            raise Odd("it calls what it made itself")
        if type(arguments) is not tuple:
            raise Odd("it calls something with what are no arguments")
        # To make an empty object of a class calls nothing of the class that would take an argument.
        if function is not _Array and not (makes_empty and not arguments and isinstance(function, type)):
            self.check_call(function, arguments)

    def load_reduce(self) -> None:
        self._check_called(self.stack[-2], self.stack[-1])
        NumpyUnpickler.load_reduce(self)

    def load_newobj(self) -> None:
        self._check_called(self.stack[-2], self.stack[-1], makes_empty=True)
        NumpyUnpickler.load_newobj(self)

    def load_newobj_ex(self) -> None:
        self._check_called(self.stack[-3], self.stack[-2])
        NumpyUnpickler.load_newobj_ex(self)

    def load_setitem(self) -> None:
        self.check_fill(self.stack[-3], dict, self.stack[-2:-1])
        NumpyUnpickler.load_setitem(self)

    def load_setitems(self) -> None:
        self.check_fill(self.metastack[-1][-1], dict, self.stack[::2])
        NumpyUnpickler.load_setitems(self)

    def load_append(self) -> None:
        self.check_fill(self.stack[-2], (list, deque))
        NumpyUnpickler.load_append(self)

    def load_appends(self) -> None:
        self.check_fill(self.metastack[-1][-1], (list, deque))
        NumpyUnpickler.load_appends(self)

    def load_additems(self) -> None:
        self.check_fill(self.metastack[-1][-1], set)
        NumpyUnpickler.load_additems(self)

    def load_build(self) -> None:
        thing, state = self.stack[-2], self.stack[-1]
        if id(thing) in self.found:
            raise Odd("it changes what it names")
        if not isinstance(thing, _Array):
            self.check_build(thing, state)
            # NumpyUnpickler's own does no more than this for what is no array.
            pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]  # noqa: SLF001
            return
        shape = state.get("shape") if isinstance(state, dict) and state.keys() <= _ARRAY_STATE else None
        if not (
            isinstance(shape, tuple)
            and all(type(n) is int and n >= 0 for n in shape)
            and isinstance(state.get("dtype"), np.dtype)
            and state.get("order") in ("C", "F")
        ):
            raise Odd("an array in it is not described as one")
        thing.__dict__.update(state, allow_mmap=False)
        self.stack[-2:] = [self.read_array(thing)]

    for _opcode, _method in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
        (pickle.ADDITEMS, load_additems),
        (pickle.BUILD, load_build),
    ):
        dispatch[_opcode[0]] = _method


class _Nothing:
    """Stands for whatever is made while names are looked for; takes everything and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Nothing:  # noqa: PYI034 - a class for each name
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass

    append = extend = add


class _Scanner(_Guarded):
    """Walks through a pickle and makes nothing of it but the types of its arrays, which say how long they are."""

    def __init__(self, stream: io.BufferedReader) -> None:
        super().__init__(stream)
        self.named: set[tuple[str, str]] = set()
        self.called: set[tuple[str, str]] = set()

    def given(self, module: str, name: str) -> Any:
        self.named.add((module, name))
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        return type("_Named", (_Nothing,), {"names": (module, name)})

    def check_call(self, function: Any, arguments: Any) -> None:
        # A dtype may be called.
        if function is not np.dtype:
            self.called.add(function.names)

    def read_array(self, array: _Array) -> Any:
        if array.dtype.hasobject:
            nested = _Scanner(self.file_handle)
            nested.named, nested.called = self.named, self.called
            return nested.load()
        if array.safe_get_numpy_array_alignment_bytes() is not None:
            self.file_handle.read(int.from_bytes(self.file_handle.read(1), "little"))
        left = array.dtype.itemsize * int(np.prod(array.shape, dtype=object))
        while left:
            read = len(self.file_handle.read(min(left, 1 << 20)))
            if not read:
                raise EOFError("it ends inside an array")
            left -= read
        return _Nothing()


class _Loader(_Guarded):
    """Loads a pickle with the names that a policy gives."""

    def __init__(self, stream: io.BufferedReader, policy: Allowed) -> None:
        super().__init__(stream)
        self.policy = policy

    def given(self, module: str, name: str) -> Any:
        found = self.policy.find(module, name)
        return _Array if found is NumpyArrayWrapper else found

    def is_named(self, thing: Any) -> bool:
        """Whether a name stands for it."""
        return id(thing) in self.found

    def check_call(self, function: Any, arguments: Any) -> None:
        self.policy.check_called(function)
        if not self.policy.trusted(function):
            check_arguments(function, arguments, self.is_named)

    def check_build(self, thing: Any, state: Any) -> None:
        check_names(thing, state)
        if not self.policy.trusted(type(thing)):
            check_state(thing, state, self.is_named)

    def check_fill(self, thing: Any, kinds: type | tuple[type, ...], keys: Sequence[Any] = ()) -> None:
        check_filled(thing, kinds, keys)

    def read_array(self, array: _Array) -> Any:
        if array.dtype.hasobject:
            return _Loader(self.file_handle, self.policy).load()
        return array.read(self, ensure_native_byte_order=True)

"""What a pipeline's pickle may name: looked at before anything of it runs, and held to while it is loaded.

A pickle is a program that imports names and calls them. Here it may name the classes of scikit-learn and of what
stands beside it, some functions that only compute, what the bundle's own features module defines, and what the
operator allows. This makes a planted pickle hard to use, and is no sandbox: the libraries' own classes read the numbers
that they are given without much doubt. A signature is what says whose they are.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import numpy as np
from joblib.compressor import BinaryZlibFile
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler

from batchscore.errors import BundleCorrupt, BundleUntrusted
from batchscore.model.allowed import Allowed

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
        BundleUntrusted: It names what it may not; so does what loads it, of the features module.
        BundleCorrupt: See `names_in`.
        ImportError, AttributeError: What it may name is not installed here.
    """
    scanner = _Scanner(_opened(data))
    _read(scanner, where)
    policy = Allowed(where, own, tuple(modules))
    for module, name in sorted(scanner.named):
        if module != own:
            policy.find(module, name)
    return lambda: _read(_Loader(_opened(data), policy.find), where)


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
    except _Odd as odd:
        raise _unreadable(where, f": {odd}") from None
    except Exception as error:
        raise _unreadable(where, f": {type(error).__name__}: {error}") from error


def _unreadable(where: str, told: str = "") -> BundleCorrupt:
    return BundleCorrupt(f"{where}: pipeline.joblib is not what a training writes{told}. Do not use it: retrain.")


class _Odd(Exception):
    """An instruction that no pickler writes."""


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

    def _check_called(self, function: Any) -> None:
        if id(function) not in self.found:
            raise _Odd("it calls what it made itself")

    def load_reduce(self) -> None:
        self._check_called(self.stack[-2])
        NumpyUnpickler.load_reduce(self)

    def load_newobj(self) -> None:
        self._check_called(self.stack[-2])
        NumpyUnpickler.load_newobj(self)

    def load_newobj_ex(self) -> None:
        self._check_called(self.stack[-3])
        NumpyUnpickler.load_newobj_ex(self)

    def load_build(self) -> None:
        thing, state = self.stack[-2], self.stack[-1]
        if id(thing) in self.found:
            raise _Odd("it changes what it names")
        if not isinstance(thing, _Array):
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
            raise _Odd("an array in it is not described as one")
        thing.__dict__.update(state, allow_mmap=False)
        self.stack[-2:] = [self.read_array(thing)]

    for _opcode, _method in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.NEWOBJ_EX, load_newobj_ex),
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

    def __init__(self, stream: io.BufferedReader, named: set[tuple[str, str]] | None = None) -> None:
        super().__init__(stream)
        self.named = set() if named is None else named

    def given(self, module: str, name: str) -> Any:
        self.named.add((module, name))
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return _Array
        return np.dtype if (module, name) == ("numpy", "dtype") else type("_Named", (_Nothing,), {})

    def read_array(self, array: _Array) -> Any:
        if array.dtype.hasobject:
            return _Scanner(self.file_handle, self.named).load()
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

    def __init__(self, stream: io.BufferedReader, find: Callable[[str, str], Any]) -> None:
        super().__init__(stream)
        self.find = find

    def given(self, module: str, name: str) -> Any:
        found = self.find(module, name)
        return _Array if found is NumpyArrayWrapper else found

    def read_array(self, array: _Array) -> Any:
        if array.dtype.hasobject:
            return _Loader(self.file_handle, self.find).load()
        return array.read(self, ensure_native_byte_order=True)

"""What the calls in a pipeline's pickle may be given, and what state it may give to what it makes.

Names alone do not hold a pickle: an object that it has forged can answer for a method, and what is given such an object
calls it. So a call is given values, types and functions, and a state has no name that stands for code.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable
from datetime import timedelta, tzinfo
from functools import partial
from typing import Any

import numpy as np
from numpy.random import BitGenerator

__all__ = ["Odd", "check_arguments", "check_filled", "check_names", "check_state"]

_PLAIN = (type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict)
_VALUES = (type, np.dtype, np.generic, timedelta, tzinfo, BitGenerator)


class Odd(Exception):
    """An instruction that no pickler writes."""


def check_arguments(function: Any, arguments: tuple[Any, ...], is_named: Callable[[Any], bool]) -> None:
    """Refuse to call a function with what could run code of the pickle's choice.

    Args:
        function: What is called, of those that may be.
        arguments: What it is given.
        is_named: Whether the pickle has it by its name, and has not made it.

    Raises:
        Odd: An argument is an object that the pickle made of a library's class, or is not of the kind that the function
            is written with.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    if function is partial:
        fits = len(arguments) == 1 and _is_function(arguments[0], is_named)
    else:
        fits = all(_is_value(each) for each in arguments) and _fits(function.__name__, arguments)
    if not fits:
        raise Odd(f"it gives {name} what no pickler gives it")


def check_state(thing: Any, state: Any, is_named: Callable[[Any], bool]) -> None:
    """Refuse a state that would put something in the place of a method, or that is no state.

    Args:
        thing: What the pickle has made, of a library's class.
        state: What it is given.
        is_named: Whether the pickle has it by its name, and has not made it.

    Raises:
        Odd: See above.
    """
    kind = type(thing)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is partial:
        if not (type(state) is tuple and len(state) == 4 and _is_function(state[0], is_named) and not state[3]):
            raise Odd(f"it gives {name} what is no function that it names")
        return
    # Without a method of its own a tuple is for slots, whose setting may run code. No estimator has them.
    if type(state) is not dict and not (type(state) is tuple and hasattr(kind, "__setstate__")):
        raise Odd(f"it gives {name} what is no state")
    for key in state if type(state) is dict else ():
        if _is_method(inspect.getattr_static(kind, key, None)):
            raise Odd(f"it gives {name} another {key}")
    if type(state) is dict and type(state.get("_sklearn_version", "")) is not str:
        raise Odd(f"it gives {name} a version that is no text")
    from sklearn.frozen import FrozenEstimator

    # It hands out every attribute of what it holds.
    if issubclass(kind, FrozenEstimator) and not (type(state) is dict and hasattr(type(state.get("estimator")), "fit")):
        raise Odd(f"it gives {name} what is no estimator")


def check_names(thing: Any, state: Any) -> None:
    """Refuse a state that would change how Python treats the thing: a name like `__setstate__`, or one that is no text.

    Raises:
        Odd: See above.
    """
    for key in state if type(state) is dict else ():
        if type(key) is not str or _is_dunder(key):
            raise Odd(f"it gives {type(thing).__module__}.{type(thing).__qualname__} another {key}")
    for part in state if type(state) is tuple else ():
        if type(part) is dict and any(map(_is_dunder, part)):
            raise Odd(f"it gives {type(thing).__module__}.{type(thing).__qualname__} a name of Python's own")


def check_filled(thing: Any, kinds: type | tuple[type, ...], keys: Iterable[Any] = ()) -> None:
    """Refuse to fill what is no container, or one whose keys are attributes with names of Python's own.

    Raises:
        Odd: See above.
    """
    # Its class, and not what it says of itself.
    if not issubclass(type(thing), kinds):
        raise Odd("it fills what is no container")
    if hasattr(type(thing), "__getattr__") and any(map(_is_dunder, keys)):
        raise Odd(f"it gives {type(thing).__name__} a name of Python's own")


def _fits(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether these functions, which call a class or a function that they are given, are given the right one."""
    first = arguments[0] if arguments else None
    match name:
        case "__bit_generator_ctor":
            return len(arguments) == 1 and (type(first) is str or _is_kind(first, BitGenerator))
        case "__generator_ctor" | "__randomstate_ctor":
            return len(arguments) == 1 and isinstance(first, BitGenerator)
        case "_reconstruct" | "_mareconstruct":
            return _is_kind(first, np.ndarray)
        case "_reconstructor":
            return len(arguments) == 3 and _is_kind(first, dict) and arguments[1] is dict and type(arguments[2]) is dict
        case _:
            return True


def _is_value(thing: Any) -> bool:
    return type(thing) in (*_PLAIN, np.ndarray, deque) or issubclass(type(thing), _VALUES)


def _is_kind(thing: Any, kind: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, kind)


def _is_function(thing: Any, is_named: Callable[[Any], bool]) -> bool:
    return is_named(thing) and not isinstance(thing, type)


def _is_dunder(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("__") and key.endswith("__")


def _is_method(attribute: Any) -> bool:
    # What has a setter stands before the state, which can put nothing in its place.
    return callable(attribute) or (hasattr(type(attribute), "__get__") and not hasattr(type(attribute), "__set__"))

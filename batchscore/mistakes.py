"""What is wrong in a file of tables and keys, in words: of what pydantic finds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from batchscore.errors import nearest

__all__ = ["mistakes"]

# A word of a literal, in pydantic's list of them.
_QUOTED = re.compile("'([^']*)'")
_KEY = "[key]"
_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that is not nan or inf",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
}
_BOUNDS = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
}
_TABLES = ("model_type", "model_attributes_type", "dict_type", "mapping_type")

_Place = tuple[str | int, ...]


def mistakes(items: Sequence[Mapping[str, Any]], root: type[BaseModel], patterns: Mapping[str, str]) -> Iterator[str]:
    """Each fault in a sentence that names table and key, what is wanted, what is there, and the nearest known word.

    Args:
        items: `ValidationError.errors()`.
        root: The model that the file was held against.
        patterns: What each pattern of a string wants, in words.
    """
    for item in items:
        if item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]:
            # What is wrong in its items is told of them.
            continue
        place = _place(item["loc"])
        yield f"{place or 'the file'}: {_told(item, root, patterns)}"


def _place(loc: _Place) -> str:
    """Table and key; without the number of an item in a list, which is told by its value."""
    if loc and loc[-1] == _KEY:
        loc = loc[:-2]
    return ".".join(str(part) for part in loc if not isinstance(part, int))


def _told(item: Mapping[str, Any], root: type[BaseModel], patterns: Mapping[str, str]) -> str:
    kind, loc, context = item["type"], item["loc"], item.get("ctx", {})
    if kind in ("extra_forbidden", "missing") or loc[-1:] == (_KEY,):
        return _of_key(item, root)
    if kind in ("too_short", "too_long"):
        return _of_length(item, root)
    if kind in _TABLES:
        known = _keys(_field_of(root, loc))
        return f"want a table{f' with {_listed(known)}' if known else ''}{_said(item)}"
    if kind == "literal_error":
        words = _words(context)
        guess = f". Did you mean {near}?" if (near := nearest(str(item["input"]), words)) else ""
        return f"want {_either(words)}{_said(item)}{guess}"
    if kind == "tuple_type" and isinstance(item["input"], str):
        return f'want a list. Write {loc[-1]} = ["{item["input"]}"].'
    return f"{_wanted(kind, context, patterns) or item['msg'].removeprefix('Value error, ')}{_said(item)}"


def _of_key(item: Mapping[str, Any], root: type[BaseModel]) -> str:
    loc = item["loc"]
    if item["type"] == "missing":
        return f"{loc[-1]} value(s) where more are wanted." if isinstance(loc[-1], int) else "missing. Add it."
    if loc[-1] == _KEY:
        return f"unknown key {item['input']}. {_near_and_known(str(item['input']), _words(item['ctx']))}"
    return f"unknown key. {_near_and_known(str(loc[-1]), _keys(_field_of(root, loc[:-1])))}"


def _of_length(item: Mapping[str, Any], root: type[BaseModel]) -> str:
    context = item["ctx"]
    if item["type"] == "too_long":
        return f"{len(item['input'])} values, and {context['max_length']} at most are wanted."
    return f"the list is empty. Name {context['min_length']} or more{_of_these(_field_of(root, item['loc']))}."


def _wanted(kind: str, context: Mapping[str, Any], patterns: Mapping[str, str]) -> str:
    if kind in _KINDS:
        return f"want {_KINDS[kind]}"
    if kind in _BOUNDS:
        return f"want {_BOUNDS[kind].format(**context)}"
    return patterns.get(context.get("pattern", ""), "")


def _said(item: Mapping[str, Any]) -> str:
    value = item["input"]
    return f" (it says {value!r})" if isinstance(value, (str, int, float, date)) else ""


def _words(context: Mapping[str, Any]) -> list[str]:
    return _QUOTED.findall(context["expected"])


def _either(words: Sequence[str]) -> str:
    quoted = [f"'{word}'" for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _of_these(annotation: Any) -> str:
    """Which words a list takes, where they are few."""
    words = [word for each in _parts(annotation) if get_origin(each) is Literal for word in get_args(each)]
    return f" of {_listed(words)}" if words else ""


def _near_and_known(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return (f"Did you mean {near}? " if near else "") + f"Known here: {_listed(known)}."


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def _field_of(root: type[BaseModel], loc: _Place) -> Any:
    """The annotation of what is at a place; the last one that is known on the way."""
    found: Any = root
    for part in loc:
        table = next((each for each in _parts(found) if _is_table(each)), None)
        if table is None or isinstance(part, int):
            break
        found = next((f.annotation for name, f in table.model_fields.items() if part in (name, f.alias)), found)
    return found


def _keys(annotation: Any) -> list[str]:
    table = next((each for each in _parts(annotation) if _is_table(each)), None)
    return [] if table is None else [field.alias or name for name, field in table.model_fields.items()]


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation, and all that it is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for each in get_args(annotation):
            yield from _parts(each)


def _is_table(candidate: object) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)

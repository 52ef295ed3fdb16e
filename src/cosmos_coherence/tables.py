"""Tables that people write in files and in the environment, as frozen values; every fault is found, with its path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import structs

_Faults = list[tuple[tuple[str, ...], str]]
"""Where, and what is wrong there."""


_TRUTHS = dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True) | dict.fromkeys(
    ("0", "false", "f", "no", "n", "off"), False
)


class Table(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A table by its fields. Names that are no fields are faults."""


class Written(msgspec.Struct, frozen=True):
    """In ``Annotated``: makes of what is written what the type wants. ``ValueError`` says what is wrong with it."""

    read: Callable[[Any], object]


class Wrong(Exception):
    """What was written cannot be read; ``faults`` are the path of each, and what is wrong there."""

    def __init__(self, faults: _Faults) -> None:
        super().__init__("; ".join(f"{'.'.join(path) or 'file'}: {fault}" for path, fault in faults))
        self.faults = tuple(faults)


T = TypeVar("T", bound=Table)


def read(kind: type[T], data: object) -> T:
    """The table that ``data`` says, numbers and truths also in letters. Raises ``Wrong`` with all faults."""
    faults: _Faults = []
    found = _table(kind, data, (), faults)
    if found is None or faults:
        raise Wrong(faults)
    return found


def names(kind: type[Table]) -> Iterator[str]:
    """Every name that can be written, that of a field in a table below after the table's and a dot."""
    hints = get_type_hints(kind)
    for name in (field.name for field in structs.fields(kind)):
        below = hints[name]
        if isinstance(below, type) and issubclass(below, Table):
            yield from (f"{name}.{each}" for each in names(below))
        else:
            yield name


def _table(kind: type[T], data: object, path: tuple[str, ...], faults: _Faults) -> T | None:
    if not isinstance(data, Mapping):
        faults.append((path, "a table has to be here"))
        return None
    known, before = {field.name: field for field in structs.fields(kind)}, len(faults)
    hints = get_type_hints(kind, include_extras=True) if data else {}
    faults += [((*path, str(name)), "there is no such name") for name in data if name not in known]
    values: dict[str, object] = {}
    for name, field in known.items():
        if name in data:
            values[name] = _value(hints[name], data[name], (*path, name), faults)
        elif field.required:
            faults.append(((*path, name), "is missing"))
    if len(faults) > before:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        faults.append((path, str(error)))
        return None


def _value(hint: Any, value: object, path: tuple[str, ...], faults: _Faults) -> object:
    kind, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Table):
        return _table(hint, value, path, faults)
    if kind is tuple and _is_table(arguments[0]) and isinstance(value, list | tuple):
        return tuple(_table(arguments[0], each, (*path, str(at)), faults) for at, each in enumerate(value))
    if kind is dict and _is_table(arguments[1]) and isinstance(value, Mapping):
        return {
            _value(arguments[0], key, (*path, str(key)), faults): _table(arguments[1], each, (*path, str(key)), faults)
            for key, each in value.items()
        }
    if hint is bool and isinstance(value, str):
        value = _TRUTHS.get(value.lower(), value)
    try:
        for written in (each for each in arguments[1:] if kind is Annotated and isinstance(each, Written)):
            value = written.read(value)
        return msgspec.convert(value, hint, strict=False, dec_hook=_path)
    except (ValueError, msgspec.ValidationError) as error:
        faults.append((path, str(error)))
        return None


def _is_table(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Table)


def _path(kind: type, value: object) -> object:
    if issubclass(kind, Path) and isinstance(value, str | Path):
        return Path(value)
    raise ValueError(f"a {kind.__name__.lower()} has to be here")

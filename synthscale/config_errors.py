"""Say in plain words what is wrong with a configuration: key, what is expected, and what was found.

pydantic finds the errors; its own messages ("Input should be a valid string") are not shown. What a key expects
comes from its type and limits in config.py.
"""

import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from synthscale.spelling import did_you_mean

_MAX_TEXT: Final = 60
"""Characters of a wrong value that a message repeats."""
_COUNTS: Final = {2: "two", 3: "three", 4: "four"}
_LIMITS: Final = (("gt", "above {}"), ("ge", "of at least {}"), ("lt", "below {}"), ("le", "of at most {}"))
"""Limits of numbers in pydantic's field metadata, and their words."""


def describe(error: ValidationError, model: type[BaseModel], values: Any) -> list[tuple[str, str]]:
    """Return the problems that pydantic found, each once.

    Args:
        error: raised when ``values`` were validated.
        model: class of the configuration.
        values: what was validated; sections are mappings.

    Returns:
        (key, what is wrong) for each problem; the key has dots between sections, and is empty for the whole.
    """
    problems: dict[tuple[str, str], None] = {}
    for item in error.errors(include_url=False):
        problems[_describe_one(item, model, values)] = None
    return list(problems)


def shown(value: Any) -> str:
    """Return a value as an error message shows it: short, on one line, as JSON where it is simple."""
    if isinstance(value, str):
        text = value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]}..."
        return json.dumps(text, ensure_ascii=not text.isprintable())
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        # The decimal digits of a very large integer take long.
        return str(value) if isinstance(value, float) or value.bit_length() < 200 else "a very large number"
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        simple = len(value) <= 5 and all(isinstance(v, (str, int, float, type(None))) for v in value)
        return f"[{', '.join(map(shown, value))}]" if simple else f"a list of {len(value):,}"
    return f"a value of type {type(value).__name__}"


def _describe_one(item: Any, model: type[BaseModel], values: Any) -> tuple[str, str]:
    """Return the key of one of pydantic's errors and what is wrong with its value."""
    path, field, owner = _locate(item["loc"], model)
    key = ".".join(_key_text(part) for part in path)
    if item["type"] == "extra_forbidden":
        unknown = str(item["loc"][-1])
        return _joined(key, unknown), f"unknown key{_other_key(unknown, owner, model)}"
    if item["type"] == "string_unicode":
        return key, f"is not text in UTF-8: {shown(item['input'])}"
    if item["type"] == "value_error":
        return key, str(item["ctx"]["error"])
    if item["type"] == "invalid_key" or item["loc"][-1:] == ("[key]",):
        name = next((part for part in reversed(item["loc"]) if part != "[key]"), item["input"])
        return key, f"the key {shown(name)} is not text; put it in quotes"
    if field is None:
        return key, f"expected keys and values, found {shown(item['input'])}"
    if _is_mapping(field) and isinstance(value := _value_at(values, path), Mapping):
        # One entry of a mapping is wrong, not the mapping.
        name = item["loc"][len(path)]
        return _joined(key, str(name)), f"expected text, found {shown(value.get(name))}"
    value = _value_at(values, path)
    hint = _choice_hint(field, value)
    if _without_none(field.annotation) is str and not isinstance(value, (str, Mapping, list, type(None))):
        hint = "; put it in quotes"
    return key, f"expected {_expected(field)}, found {shown(value)}{hint}"


def _locate(
    location: tuple[Any, ...], model: type[BaseModel]
) -> tuple[list[str], FieldInfo | None, type[BaseModel]]:
    """Return the keys that lead to a field, the field (None for the whole), and the model that has it."""
    path: list[str] = []
    field, owner = None, model
    for part in location:
        if not isinstance(part, str) or part not in owner.model_fields:
            break
        path.append(part)
        field = owner.model_fields[part]
        section = _section_of(field)
        if section is None:
            break
        owner = section
    return path, field, owner


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = _without_none(field.annotation)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _value_at(values: Any, path: list[str]) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else getattr(values, part, None)
    return values


def _joined(key: str, name: str) -> str:
    return f"{key}.{_key_text(name)}" if key else _key_text(name)


def _key_text(name: str) -> str:
    """Return a key as it is, or as JSON if it is long or has characters that cannot be printed."""
    return name if name.isprintable() and len(name) <= _MAX_TEXT else shown(name)


def _other_key(unknown: str, owner: type[BaseModel], model: type[BaseModel]) -> str:
    """Return a hint at the key that was meant: one of the same section, or the same key in another section."""
    hint = did_you_mean(unknown, owner.model_fields)
    if hint:
        return hint
    places = {name: name for name in model.model_fields}
    for name, field in model.model_fields.items():
        section = _section_of(field)
        places |= {key: f"{name}.{key}" for key in section.model_fields} if section is not None else {}
    return did_you_mean(unknown, places, places)


def _without_none(kind: Any) -> Any:
    """Return the type of an optional value, or the type itself."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _is_mapping(field: FieldInfo) -> bool:
    return typing.get_origin(_without_none(field.annotation)) is dict


def _expected(field: FieldInfo) -> str:
    """Return what a field expects, in words."""
    kind = _without_none(field.annotation)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(parts)}"
    if origin is tuple:
        items = "numbers" if parts[0] is float else "texts"
        count = "" if parts[-1] is Ellipsis else f"{_COUNTS.get(len(parts), len(parts))} "
        return f"a list of {count}{items}"
    if origin is dict:
        return "names with a folder each"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return " ".join(["a whole number" if kind is int else "a number", _limits(field)]).strip()
    if kind is str:
        return (
            "text that is not empty" if any(getattr(part, "min_length", 0) for part in field.metadata) else "text"
        )
    return "keys and values"


def _limits(field: FieldInfo) -> str:
    """Return a number's limits in words."""
    limits = {name: getattr(part, name) for part in field.metadata for name, _ in _LIMITS if hasattr(part, name)}
    if set(limits) == {"ge", "le"}:
        return f"from {limits['ge']:,} to {limits['le']:,}"
    return " and ".join(words.format(f"{limits[name]:,}") for name, words in _LIMITS if name in limits)


def _choice_hint(field: FieldInfo, value: Any) -> str:
    kind = _without_none(field.annotation)
    is_choice = typing.get_origin(kind) is typing.Literal and isinstance(value, str)
    return did_you_mean(value, typing.get_args(kind)) if is_choice else ""

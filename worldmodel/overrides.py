"""Settings by name, as on a command line: `override(config, "main.loop.loops=8", "main.loop.layers=T1")`.

A name is the path through the dataclasses of a config, with a number where there is a tuple of them
(`causal.0.extra=1`); what a value may be follows from the field's default. All assignments are applied at once, so that
two settings that are only valid together need no order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, TypeVar

Config = TypeVar("Config")

FROM_THE_DATA = ("observation", "action", "format_version")  # nobody's to choose
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def override(config: Config, *assignments: str, prefix: str = "", beside: Iterable[str] = ()) -> Config:
    """A copy of a config with some settings changed.

    Args:
        config: a frozen dataclass, such as `ModelConfig` or `TrainConfig`.
        assignments: each `NAME=VALUE`. Of two with the same name the last one holds. `causal.N` with N one above the
            last stage adds a stage, a copy of the last, and changes that.
        prefix: what every name begins with, where a config is one of several, as in `training.average=0.99`.
        beside: the first names of the settings of other configs (`training`), for whoever misspells one of those.

    Raises:
        ValueError: a name is unknown (the sentence lists the known ones), a value has the wrong type, or the config
            refuses it.
    """
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"a setting is written as NAME=VALUE, such as main.loop.loops=8, not {assignment!r}")
        if f"{name.strip()}." == prefix:
            _refuse_whole({"": text}, name.strip(), _listed(_names(config, prefix), prefix))
        values[name.strip().removeprefix(prefix)] = text.strip()
    return _changed(config, values, prefix, beside)


def _changed(config: Any, values: dict[str, str], path: str, beside: Iterable[str] = ()) -> Any:
    """`config` with `values` by the rest of their names; `path` is how it is called itself, with a dot behind."""
    known = _names(config, path)
    changes = {}
    for name, inner in _by_first_name(values).items():
        if name not in known:
            raise ValueError(f"there is no setting {path + name!r}; known here are {_listed([*known, *beside], path)}")
        now, full = getattr(config, name), path + name
        if dataclasses.is_dataclass(now):
            _refuse_whole(inner, full, _listed((f.name for f in dataclasses.fields(now)), f"{full}."))
            changes[name] = _changed(now, inner, f"{full}.")
        elif isinstance(now, tuple) and now and dataclasses.is_dataclass(now[0]):
            _refuse_whole(inner, full, _listed(range(len(now)), f"{full}."))
            changes[name] = _changed_stages(now, inner, f"{full}.")
        elif now == ():
            raise ValueError(f"there is nothing to set in {full}: observations have one modality only")
        elif set(inner) != {""}:
            raise ValueError(f"{full} is a single setting: write {full}=VALUE, not {full}.{next(iter(inner))}=VALUE")
        else:
            changes[name] = _parsed(inner[""], known[name].default, full)
    return dataclasses.replace(config, **changes)


def _names(config: Any, path: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields of `config` that may be set."""
    return {f.name: f for f in dataclasses.fields(config) if path + f.name not in FROM_THE_DATA}


def _changed_stages(stages: tuple[Any, ...], values: dict[str, str], path: str) -> tuple[Any, ...]:
    changed = list(stages)
    for name, inner in sorted(_by_first_name(values).items(), key=lambda item: (len(item[0]), item[0])):
        if not name.isdecimal() or int(name) > len(changed):
            listed = _listed(range(len(changed) + 1), path)
            raise ValueError(f"there is no setting {path + name!r}; known here are {listed} (the last adds a stage)")
        if int(name) == len(changed):
            changed.append(changed[-1])
        _refuse_whole(inner, path + name, _listed((f.name for f in dataclasses.fields(changed[0])), f"{path}{name}."))
        changed[int(name)] = _changed(changed[int(name)], inner, f"{path}{name}.")
    return tuple(changed)


def _by_first_name(values: dict[str, str]) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for name, text in values.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = text
    return groups


def _refuse_whole(inner: dict[str, str], name: str, listed: str) -> None:
    if "" in inner:
        raise ValueError(f"{name} is not a single setting; known here are {listed}")


def _listed(names: Iterable[Any], path: str) -> str:
    return ", ".join(f"{path}{name}" for name in names)


def _parsed(text: str, default: Any, name: str) -> Any:
    """The value of a field, in the type of its default."""
    if isinstance(default, tuple):
        parts = text.strip("()").split(",")
        if len(parts) != len(default):
            raise ValueError(f"{name} must be {len(default)} values with a comma between them, not {text!r}")
        return tuple(_parsed(part.strip(), like, name) for part, like in zip(parts, default))
    kind = type(default)
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} must be {KINDS[kind]}, not {text!r}") from None
    if kind is not str and not 0 <= value < math.inf:  # no setting of any config is a number below zero
        raise ValueError(f"{name} must be {KINDS[kind]}, 0 or more, not {text!r}")
    return value

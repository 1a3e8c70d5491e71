"""Compares the API of two `matchlock` packages: every name, parameter, default and field of one must be in the other.

api.py dump               prints the API of the installed package as JSON
api.py compare OLD NEW    fails unless NEW has all that OLD has
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from typing import Any

Api = dict[str, Any]


def dump() -> Api:
    """The installed package's API."""
    import matchlock
    import matchlock.builder
    import matchlock.client
    import matchlock.types

    api: Api = {}
    for name in matchlock.__all__:
        api[name] = describe(getattr(matchlock, name))
    api["builder.Sandbox"] = describe(matchlock.builder.Sandbox)
    api["client.Client"] = describe(matchlock.client.Client)
    for name, value in vars(matchlock.types).items():
        if inspect.isclass(value) and value.__module__.startswith("matchlock"):
            api[f"types.{name}"] = describe(value)
    return api


def describe(value: Any) -> Any:
    """A class by its members, anything else by itself."""
    if not inspect.isclass(value):
        return repr(value)
    members: Api = {"bases": [base.__name__ for base in value.__mro__ if base.__module__.startswith("matchlock")]}
    if dataclasses.is_dataclass(value):
        members["fields"] = [
            [field.name, default(field), field.kw_only] for field in dataclasses.fields(value) if field.init
        ]
    for name, member in vars(value).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property):
            members[name] = "property"
        elif inspect.isfunction(member):
            members[name] = [
                [parameter.name, parameter.kind.name, repr(parameter.default)]
                for parameter in inspect.signature(member).parameters.values()
                if parameter.name != "self"
            ]
        elif isinstance(member, int):
            members[name] = member
    if "fields" in members:
        members.pop("__init__", None)
    return members


def default(field: Any) -> str:
    """The default of a field."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def compare(old: Any, new: Any, where: str) -> list[str]:
    """The parts of `old` that are missing or different in `new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        missing = [f"{where}.{name}: missing" for name in old if name not in new]
        return missing + [
            line for name in old if name in new for line in compare(old[name], new[name], f"{where}.{name}")
        ]
    if isinstance(old, list) and isinstance(new, list) and old and isinstance(old[0], list):
        # Parameters and fields: more may follow, as keywords only.
        positional = [entry for entry in new if not keyword_only(entry)]
        rest = [entry for entry in new if keyword_only(entry)]
        same = [entry for entry in old if not keyword_only(entry)] == positional
        missing_words = [entry for entry in old if keyword_only(entry) and entry not in rest]
        return [] if same and not missing_words else [f"{where}: {old} became {new}"]
    return [] if old == new else [f"{where}: {old} became {new}"]


def keyword_only(entry: list[Any]) -> bool:
    """Whether a parameter or field is given by name only."""
    return entry[1] == "KEYWORD_ONLY" or entry[2] is True


def main(arguments: list[str]) -> int:
    if arguments == ["dump"]:
        print(json.dumps(dump()))
        return 0
    with open(arguments[1], encoding="utf-8") as old, open(arguments[2], encoding="utf-8") as new:
        differences = compare(json.load(old), json.load(new), "matchlock")
    for line in differences:
        print(line)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

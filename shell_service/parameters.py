"""Parameters: what a script asks whoever runs it, and how the answers are handed to it.

They are declared with the script, each as a mapping with these keys; those that are not given are not there.

name, type, help
    Types are those of `TYPES`. A secret's value is the name of a secret of whoever runs the script.
default, required
    Without a default it must be given, unless it is said not to be required; then it may be missing altogether.
minimum, maximum
    Of a number; min_length and max_length of a string; choices of a choice.
env
    The variable that holds the value: by default of the parameter's own name, none where it is null.
position
    Its place among the script's arguments, before all others.

Values are handed over as variables and arguments, never as part of the code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from baselayer.errors import FieldErrors
from shell_service.schemas import VARIABLE

Declared = Mapping[str, Any]

TYPES = ("string", "integer", "number", "boolean", "choice", "secret")
_EXACT = 2**53  # beyond it JSON's numbers are not
# Which keys belong to which types.
_BOUNDS = {
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "min_length": ("string",),
    "max_length": ("string",),
    "choices": ("choice",),
}


@dataclass(frozen=True)
class Answers:
    """Checked values of parameters, and what the job is given of them."""

    values: dict[str, Any] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    #: Names of secrets by those of variables.
    secret_env: dict[str, str] = field(default_factory=dict)


def variable_of(declared: Declared) -> str | None:
    """The variable that holds a parameter's value."""
    name: str | None = declared.get("env", declared["name"])
    return name


# -- declarations ------------------------------------------------------------------------------------------------------


def declaration_problems(declared: Declared) -> FieldErrors:
    """What is wrong with one declaration, of which each key by itself is right, by key."""
    problems: FieldErrors = {}
    kind = declared["type"]
    for key, kinds in _BOUNDS.items():
        if key in declared and kind not in kinds:
            problems[key] = [f"Belongs to {' and '.join(kinds)} only, and this is a {kind}."]
    if kind == "choice" and not declared.get("choices"):
        problems["choices"] = ["A choice needs at least one."]
    for low, high in (("minimum", "maximum"), ("min_length", "max_length")):
        if low in declared and high in declared and declared[low] > declared[high]:
            problems[low] = [f"Must not be above {high}."]
    if "default" in declared and not problems:
        if declared.get("required"):
            problems["required"] = ["What has a default is never missing."]
        elif problem := value_problem(declared, declared["default"]):
            problems["default"] = [problem]
    if "position" in declared:
        if kind == "secret":
            problems["position"] = ["Arguments can be seen by other processes; a secret is a variable only."]
        elif declared.get("required") is False and "default" not in declared:
            problems["position"] = ["An argument cannot be missing: give a default, or let it be required."]
    elif variable_of(declared) is None:
        problems["env"] = ["Without a variable and a position the script would not get it."]
    return problems


def list_problem(declared: Sequence[Declared], env: Mapping[str, str]) -> str | None:
    """What is wrong with declarations together, and with the script's other variables `env`, if anything is."""
    names = [item["name"] for item in declared]
    if again := _repeated(names):
        return f"{again} is declared twice."
    variables = [name for item in declared if (name := variable_of(item))]
    if again := _repeated([*variables, *env]):
        return f"The variable {again} has two values."
    positions = sorted(item["position"] for item in declared if "position" in item)
    if positions != list(range(1, len(positions) + 1)):
        return f"Positions must be 1 to {len(positions)}, each once."
    return None


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


# -- values ------------------------------------------------------------------------------------------------------------


def answers(declared: Sequence[Declared], given: Mapping[str, Any]) -> tuple[Answers, FieldErrors]:
    """What a job gets of these values, and all that is wrong with them, by parameter."""
    errors: FieldErrors = {}
    known = {item["name"] for item in declared}
    for name in given:
        if name not in known:
            errors[name[:64]] = ["The script has no such parameter."]
    found = Answers()
    arguments: dict[int, str] = {}
    for item in declared:
        name = item["name"]
        if name in given or "default" in item:
            value = given.get(name, item.get("default"))
            if problem := value_problem(item, value):
                errors[name] = [problem]
            else:
                _hand_over(item, _normal(item, value), found, arguments)
        elif item.get("required", True):
            errors[name] = ["Must be given."]
    found.args.extend(arguments[position] for position in sorted(arguments))
    return found, errors


def _hand_over(declared: Declared, value: Any, found: Answers, arguments: dict[int, str]) -> None:
    found.values[declared["name"]] = value
    variable = variable_of(declared)
    if variable:
        (found.secret_env if declared["type"] == "secret" else found.env)[variable] = _text(value)
    if "position" in declared:
        arguments[declared["position"]] = _text(value)


def _normal(declared: Declared, value: Any) -> Any:
    return int(value) if declared["type"] == "integer" else value  # JSON knows one kind of number: 5.0 is 5


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def value_problem(declared: Declared, value: Any) -> str | None:
    """What is wrong with a value, if anything is."""
    kind = declared["type"]
    if kind in ("integer", "number"):
        return _number_problem(declared, value, whole=kind == "integer")
    if kind == "boolean":
        return None if isinstance(value, bool) else "Must be true or false."
    if not isinstance(value, str):
        return "Must be text."
    if "\0" in value:
        return "Must not contain a NUL character."
    if kind == "choice" and value not in declared["choices"]:
        return f"Must be one of: {', '.join(declared['choices'])}."
    if kind == "secret" and not re.fullmatch(VARIABLE, value, re.ASCII):
        return "Must be the name of a secret of yours."
    if len(value) < declared.get("min_length", 0):
        return f"Must have at least {declared['min_length']} characters."
    if len(value) > declared.get("max_length", math.inf):
        return f"Must have at most {declared['max_length']} characters."
    return None


def _number_problem(declared: Declared, value: Any, whole: bool) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_EXACT <= value <= _EXACT:
        return f"Must be a {'whole ' if whole else ''}number."  # no NaN either, as it is never within
    if whole and value != int(value):
        return "Must be a whole number."
    if value < declared.get("minimum", -math.inf):
        return f"Must be at least {declared['minimum']:.10g}."
    if value > declared.get("maximum", math.inf):
        return f"Must be at most {declared['maximum']:.10g}."
    return None

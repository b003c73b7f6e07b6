"""The base of an experiment's parameters: types, ranges, defaults, one description each."""

import types
import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from kit.base import UsageError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


class Parameters(BaseModel):
    """Parameters of one experiment; a subclass has a field with a description for each.

        class Parameters(kit.Parameters):
            steps: int = Field(default=5, ge=1, le=100, description="steps of the training")

    Values are checked strictly: no text for a number, no infinity, no unknown name. A whole
    number may come as 5.0, because pipeline arguments lose the difference. Raises UsageError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as err:
            raise _usage_error(type(self), err) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Refuse a field without a description: the notebooks and the pages show it."""
        for name, field in cls.model_fields.items():
            if not field.description:
                raise UsageError(
                    f"define the parameter {name} of {cls.__module__}",
                    "it has no description",
                    f"write {name}: … = Field(…, description='what it does')",
                )

    @model_validator(mode="before")
    @classmethod
    def _accept_whole_floats(cls, values: Any) -> Any:
        """Turn 5.0 into 5 where a whole number is expected."""
        if not isinstance(values, dict):
            return values
        return {name: cls._as_whole(name, value) for name, value in values.items()}

    @classmethod
    def _as_whole(cls, name: str, value: object) -> object:
        field = cls.model_fields.get(name)
        wanted = field is not None and field.annotation is int
        return int(value) if wanted and isinstance(value, float) and value.is_integer() else value


def allowed_values(field: FieldInfo) -> str:
    """Return what a parameter accepts in words, such as "a whole number, at least 1"."""
    kind: Any = field.annotation
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next((part for part in typing.get_args(kind) if part is not type(None)), kind)
    bounds = [
        words.format(getattr(rule, name))
        for name, words in _BOUNDS.items()
        for rule in field.metadata
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_KINDS.get(kind, getattr(kind, "__name__", str(kind))), *bounds])


def _usage_error(cls: type[Parameters], err: ValidationError) -> UsageError:
    """Turn pydantic's list of problems into one error of the kit."""
    fields, tried, got, next_step = cls.model_fields, [], [], []
    for problem in err.errors():
        name = str(problem["loc"][0]) if problem["loc"] else "parameters"
        if name in fields:
            tried.append(f"{name} = {repr(problem['input'])[:80]} is not valid")
            got.append(problem["msg"])
            description = fields[name].description
            next_step.append(f"set {name} to {allowed_values(fields[name])}: {description}")
        else:
            tried.append(f"unknown parameter {name[:80]!r}")
            next_step.append(f"use one of: {', '.join(fields)}")
    # A hostile request may have thousands of wrong names.
    parts = ("; ".join(dict.fromkeys(part))[:1000] for part in (tried, got, next_step))
    return UsageError(*parts)

"""The model of one line of the history. Imported late, because it loads pydantic."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from kit.base.files import SCHEMA, Json

_KINDS = {"dict": "table", "model": "table", "string": "text", "float": "number", "int": "number"}


def odd_field(record: object) -> str:
    """Return what is wrong with a line of the history; empty if its fields have their types."""
    try:
        Record.model_validate(record)
    except ValidationError as err:
        error = err.errors()[0]
        name = ".".join(map(str, error["loc"]))
        if error["type"] == "value_error":
            return str(error["ctx"]["error"])
        kind = _KINDS.get(error["type"].replace("finite_number", "float").removesuffix("_type"))
        if kind and name:
            return f"{name} is not a {kind}"
        return "it has another shape" if name in ("", "schema") else f"{name}: {error['msg']}"
    return ""


def _is_a_name(run: str) -> str:
    if run in ("", ".", "..") or set(run) & set("/\0"):
        raise ValueError("run is not the name of a folder")
    return run


_Scalar = str | bool | int | float | None


class _Data(BaseModel):
    model_config = ConfigDict(strict=True)
    title: str = ""
    test_items: int | None = None


class Record(BaseModel):
    """The fields of a line that its readers rely on; a line may hold more."""

    model_config = ConfigDict(strict=True)
    schema_: int = Field(alias="schema", ge=SCHEMA, le=SCHEMA)
    run: Annotated[str, AfterValidator(_is_a_name)]
    parameters: dict[str, _Scalar | dict[str, _Scalar]] = {}  # `gates` is a table
    data: _Data = _Data()
    experiment: str = ""
    metrics: dict[str, FiniteFloat] = {}
    figures: dict[str, FiniteFloat | None] = {}
    seconds: dict[str, FiniteFloat] = {}
    pipeline: dict[str, FiniteFloat] = {}
    host: Json = {}
    git: Json = {}
    versions: Json = {}

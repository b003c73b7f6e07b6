"""An MLflow server that keeps artifacts in its own store only, wherever a client wants them.

MLflow (3.17.2) lets a client name the artifact location of an experiment, and writes and reads
there with the server's rights: `file:///etc`, a path, another bucket. The sandbox's server and the
platform's (`mlflow server --app-name own-store`, env/images/mlflow) take no such location.
"""

import re
from typing import Any

OWN = re.compile(r"mlflow-artifacts:/(?!/)[\w ./-]*")


def is_own(location: str) -> bool:
    """Return whether an artifact location is below the server's own store."""
    return bool(OWN.fullmatch(location)) and ".." not in location.split("/")


def refuse_other_locations() -> None:
    """Make this process's MLflow refuse every other artifact location of a client with HTTP 400.

    Raises AttributeError for an MLflow that checks locations elsewhere.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.server import handlers

    checked = handlers._validate_storage_location_uri

    def validate(value: str, field_name: str) -> str:
        if not is_own(value):
            step = "leave it out, or give one that begins with mlflow-artifacts:/"
            raise MlflowException.invalid_parameter_value(
                f"{field_name} {value!r:.200} is not in this server's own store: {step}"
            )
        return checked(value, field_name)

    handlers._validate_storage_location_uri = validate


def create_app() -> Any:
    """Return the application of `mlflow server --app-name own-store`."""
    refuse_other_locations()
    from mlflow.server.fastapi_app import app

    return app

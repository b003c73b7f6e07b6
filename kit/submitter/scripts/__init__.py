"""The shell programs of the submitter: run on the site, on the cloud VM, and in the batch job."""

from importlib.resources import files


def script(name: str) -> str:
    """Return the text of a shell program."""
    return files(__name__).joinpath(f"{name}.sh").read_text("utf-8")

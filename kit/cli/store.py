"""Commands about the object store and its credentials: `kit store`, `kit credentials`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.cli.options import echo_json, echo_rows, echo_table, json_option, profile_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from kit.store import ObjectStore

    Opener = Callable[[], ObjectStore]


@click.command("credentials")
@profile_option
@json_option
@click.pass_context
def credentials_command(ctx: click.Context, profile: str | None, as_json: bool) -> None:
    """List credentials and their expiry.

    Lists the login, tokens, keys and certificates that the profile needs, and how each is
    renewed. The exit code is 1 when one of them is missing or has expired.

    \b
    Example:
      kit credentials --profile roihu
    """
    from kit.base.settings import load
    from kit.store import as_row, list_credentials

    rows = list_credentials(load(profile))
    if as_json:
        echo_json(rows)
    else:
        texts = [as_row(row) for row in rows]
        problems = [(text["credential"], text.pop("problem")) for text in texts]
        echo_table(texts)
        for name, problem in problems:
            if problem:
                click.echo(f"problem with {name}: {problem}")
    ctx.exit(1 if any(row.problem for row in rows) else 0)


@click.group("store")
@profile_option
@click.option("--bucket", metavar="NAME", help="Bucket.  [default: the profile's pipeline bucket]")
@click.pass_context
def store_group(ctx: click.Context, profile: str | None, bucket: str | None) -> None:
    """List, upload and download objects.

    Works on the object store of the profile. Every transfer is checked by SHA-256.

    \b
    Example:
      kit store --profile sandbox ls runs/
    """

    def opened() -> "ObjectStore":
        """Open the bucket; called by the commands, so that `-h` needs no login."""
        from kit.base.settings import load
        from kit.store import bucket_name, open_store

        settings = load(profile)
        return open_store(settings, bucket or bucket_name(settings, "pipeline"))

    ctx.obj = opened


@store_group.command("ls")
@click.argument("prefix", default="")
@json_option
@click.pass_obj
def store_ls(opened: "Opener", prefix: str, as_json: bool) -> None:
    """List objects.

    Shows size, time of the last change (UTC) and key of each object whose key begins with
    PREFIX.

    \b
    Example:
      kit store ls data/
    """
    echo_rows(
        list(opened().list(prefix)),
        as_json,
        lambda row: {
            "bytes": f"{row.size:>13,}",
            "modified (utc)": f"{row.modified:%Y-%m-%d %H:%M:%S}",
            "key": row.key,
        },
    )


@store_group.command("put")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("key", required=False)
@click.pass_obj
def store_put(opened: "Opener", file: Path, key: str | None) -> None:
    """Upload a file.

    Uploads FILE under KEY (default: the file's name). The bucket is created when it is missing.

    \b
    Example:
      kit store put README.md notes/README.md
    """
    from kit.store import progress_bar

    with progress_bar(file.name, file.stat().st_size) as progress:
        info = opened().put(key or file.name, file, make_bucket=True, progress=progress)
    click.echo(f"{info.key}: {info.size:,} bytes, sha256 {info.sha256}")


@store_group.command("get")
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def store_get(opened: "Opener", key: str, file: Path) -> None:
    """Download an object to a file.

    Writes the object KEY to FILE, whole and checked or not at all. An existing regular file is
    replaced; a folder, a symlink or a device of that name is an error.

    \b
    Example:
      kit store get notes/README.md copy.md
    """
    from kit.store import progress_bar

    with progress_bar(key, opened().stat(key).size) as progress:
        info = opened().get_file(key, file, progress=progress)
    click.echo(f"{file}: {info.size:,} bytes, sha256 {info.sha256}")


@store_group.command("rm")
@click.argument("keys", nargs=-1, required=True)
@click.pass_obj
def store_rm(opened: "Opener", keys: tuple[str, ...]) -> None:
    """Remove objects.

    Removes the objects KEYS. Removed objects cannot be restored.

    \b
    Example:
      kit store rm notes/README.md
    """
    for key in keys:
        opened().delete(key)
        click.echo(f"removed {key}")

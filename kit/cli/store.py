"""Commands about the object store and its credentials: `kit store`, `kit credentials`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.cli.options import (
    Decorator,
    echo_json,
    echo_rows,
    echo_table,
    json_option,
    pass_on_options,
    profile_option,
)

if TYPE_CHECKING:
    from kit.store import ObjectStore

bucket_option: Decorator = click.option(
    "--bucket", metavar="NAME", help="Bucket.  [default: the profile's pipeline bucket]"
)


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
@bucket_option
@click.pass_context
def store_group(ctx: click.Context, profile: str | None, bucket: str | None) -> None:
    """List, upload and download objects.

    Works on the object store of the profile. Every transfer is checked by SHA-256.

    \b
    Example:
      kit store ls runs/ --profile sandbox
    """
    pass_on_options(ctx)


def _open(profile: str | None, bucket: str | None) -> "ObjectStore":
    """Open the bucket of a profile."""
    from kit.base.settings import load
    from kit.store import bucket_name, open_store

    settings = load(profile)
    return open_store(settings, bucket or bucket_name(settings, "pipeline"))


@store_group.command("ls")
@click.argument("prefix", default="")
@profile_option
@bucket_option
@json_option
def store_ls(prefix: str, profile: str | None, bucket: str | None, as_json: bool) -> None:
    """List objects.

    Shows size, time of the last change (UTC) and key of each object whose key begins with
    PREFIX.

    \b
    Example:
      kit store ls data/
    """
    echo_rows(
        list(_open(profile, bucket).list(prefix)),
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
@profile_option
@bucket_option
def store_put(file: Path, key: str | None, profile: str | None, bucket: str | None) -> None:
    """Upload a file.

    Uploads FILE under KEY (default: the file's name). The bucket is created when it is missing.

    \b
    Example:
      kit store put README.md notes/README.md
    """
    from kit.store import progress_bar

    with progress_bar(file.name, file.stat().st_size) as progress:
        store = _open(profile, bucket)
        info = store.put(key or file.name, file, make_bucket=True, progress=progress)
    click.echo(f"{info.key}: {info.size:,} bytes, sha256 {info.sha256}")


@store_group.command("get")
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path))
@profile_option
@bucket_option
def store_get(key: str, file: Path, profile: str | None, bucket: str | None) -> None:
    """Download an object to a file.

    Writes the object KEY to FILE, whole and checked or not at all. An existing regular file is
    replaced; a folder, a symlink or a device of that name is an error.

    \b
    Example:
      kit store get notes/README.md copy.md
    """
    from kit.store import progress_bar

    store = _open(profile, bucket)
    with progress_bar(key, store.stat(key).size) as progress:
        info = store.get_file(key, file, progress=progress)
    click.echo(f"{file}: {info.size:,} bytes, sha256 {info.sha256}")


@store_group.command("rm")
@click.argument("keys", nargs=-1, required=True)
@profile_option
@bucket_option
def store_rm(keys: tuple[str, ...], profile: str | None, bucket: str | None) -> None:
    """Remove objects.

    Removes the objects KEYS. Removed objects cannot be restored.

    \b
    Example:
      kit store rm notes/README.md
    """
    store = _open(profile, bucket)
    for key in keys:
        store.delete(key)
        click.echo(f"removed {key}")

"""Bring the official Fashion-MNIST files into a folder: from a mirror, or as a Debian package."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kit.base import DataError

# File name -> MD5, which is what the publisher gives.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}
# The first is plain http, so nothing that came from it is used before its checksum is right.
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)
PACKAGE = "dataset-fashion-mnist"
PACKAGE_DIR = Path("/usr/share/datasets/fashion-mnist")
RETRIES = 2  # of each file on each mirror; pooch waits 1 s, then 2 s
TIMEOUT_S = (3.05, 30.0)  # connecting, and between two pieces of an answer
APT_TIMEOUT_S = 300


def from_mirrors(mirrors: Sequence[str], folder: Path) -> None:
    """Download the files whose checksums are not right in `folder`, from the first good mirror.

    Raises DataError with the answer of each mirror, OSError when the folder cannot be written.
    """
    import requests

    problems = []
    for mirror in mirrors:
        try:
            _from_mirror(mirror, folder)
            return
        except (requests.ConnectionError, requests.Timeout) as err:
            problems.append(f"{mirror}: no connection ({type(err).__name__})")
        except requests.HTTPError as err:
            problems.append(f"{mirror}: HTTP {err.response.status_code}")
        except requests.RequestException as err:
            problems.append(f"{mirror}: the answer was cut off ({type(err).__name__})")
        except ValueError:
            problems.append(f"{mirror}: wrong checksum")
    raise DataError("download the files from the mirrors", "; ".join(problems))


def _from_mirror(mirror: str, folder: Path) -> None:
    import pooch
    import tqdm

    pooch.get_logger().setLevel("WARNING")
    url = f"{mirror.rstrip('/')}/"
    files = pooch.create(folder, url, registry=CHECKSUMS, retry_if_failed=RETRIES)
    for name in CHECKSUMS:
        with tqdm.tqdm(
            total=1, desc=name, unit="B", unit_scale=True, leave=False, mininterval=1
        ) as bar:
            fetch = pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT_S)
            files.fetch(name, downloader=fetch)


def from_debian_package(folder: Path) -> None:
    """Fetch the Debian package, whose signature apt checks, and unpack it into `folder`.

    Needs no root. Raises DataError when that is not possible here, OSError when the folder
    cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="package-") as place:
        _run(["apt-get", "download", PACKAGE], Path(place))
        archive = next(Path(place).glob("*.deb"), None)
        if archive is None:
            raise DataError(f"apt-get download {PACKAGE}", "it left no package")
        _run(["dpkg-deb", "-x", archive.name, "unpacked"], Path(place))
        for path in (Path(place) / "unpacked" / PACKAGE_DIR.relative_to("/")).glob("*ubyte*"):
            if path.name.removesuffix(".gz") + ".gz" in CHECKSUMS and not path.is_symlink():
                path.replace(folder / path.name)


def _run(argv: list[str], folder: Path) -> None:
    tried = " ".join(argv[:3])
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=APT_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise DataError(tried, f"this machine has no {argv[0]}") from None
    except subprocess.TimeoutExpired:
        raise DataError(tried, f"no end after {APT_TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(tried, lines[-1][:300])

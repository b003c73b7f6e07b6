"""Bring the official Fashion-MNIST files into a folder: from a mirror, or as a Debian package."""

import re
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from kit.base import DataError, ca_bundle_step

# File name -> SHA-256 of the published file; the publisher itself gives only MD5.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
}
# The second is plain http: nothing that came from it is used before its checksum is right.
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
PACKAGE = "dataset-fashion-mnist"
PACKAGE_DIR = Path("/usr/share/datasets/fashion-mnist")
RETRIES = 2  # of each file on each mirror; pooch waits 1 s, then 2 s
TIMEOUT_S = (3.05, 30.0)  # connecting, and between two pieces of an answer
APT_TIMEOUT_S = 300
# apt's words where this machine's package lists are empty, as in a container image, or too old.
_NO_LISTS = re.compile(r"Unable to locate package|404 +Not Found|no installation candidate")


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
        except OSError as err:
            if not (step := ca_bundle_step(err, "")):
                raise
            problems.append(f"{mirror}: {err}: {step}")
    raise DataError("download the files from the mirrors", "; ".join(problems))


def _from_mirror(mirror: str, folder: Path) -> None:
    import tqdm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm 4.70 misses ipywidgets, not needed here
        import pooch

    pooch.get_logger().setLevel("WARNING")
    url = f"{mirror.rstrip('/')}/"
    files = pooch.create(folder, url, registry=CHECKSUMS, retry_if_failed=RETRIES)
    for name in CHECKSUMS:
        with tqdm.tqdm(
            total=1, desc=name, unit="B", unit_scale=True, leave=False, mininterval=1, delay=1
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
        _download_package(Path(place))
        archive = next(Path(place).glob("*.deb"), None)
        if archive is None:
            raise DataError(f"apt-get download {PACKAGE}", "it left no package")
        _run(["dpkg-deb", "-x", archive.name, "unpacked"], Path(place))
        for path in (Path(place) / "unpacked" / PACKAGE_DIR.relative_to("/")).glob("*ubyte*"):
            if path.name.removesuffix(".gz") + ".gz" in CHECKSUMS and not path.is_symlink():
                path.replace(folder / path.name)


def _download_package(folder: Path) -> None:
    """Download the package by this machine's package lists, or by new ones inside `folder`."""
    try:
        return _run(["apt-get", "download", PACKAGE], folder)
    except DataError as err:
        if not _NO_LISTS.search(err.got):
            raise
    for part in ("lists", "cache/archives"):
        (folder / part / "partial").mkdir(parents=True)
    own = {"Dir::State::lists": f"{folder}/lists", "Dir::Cache": f"{folder}/cache"}
    # As root apt would read and write them as the user _apt, who has no right to this folder.
    own |= {"APT::Sandbox::User": "root", "APT::Update::Error-Mode": "any"}
    options = [f"--option={name}={value}" for name, value in own.items()]
    _run(["apt-get", "update", *options], folder)
    _run(["apt-get", "download", PACKAGE, *options], folder)


def _run(argv: list[str], folder: Path) -> None:
    tried = " ".join(word for word in argv[:3] if not word.startswith("--"))
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

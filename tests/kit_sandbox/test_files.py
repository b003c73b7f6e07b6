"""The sandbox's folder and what is rendered into it; no service runs here."""

import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from kit_sandbox import files as sandbox_files
from kit_sandbox import keys as sandbox_keys
from kit_sandbox import supervisor as sandbox_supervisor

from kit.base import settings
from kit.base.errors import UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "supervisord.conf"


@pytest.fixture
def short():
    """A folder with a short path, as Unix sockets want it (pytest's own is too long)."""
    with tempfile.TemporaryDirectory(prefix="kit-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def loaded(short, monkeypatch):
    """The sandbox's profile with a state folder of its own and no accounts."""
    monkeypatch.setattr(sandbox_files, "users", lambda: (me(),) * 3)
    return settings.load("sandbox", {"KIT_SANDBOX_DIR": str(short / "s")})


def me():
    return subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_supervisors_configuration_is_the_one_on_file():
    values = {"SBX": "/s", "ROOT": "/checkout", "DAEMON_USER": "somebody"}
    assert sandbox_supervisor.config(values, ["munged", "slurmd-c1"]) == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path / ("long" * 20), "too long for the sandbox's Unix sockets"),
        (
            lambda path: (path / "x").mkdir() or (path / "x" / "thesis").touch() or path / "x",
            "holds files",
        ),
        (lambda path: (path / "link").symlink_to(path) or path / "link", "it is a link"),
        (lambda path: Path("/proc/self"), "cannot be the sandbox's folder"),
    ],
)
def test_a_folder_that_cannot_be_a_sandbox_is_refused_and_left_alone(short, make, text):
    folder = make(short)
    before = sorted(short.rglob("*"))
    given = settings.load("sandbox", {"KIT_SANDBOX_DIR": str(folder)})
    with pytest.raises(UsageError, match=text):
        sandbox_files.folder_of(given)
    assert sorted(short.rglob("*")) == before


def test_everything_is_rendered_and_only_what_others_need_can_be_read_by_others(loaded):
    folder = sandbox_files.folder_of(loaded)
    values = sandbox_files.prepare(loaded, folder)
    etc = folder / "etc"
    open_files = {path.name for path in etc.rglob("*") if path.is_file() and mode(path) & 0o004}
    secrets = {value for key, value in values.items() if key.endswith(("PASSWORD", "HASH"))}
    assert len(secrets) == 13
    for path in (path for path in etc.rglob("*") if path.is_file() and path.suffix != ".key"):
        text = path.read_bytes().decode(errors="replace")
        assert "${" not in text or path.name == "allas.sh", f"{path} has an unfilled name"
        if any(secret in text for secret in secrets):
            assert path.name not in open_files
    assert {"slurm.conf", "hosts", "known_hosts", "task_prolog"} <= open_files
    assert not {"id", "user_ca", "munge.key", "ca.key", "sandbox.env", ".env"} & open_files


def test_a_second_start_keeps_keys_and_passwords_and_puts_modes_right(loaded):
    folder = sandbox_files.folder_of(loaded)
    first = sandbox_files.prepare(loaded, folder)
    names = ["munge.key", "ssh/id", "ssh/user_ca", "ssh/login_host", "ca.key", "secrets/redis"]
    before = {name: (folder / "etc" / name).read_bytes() for name in names}
    for name in names:
        (folder / "etc" / name).chmod(0o666)
    (folder / "etc" / "ssh").chmod(0o777)
    assert sandbox_files.prepare(loaded, folder) == first
    assert {name: (folder / "etc" / name).read_bytes() for name in names} == before
    assert {mode(folder / "etc" / name) for name in names if name != "ca.key"} == {0o600}
    assert mode(folder / "etc" / "ssh") == 0o755


def test_bash_reads_the_variables_as_they_were_written(loaded):
    folder = sandbox_files.folder_of(loaded)
    values = sandbox_files.prepare(loaded, folder)
    script = f'. {folder}/etc/sandbox.env; for name in $0 $@; do echo "$name=${{!name}}"; done'
    done = subprocess.run(["bash", "-c", script, *sorted(values)], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{key}={values[key]}" for key in sorted(values)]


def test_the_profile_and_the_sandbox_agree_where_everything_is(loaded):
    places = {name: sandbox_files.place_of(loaded, name) for name in sandbox_files.PLACES.values()}
    assert places["mlflow"] == ("127.0.0.1", 5000)
    assert places["rgw"] == ("127.0.0.1", 7480)
    assert places["login"] == ("127.0.0.12", 2222)
    assert len(set(places.values())) == len(places), "two services on one port"
    assert all(address.startswith("127.") for address, _ in places.values())


def test_another_profile_cannot_be_brought_up_as_a_sandbox(tmp_path):
    given = settings.load("sandbox", {"KIT_SANDBOX_DIR": str(tmp_path)})
    bare = settings.Settings(
        profile="elsewhere",
        site=given.site,
        results_dir=tmp_path,
        cache_dir=tmp_path,
        sandbox_dir=tmp_path,
    )
    with pytest.raises(UsageError, match="profile elsewhere does not say where mlflow is"):
        sandbox_files.place_of(bare, "mlflow")


def test_a_certificate_is_signed_for_these_names_and_this_long(loaded):
    folder = sandbox_files.folder_of(loaded)
    sandbox_files.prepare(loaded, folder)
    sandbox_keys.sign(folder, "hpcuser", "clouduser", "hpcuser", valid="20300101:20300102")
    argv = ["ssh-keygen", "-L", "-f", str(folder / "etc" / "ssh" / "id-cert.pub")]
    text = subprocess.run(argv, capture_output=True, text=True).stdout
    assert "from 2030-01-01T00:00:00 to 2030-01-02T00:00:00" in text
    assert text.split("Principals:")[1].split("Critical")[0].split() == ["hpcuser", "clouduser"]

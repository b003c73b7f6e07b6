"""The sandbox's state folder and the files rendered into it; no service runs here."""

import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from kit_sandbox import files, keys, supervisor

from kit.base import UsageError
from kit.base.settings import Settings, load

GOLDEN = Path(__file__).parents[1] / "golden" / "supervisord.conf"


@pytest.fixture
def short():
    """A folder with a short path, as Unix sockets want it (pytest's own is too long)."""
    with tempfile.TemporaryDirectory(prefix="kit-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def settings(short):
    """The sandbox's profile with a state folder of its own."""
    return load("sandbox", {"KIT_SANDBOX_DIR": str(short / "s")})


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_supervisor_configuration_equals_the_golden_file():
    values = {"SBX": "/s", "ROOT": "/checkout", "OWNER_UID": "1000"}
    assert supervisor.config(values, ["munged", "slurmd-c1"]) == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path / ("long" * 20), "too long for the sandbox's Unix sockets"),
        (
            lambda path: (path / "x").mkdir() or (path / "x" / "thesis").touch() or path / "x",
            "holds files",
        ),
        (lambda path: (path / "link").symlink_to(path) or path / "link", "it is a symlink"),
        (lambda path: Path("/proc/self"), "cannot be used by the sandbox"),
    ],
)
def test_refuses_and_leaves_alone_a_folder_that_is_not_a_sandbox(short, make, text):
    folder = make(short)
    before = sorted(short.rglob("*"))
    given = load("sandbox", {"KIT_SANDBOX_DIR": str(folder)})
    with pytest.raises(UsageError, match=text):
        files.state_folder(given)
    assert sorted(short.rglob("*")) == before


def test_others_can_read_only_the_rendered_files_that_they_need(settings):
    folder = files.state_folder(settings)
    values = files.prepare(settings, folder, folder / "debian")
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


def test_second_start_keeps_keys_and_restores_modes(settings):
    folder = files.state_folder(settings)
    first = files.prepare(settings, folder, folder / "debian")
    names = ["munge.key", "ssh/id", "ssh/user_ca", "ssh/login_host", "ca.key", "secrets/redis"]
    before = {name: (folder / "etc" / name).read_bytes() for name in names}
    for name in names:
        (folder / "etc" / name).chmod(0o666)
    (folder / "etc" / "ssh").chmod(0o777)
    assert files.prepare(settings, folder, folder / "debian") == first
    assert {name: (folder / "etc" / name).read_bytes() for name in names} == before
    assert {mode(folder / "etc" / name) for name in names if name != "ca.key"} == {0o600}
    assert mode(folder / "etc" / "ssh") == 0o755


def test_bash_reads_the_variables_as_written(settings):
    folder = files.state_folder(settings)
    values = files.prepare(settings, folder, folder / "debian")
    script = f'. {folder}/etc/sandbox.env; for name in $0 $@; do echo "$name=${{!name}}"; done'
    done = subprocess.run(["bash", "-c", script, *sorted(values)], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{key}={values[key]}" for key in sorted(values)]


def test_profile_and_sandbox_agree_on_every_address(settings):
    places = {name: files.place_of(settings, name) for name in files.PLACES.values()}
    assert places["mlflow"] == ("127.0.0.1", 5000)
    assert places["rgw"] == ("127.0.0.1", 7480)
    assert places["login"] == ("127.0.0.12", 2222)
    assert len(set(places.values())) == len(places), "two services on one port"
    assert all(address.startswith("127.") for address, _ in places.values())


def test_profile_without_addresses_is_refused(tmp_path):
    given = load("sandbox", {"KIT_SANDBOX_DIR": str(tmp_path)})
    bare = Settings(
        profile="elsewhere",
        site=given.site,
        results_dir=tmp_path,
        cache_dir=tmp_path,
        sandbox_dir=tmp_path,
    )
    with pytest.raises(UsageError, match="profile elsewhere does not say where mlflow is"):
        files.place_of(bare, "mlflow")


def test_certificate_has_the_given_names_and_validity(settings):
    folder = files.state_folder(settings)
    files.prepare(settings, folder, folder / "debian")
    keys.sign(folder, "hpcuser", "clouduser", "hpcuser", valid="20300101:20300102")
    argv = ["ssh-keygen", "-L", "-f", str(folder / "etc" / "ssh" / "id-cert.pub")]
    text = subprocess.run(argv, capture_output=True, text=True).stdout
    assert "from 2030-01-01T00:00:00 to 2030-01-02T00:00:00" in text
    assert text.split("Principals:")[1].split("Critical")[0].split() == ["hpcuser", "clouduser"]


def test_daemon_folders_are_closed_to_other_users(settings):
    folder = files.state_folder(settings)
    files.prepare(settings, folder, folder / "debian")
    closed = ("log", "etc/secrets", "state/mlflow", "state/redis", "state/prometheus")
    assert {mode(folder / name) for name in closed} == {0o700}
    assert mode(folder) == 0o700


def test_state_folder_created_by_somebody_else_in_between_is_refused(settings, monkeypatch):
    """The folder is looked at after it was created, so an earlier look cannot be outrun."""
    settings.sandbox_dir.mkdir()
    monkeypatch.setattr(files.Path, "exists", lambda path: False)
    monkeypatch.setattr(files.os, "getuid", lambda: 4242)
    with pytest.raises(UsageError, match="it belongs to"):
        files.state_folder(settings)


def test_prometheus_password_hash_is_bcrypt(settings):
    import bcrypt

    folder = files.state_folder(settings)
    values = files.prepare(settings, folder, folder / "debian")
    password, digest = values["PROMETHEUS_PASSWORD"], values["PROMETHEUS_HASH"]
    assert digest.startswith("$2b$04$")
    assert bcrypt.checkpw(password.encode(), digest.encode())
    assert digest in (folder / "etc" / "prometheus_web.yml").read_text()


def test_symlink_in_place_of_the_tunnel_users_keys_is_refused(settings, short):
    """The account of the tunnel keys must not choose which file changes its owner."""
    folder = files.state_folder(settings)
    values = files.prepare(settings, folder, folder / "debian")
    victim = short / "victim"
    victim.write_text("private")
    victim.chmod(0o600)
    names = folder / "home" / values["TUNNEL_USER"] / ".ssh" / "authorized_keys"
    names.unlink()
    names.symlink_to(victim)
    with pytest.raises(UsageError, match=r"\.ssh/authorized_keys cannot be used"):
        files.prepare(settings, folder, folder / "debian")
    assert (mode(victim), victim.read_text()) == (0o600, "private")


@pytest.mark.parametrize(("network", "word"), [(True, ""), (False, "EnableIPv6")])
def test_slurm_finds_its_hosts_on_a_machine_without_a_network(settings, monkeypatch, network, word):
    monkeypatch.setattr(files, "has_network", lambda: network)
    folder = files.state_folder(settings)
    files.prepare(settings, folder, folder / "debian")
    lines = (folder / "etc" / "slurm.conf").read_text().splitlines()
    found = [line for line in lines if line.startswith("CommunicationParameters")]
    assert found == ([f"CommunicationParameters={word}"] if word else []), (
        "Slurm takes no empty value"
    )
    daemons = (folder / "etc" / "daemon" / "slurm.conf").read_text().splitlines()[-1]
    assert daemons == ",".join(
        ["CommunicationParameters=NoInAddrAny", "NoCtldInAddrAny", *[word] * bool(word)]
    )


def test_second_site_has_only_the_programs_of_a_site_and_a_folder_below_the_first(short):
    second = load("sandbox-trixie", {"KIT_SANDBOX_DIR": str(short / "s")})
    assert files.folder_of(second) == short / "s" / "trixie"
    assert set(files.programs_of(second)) == {*files.SLURM, "sshd-login", "submitter"}
    first = load("sandbox", {"KIT_SANDBOX_DIR": str(short / "s")})
    places = [
        files.place_of(settings, files.PLACES[name])
        for settings in (first, second)
        for name in files.programs_of(settings)
        if name in files.PLACES
    ]
    assert len(set(places)) == len(places), "two services on one port"


def test_second_site_is_rendered_with_the_keys_of_the_first(settings, short):
    folder = files.state_folder(settings)
    files.prepare(settings, folder, short / "debian")
    second = load("sandbox-trixie", {"KIT_SANDBOX_DIR": str(short / "s")})
    site = files.state_folder(second)
    files.prepare(second, site, short / "debian13")
    key = ("etc", "ssh", "id")
    assert site.joinpath(*key).read_bytes() == folder.joinpath(*key).read_bytes()
    assert "ClusterName=trixie\n" in (site / "etc" / "slurm.conf").read_text()
    assert (site / "etc" / "cgroup.conf").read_text() == "CgroupPlugin=disabled\n"
    programs = (site / "etc" / "supervisord.conf").read_text()
    assert programs.count("[program:") == len(files.SITE)


def test_second_site_differs_from_the_first_for_its_users(settings, short):
    second = load("sandbox-trixie", {"KIT_SANDBOX_DIR": str(short / "s")})
    folders = []
    for profile in (settings, second):
        folders.append(files.state_folder(profile))
        files.prepare(profile, folders[-1], short / "debian")
    texts = [(folder / "etc" / "sshd_login.conf").read_text() for folder in folders]
    assert f"AuthorizedKeysFile {folders[0]}/etc/ssh/login_keys/%u\n" in texts[0]
    assert "AuthorizedKeysFile none\n" in texts[1]
    assert ("AllowUsers hpcuser\n" in texts[0], "AllowUsers mvirtane\n" in texts[1]) == (True, True)
    assert [text.count("LANG=C.UTF-8") for text in texts] == [1, 0]
    controllers = [(folder / "etc" / "daemon" / "slurm.conf").read_text() for folder in folders]
    assert [text.count("\nJobSubmitPlugins=lua\n") for text in controllers] == [0, 1]
    for name, expected in (
        ("daemon/job_submit.lua", [False, True]),
        ("modules/pytorch/2.13", [False, True]),
        ("modules/pytorch/2.13.lua", [True, False]),
    ):
        assert [(folder / "etc" / name).exists() for folder in folders] == expected
    module = folders[1] / "etc" / "modules" / "pytorch" / "2.13"
    assert module.read_text().startswith("#%Module")
    assert module.stat().st_mode & 0o777 == 0o644, "jobs of another account read it"

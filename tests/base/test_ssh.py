"""What ssh alone does: one connection, certificates, host keys, the person's own configuration."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from private_sshd import PrivateSshd, closing_port, keygen
from waiting import until

from kit.base import (
    ClosedBeforeLogin,
    CommandFailed,
    CredentialExpired,
    CredentialRefused,
    HostKeyRefused,
    KitError,
    SSHHost,
    Unreachable,
    UsageError,
    certificate_end,
    private_folder,
    ssh,
)


def test_one_connection_carries_many_clients_at_once(sshd):
    sshd.cut()
    host = sshd.host(name="many")
    outs = []
    threads = [
        threading.Thread(target=lambda n=n: outs.append(host.run(["echo", str(n)]).out))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outs) == [f"{n}\n" for n in range(8)]
    deadline = time.monotonic() + 5
    while len(sshd.sessions()) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # those that were cut above are still going
    assert len(sshd.sessions()) == 1
    host.close()


def test_the_exit_code_255_of_a_command_is_its_own(sshd):
    assert sshd.host().run(["sh", "-c", "exit 255"], check=False).code == 255


def test_permission_denied_by_a_command_is_its_own_failure(sshd):
    with pytest.raises(CommandFailed):
        sshd.host().run(["sh", "-c", "echo Permission denied >&2; exit 255"])


@pytest.mark.parametrize(
    "text",
    [
        "tar: x: file path too long",
        "chage: the password has expired for bob",
        "Host key verification failed.",
        "bob@backup: Permission denied (publickey).",
    ],
)
def test_message_of_a_command_that_was_cut_off_is_not_one_of_the_login(sshd, text):
    """The command printed that, then the connection was lost: whether it ended is not known."""
    host = sshd.host(name="cut")
    host.run(["true"])  # the connection is open, however busy the machine is
    timer = threading.Timer(0.7, sshd.cut)
    timer.start()
    with pytest.raises(Unreachable) as caught:
        host.run(["sh", "-c", 'echo "$1" >&2; sleep 5', "sh", text])
    timer.join()
    assert type(caught.value) is Unreachable
    host.close()


def test_dead_connection_is_opened_again(sshd):
    host = sshd.host(name="dead")
    for _ in range(3):
        assert host.run(["echo", "back"], repeat=True).out == "back\n"
        sshd.cut()
    host.close()


@pytest.mark.parametrize(("repeat", "calls"), [(True, 2), (False, 1)])
def test_dead_master_costs_one_repeat_if_that_does_no_harm(tmp_path, monkeypatch, repeat, calls):
    ssh = tmp_path / "bin" / "ssh"  # 255 and not a word: what the client says then
    ssh.parent.mkdir()
    ssh.write_text(
        f"#!/bin/sh\ncase $* in *-G*) exit 0;; esac\necho x >>{tmp_path}/calls; exit 255\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    host = SSHHost("site", folder=tmp_path / "c")
    (tmp_path / "c").mkdir(mode=0o700)
    host.socket.touch()
    with pytest.raises(Unreachable, match="printed nothing"):
        host.run(["true"], repeat=repeat)
    assert (tmp_path / "calls").read_text() == "x\n" * calls


def test_contact_lost_in_the_middle_is_unreachable_and_not_repeated(sshd, tmp_path):
    host = sshd.host(name="middle")
    host.run(["true"])

    def cut_when_it_has_begun():
        while not (tmp_path / "times").exists():
            time.sleep(0.05)
        sshd.cut()

    cutting = threading.Thread(target=cut_when_it_has_begun, daemon=True)
    cutting.start()
    with pytest.raises(Unreachable):
        host.run(["sh", "-c", f"echo x >>{tmp_path}/times; sleep 30"], repeat=True)
    cutting.join()
    assert (tmp_path / "times").read_text() == "x\n"


def test_machine_that_does_not_answer_is_unreachable(sshd, tmp_path):
    stopped = PrivateSshd(tmp_path / "stopped")
    with pytest.raises(Unreachable, match="refused"):
        stopped.host().run(["true"])


def test_another_machine_of_the_same_name_is_refused_before_sending(tmp_path):
    sshd = PrivateSshd(tmp_path / "other").start()
    keygen("-t", "ed25519", "-N", "", "-f", tmp_path / "another")
    sshd.know((tmp_path / "another.pub").read_text())
    try:
        with pytest.raises(HostKeyRefused) as caught:
            sshd.host().run(["touch", str(tmp_path / "touched")])
    finally:
        sshd.stop()
    assert caught.value.exit_code == 3
    assert "known_hosts" in caught.value.next_step
    assert not (tmp_path / "touched").exists()


def test_key_that_is_not_accepted_is_refused_with_the_next_step(tmp_path):
    sshd = PrivateSshd(tmp_path / "refusing").start()
    sshd.accept(False)
    try:
        with pytest.raises(CredentialRefused, match="refuses the login") as caught:
            sshd.host(renew_hint="register the key in MyCSC").run(["true"])
    finally:
        sshd.stop()
    assert not isinstance(caught.value, CredentialExpired)
    assert "MyCSC" in caught.value.next_step


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    sshd = PrivateSshd(tmp_path_factory.mktemp("certified"), certificates=True).start()
    yield sshd
    sshd.stop()


def test_certificate_is_used_and_its_end_is_known_before_connecting(certified):
    end = int(time.time()) + 3600
    certified.certify(time.time() - 60, end)
    host = certified.host(name="valid")
    assert host.valid_until() == end
    assert not host.folder.exists()  # nothing was opened for it
    assert host.run(["echo", "in"]).out == "in\n"
    host.close()


@pytest.mark.parametrize("ago", [60, 3600])
def test_expired_certificate_differs_from_a_refused_key(certified, ago):
    certified.certify(time.time() - ago - 60, time.time() - ago)
    host = certified.host(name=f"ended{ago}", renew_hint="run csc_cert.py")
    with pytest.raises(CredentialExpired, match="ended at") as caught:
        host.run(["true"])
    assert caught.value.next_step == "run csc_cert.py"
    certified.certify(time.time() - 60, time.time() + 600)
    assert host.run(["echo", "renewed"]).out == "renewed\n"
    host.close()


def test_connection_closed_after_the_end_of_the_certificate_reports_that_end(certified):
    certified.certify(time.time() - 120, time.time() - 60)
    host = certified.host(name="closed", renew_hint="run csc_cert.py")
    try:
        with closing_port() as port:
            certified.write_config(port)
            with pytest.raises(CredentialExpired, match="ended at") as caught:
                host.run(["true"])
    finally:
        certified.write_config(certified.port)
    assert "kex_exchange_identification" in caught.value.got
    assert caught.value.next_step == "run csc_cert.py"
    certified.certify(time.time() - 60, time.time() + 600)
    assert host.run(["echo", "renewed"]).out == "renewed\n"  # at once
    host.close()


@pytest.mark.slow
def test_open_connection_outlives_its_certificate(certified):
    certified.certify(time.time() - 60, time.time() + 2)
    host = certified.host(name="outlives")
    host.run(["true"])
    time.sleep(2.5)
    assert host.run(["echo", "still"]).out == "still\n"
    host.close()


def test_clock_ten_minutes_ahead_does_not_reject_a_valid_certificate(certified):
    certified.certify(time.time() - 60, time.time() + 30)
    host = certified.host(name="ahead", clock=lambda: time.time() + 590)
    assert host.run(["echo", "in"]).out == "in\n"
    host.close()


@pytest.mark.parametrize("content", ["", "no certificate", "ssh-ed25519 AAAA x"])
def test_file_without_a_certificate_has_no_end(tmp_path, content):
    (tmp_path / "x-cert.pub").write_text(content)
    assert certificate_end(tmp_path / "x-cert.pub") is None


def test_broken_ssh_config_is_a_usage_error(tmp_path):
    (tmp_path / "config").write_text("Host site\n  NoSuchOption yes\n")
    host = SSHHost("site", config=str(tmp_path / "config"), folder=tmp_path / "c")
    with pytest.raises(UsageError, match="reach site"):
        host.run(["true"])


@pytest.mark.parametrize("what", ["open to others", "a link", "a file"])
def test_folder_for_the_socket_that_is_not_private_is_refused(tmp_path, what):
    folder = tmp_path / "control"
    if what == "a file":
        folder.touch(mode=0o600)
    elif what == "a link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    else:
        folder.mkdir()
        folder.chmod(0o755)
    with pytest.raises(UsageError, match="private"):
        private_folder(folder)


def test_program_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="cannot run `ssh`") as caught:
        SSHHost("site", folder=tmp_path / "c").run(["true"])
    assert caught.value.next_step == "install it, or correct PATH"


@pytest.fixture
def own(tmp_path):
    """Return a function that starts an sshd with more lines of server and client config."""
    started = []

    def make(client="", more="", **options):
        sshd = PrivateSshd(tmp_path / f"own{len(started)}", more=more, **options).start()
        started.append(sshd)
        with (sshd.folder / "config").open("a") as file:
            file.write(client)
        return sshd

    yield make
    for sshd in started:
        sshd.stop()


class Clock:
    """The time of day, and what a test adds to it."""

    ahead_s = 0.0

    def __call__(self):
        return time.time() + self.ahead_s


def logins(sshd):
    return (sshd.folder / "sshd.log").read_text().count("Connection closed by authenticating user")


def test_refused_login_is_not_tried_again_at_once(own):
    sshd, clock = own(), Clock()
    sshd.accept(False)
    host = sshd.host(clock=clock)
    for seconds, count in ((0, 1), (5, 1), (5, 2), (15, 2), (5, 3)):  # 10 s later, then 20 s later
        clock.ahead_s += seconds
        with pytest.raises(CredentialRefused, match="refuses the login"):
            host.run(["true"])
        until(lambda count=count: logins(sshd) == count)
    sshd.accept(True)
    clock.ahead_s += ssh.MAX_LOGIN_PAUSE_S
    assert host.run(["echo", "in"]).out == "in\n"
    host.close()


def test_connection_closed_before_the_login_says_how_long_to_wait(own):
    sshd = own()
    with closing_port() as port:
        sshd.write_config(port)
        with pytest.raises(ClosedBeforeLogin, match="reach site") as caught:
            sshd.host().run(["true"])
    assert "kex_exchange_identification" in caught.value.got
    assert "15 s to 10 min" in caught.value.next_step


def test_connection_closed_after_a_refused_login_reports_the_refusal(own):
    sshd, clock = own(), Clock()
    sshd.accept(False)
    host = sshd.host(clock=clock, renew_hint="register the key in MyCSC")
    with pytest.raises(CredentialRefused, match="refuses the login"):
        host.run(["true"])
    clock.ahead_s += ssh.LOGIN_PAUSE_S
    with closing_port() as port:
        sshd.write_config(port)
        with pytest.raises(CredentialRefused, match="refuses the login") as caught:
            host.run(["true"])
    assert "closed the connection before the login" in caught.value.got
    assert "MyCSC" in caught.value.next_step
    assert "15 s to 10 min" in caught.value.next_step


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Connection closed by remote host\r\nConnection closed by 10.0.0.1 port 22", True),
        ("read: Connection reset by peer\r\nConnection reset by 10.0.0.1 port 22", True),
        ("write: Broken pipe\r\nbanner exchange: Connection to 10.0.0.1 port 22: x", True),
        ("Connection closed by remote host\r\nConnection closed by UNKNOWN port 65535", False),
        ("banner line contains invalid characters\r\nbanner exchange: invalid format", False),
    ],
)
def test_only_the_end_of_a_connection_itself_is_one_before_the_login(tmp_path, text, kind):
    """Of a jump host or a ProxyCommand, ssh knows no address (UNKNOWN)."""
    host = SSHHost("site", config="/dev/null", folder=tmp_path / "c")
    error = host.failure(255, f"kex_exchange_identification: {text}")
    assert isinstance(error, ClosedBeforeLogin) is kind
    assert isinstance(error, Unreachable)


@pytest.mark.parametrize(
    "line",
    [
        "RemoteCommand tmux",
        "StdinNull yes",
        "ExitOnForwardFailure yes\n  LocalForward {port} 127.0.0.1:1",
        "RequestTTY force",
        "SessionType none",
        "ForkAfterAuthentication yes",
        "PermitLocalCommand yes\n  LocalCommand echo noise",
        "VisualHostKey yes",
        "Compression yes",
        f"ControlPath /tmp/{'long' * 30}",
    ],
)
def test_options_of_the_persons_config_do_not_change_what_the_kit_does(own, line):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host = own(f"  {line.format(port=taken.getsockname()[1])}\n").host()
        assert host.run(["cat"], input=b"text").out == "text"
        host.close()


@pytest.mark.parametrize("sessions", [1, 2])
def test_few_sessions_on_one_connection_are_enough_for_many_commands(tmp_path, sessions):
    sshd = PrivateSshd(tmp_path / "few")
    config = tmp_path / "few/sshd_config"
    config.write_text(config.read_text().replace("MaxSessions 100", f"MaxSessions {sessions}"))
    sshd.start()
    try:
        host = sshd.host()
        with ThreadPoolExecutor(8) as pool:
            outs = list(pool.map(lambda n: host.run(["echo", str(n)]).out, range(8)))
        assert outs == [f"{n}\n" for n in range(8)]
        host.close()
    finally:
        sshd.stop()


def test_host_with_an_ipv6_address_is_reached(tmp_path):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    sshd = PrivateSshd(tmp_path / "six", more="ListenAddress ::1").start()
    config = tmp_path / "six/config"
    config.write_text(config.read_text().replace("127.0.0.1", "::1"))
    try:
        assert sshd.host().run(["echo", "in"]).out == "in\n"
        sshd.host().close()
    finally:
        sshd.stop()


def test_unknown_host_key_is_refused_although_the_config_would_accept_it(own, tmp_path):
    sshd = own("  StrictHostKeyChecking accept-new\n")
    (sshd.folder / "known_hosts").write_text("")
    with pytest.raises(HostKeyRefused, match="by ssh") as caught:
        sshd.host().run(["touch", str(tmp_path / "touched")])
    assert "known_hosts" in caught.value.next_step
    assert not (tmp_path / "touched").exists()
    assert (sshd.folder / "known_hosts").read_text() == ""


def test_binary_noise_of_a_start_file_is_not_output(own):
    noise = 'head -c 3000 /dev/urandom; printf "@exit 0\\\\n"; printf "\\\\377\\\\000" >&2'
    host = own(more=f'ForceCommand {noise}; eval "$SSH_ORIGINAL_COMMAND"').host()
    done = host.run(["sh", "-c", "cat; echo two >&2"], input=b"one")
    assert (done.out, done.err) == ("one", "two\n")
    host.close()


def test_start_file_that_reads_the_input_of_a_command_leaves_no_part_of_it(own, tmp_path):
    host = own(more='ForceCommand read -r line; eval "$SSH_ORIGINAL_COMMAND"').host()
    with pytest.raises(CommandFailed, match="write"):
        host.put(b"first\nsecond\n", f"{tmp_path}/file")
    assert list(tmp_path.glob("file*")) == []
    host.close()


@pytest.mark.parametrize("name", ["person", "%C"])
def test_the_persons_own_connection_is_used_where_it_is_open(own, name):
    sshd = own(f"  ControlPath {{control}}/{name}\n")
    config = sshd.folder / "config"
    config.write_text(config.read_text().replace("{control}", str(sshd.control)))
    master = ["ssh", "-F", config, "-o", "BatchMode=yes", "-M", "-N", "-f", "site"]
    subprocess.run(master, check=True, stderr=subprocess.DEVNULL)
    sshd.accept(False)  # as if the second factor were asked for
    host = sshd.host()
    assert host.run(["echo", "in"]).out == "in\n"
    host.close()  # leaves the person's connection open
    assert host.run(["echo", "still in"]).out == "still in\n"
    subprocess.run(["ssh", "-F", config, "-O", "exit", "site"], stderr=subprocess.DEVNULL)
    with pytest.raises(CredentialRefused):
        host.run(["true"])


def test_processes_that_open_at_once_share_one_connection(own):
    sshd = own()
    code = (
        "import sys; from pathlib import Path; from kit.base import SSHHost\n"
        "SSHHost('site', config=sys.argv[1], folder=Path(sys.argv[2])).run(['true'])"
    )
    argv = [sys.executable, "-c", code, sshd.folder / "config", sshd.control / "c"]
    for process in [subprocess.Popen(argv) for _ in range(4)]:
        assert process.wait() == 0
    listed = subprocess.run(["pgrep", "-f", f"ssh .*{sshd.folder}/config"], capture_output=True)
    assert len(listed.stdout.split()) == 1
    sshd.host().close()


def test_jump_host_that_refuses_the_key_is_named(own):
    jump, sshd = own(more="ListenAddress 127.0.0.2"), own()
    jump.accept(False)
    config = sshd.folder / "config"
    for file in (jump.folder / "config", jump.folder / "known_hosts"):
        file.write_text(file.read_text().replace("127.0.0.1", "127.0.0.2"))
    jumping = (jump.folder / "config").read_text().replace("Host site", "Host jump")
    config.write_text(f"{config.read_text()}  ProxyJump jump\n{jumping}")
    with pytest.raises(CredentialRefused, match=r"^127\.0\.0\.2 refuses the login") as caught:
        sshd.host().run(["true"])
    assert "Permission denied" in caught.value.got


@pytest.mark.parametrize(
    ("program", "kind", "got", "step"),
    [
        ("echo 'Maintenance until Friday'; exit 1", Unreachable, "until Friday", "start file"),
        (
            "echo 'This account is currently not available.'; exit 1",
            Unreachable,
            "not available",
            "start file",
        ),
        ("exit 0", Unreachable, "printed nothing", "start file"),
        ("exec dash", Unreachable, "printed nothing", "start file"),
        (
            "echo 'Your password has expired.' >&2; exit 1",
            CredentialRefused,
            "Your password has expired",
            "in a terminal",
        ),
    ],
)
def test_message_of_a_login_that_runs_no_command_is_shown(own, program, kind, got, step):
    sshd = own(more=f"ForceCommand {program.replace(chr(39), chr(34))}")
    with pytest.raises(kind) as caught:
        sshd.host().run(["true"])
    assert got in caught.value.got
    assert step in caught.value.next_step


@pytest.mark.slow
def test_background_process_of_a_start_file_does_not_delay_the_answer(own):
    sshd = own(more='ForceCommand sleep 20 & eval "$SSH_ORIGINAL_COMMAND"')
    begun = time.monotonic()
    assert sshd.host().run(["echo", "now"], timeout=15).out == "now\n"
    assert time.monotonic() - begun < 10


SHELLS = ["csh", "tcsh", "dash", "bash", *filter(shutil.which, ["fish", "zsh"])]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_passes_scripts_and_arguments_on(own, shell, tmp_path):
    sshd = own(more=f'ForceCommand {shutil.which(shell)} -c "$SSH_ORIGINAL_COMMAND"')
    host = sshd.host()
    word = "a!b 'c' \"d\" $HOME `id`\nnew line " + "x" * 3000
    assert host.run(["sh", "-c", 'printf %s "$1"\n# two lines!', "sh", word]).out == word
    host.put(b"content", f"{tmp_path}/file")
    assert (tmp_path / "file").read_bytes() == b"content"
    host.close()


def test_permission_denied_of_a_command_is_not_a_refused_login(tmp_path):
    host = SSHHost("site", config="/dev/null", folder=tmp_path / "c")
    text = "mkdir: cannot create directory 'x': Permission denied\nclient_loop: Broken pipe"
    assert type(host.failure(255, text)) is Unreachable
    for line in (
        "anna@site: Permission denied (publickey,password).",
        "Permission denied (publickey).",
        "Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures",
    ):
        assert isinstance(host.failure(255, line), CredentialRefused)


def test_remote_command_has_nothing_that_csh_replaces_or_refuses():
    remote = ssh._remote("kit-0", ["sh", "-c", "echo 'a!b'\nexit 1", "x" * 5000])
    assert not set("!\n") & set(remote)
    assert max(map(len, remote.split())) < 1024
    assert "base64" in remote


@pytest.mark.parametrize("word", ["a b", "$HOME", "*", "~", "=x", "a'b", "", "ü", "x!", "x\n"])
def test_word_that_a_shell_may_change_is_encoded(word):
    assert "base64" in ssh._remote("kit-0", ["echo", word])


SHELLS = ["sh", *filter(shutil.which, ["bash", "dash", "csh", "tcsh", "fish", "zsh"])]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("argv", [["echo", "-n", "a/b.c", "x=1,2:3@%+"], ["echo", "a  b!\n'$x"]])
def test_words_arrive_whole_through_any_login_shell(shell, argv):
    """sshd runs the command as an argument of the login shell: `SHELL -c COMMAND`."""
    remote = ssh._remote("kit-0", argv)
    assert ("base64" in remote) is (argv[1] != "-n")
    done = subprocess.run([shell, "-c", remote], capture_output=True, text=True)
    said = "a/b.c x=1,2:3@%+" if argv[1] == "-n" else f"{argv[1]}\n"
    assert done.stdout == f"kit-0\n{said}\nkit-0 0\n"
    assert done.stderr == "kit-0\n"


def test_folder_for_the_socket_that_cannot_be_made_is_an_error_of_the_kit(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match="cannot make the folder"):
        SSHHost("site", config="/dev/null", folder=tmp_path / "file" / "c").run(["true"])


def test_file_system_without_locks_is_named_before_a_connection_is_opened(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(KitError, match=r"(?s)lock .*No locks available") as caught:
        SSHHost("site", config="/dev/null", folder=tmp_path / "c").run(["true"])
    assert "file system with locks" in caught.value.next_step

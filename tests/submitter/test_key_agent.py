"""The agent of the submitter's own: keys with a pass phrase, which nobody else sees."""

import subprocess
from pathlib import Path

import pytest
from private_sshd import PrivateSshd, keygen

from kit.base import Secret, UsageError
from kit.submitter.key_agent import unlocked

PHRASE = "hush-7f3a"


def test_login_uses_a_key_with_a_pass_phrase_that_nobody_sees(tmp_path):
    server, folder = PrivateSshd(tmp_path / "sshd").start(), tmp_path / "own"
    folder.mkdir()
    try:
        key = server.folder / "user_key"
        keygen("-p", "-N", PHRASE, "-P", "", "-f", key)
        with unlocked(folder, [(str(key), Secret(PHRASE))]) as socket:
            config = (server.folder / "config").read_text()
            own = tmp_path / "config"
            own.write_text(config.replace("IdentityAgent none", f"IdentityAgent {socket}"))
            argv = ["ssh", "-F", own, "-o", "BatchMode=yes", "site", "echo in"]
            done = subprocess.run(argv, capture_output=True, text=True)
            assert done.stdout == "in\n", done.stderr
            assert [path for path in folder.rglob("*") if path.is_file()] == []
            shown = subprocess.run(["ps", "axeww"], capture_output=True, text=True).stdout
            assert PHRASE not in shown
        assert not Path(socket).exists()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("phrase", "name", "got"),
    [("another-one", "key", "Bad passphrase"), (PHRASE, "no-such-key", "No such file")],
)
def test_wrong_pass_phrase_or_file_is_reported_without_the_phrase(tmp_path, phrase, name, got):
    keygen("-t", "ed25519", "-N", PHRASE, "-f", tmp_path / "key")
    keys = [(str(tmp_path / name), Secret(phrase))]
    with pytest.raises(UsageError, match=got) as error, unlocked(tmp_path, keys):
        pass
    assert phrase not in str(error.value)
    assert not (tmp_path / "agent").exists()


def test_without_such_keys_no_agent_is_started(tmp_path):
    with unlocked(tmp_path, []) as socket:
        assert (socket, list(tmp_path.iterdir())) == ("", [])

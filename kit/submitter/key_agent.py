"""An ssh-agent of the submitter's own, for keys with a pass phrase where nobody can type it.

The pass phrase goes to `ssh-add` through a terminal: it is in no argument, variable, file or log.
Tried with OpenSSH 9.2.
"""

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kit.base import Secret, UsageError

ANSWER_S = 20.0
_MAX_BYTES = 4000


@contextlib.contextmanager
def unlocked(folder: Path, keys: Sequence[tuple[str, Secret]]) -> Iterator[str]:
    """Hold the keys in an agent for the block; yield its socket in `folder`, "" without keys.

    Raises UsageError for a key that cannot be read or another pass phrase.
    """
    if not keys:
        yield ""
        return
    socket = folder / "agent"
    argv = ["ssh-agent", "-D", "-a", str(socket)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as agent:
        try:
            _wait_for(socket, agent)
            for key, phrase in keys:
                _add(socket, key, phrase)
            yield str(socket)
        finally:
            agent.terminate()


def _wait_for(socket: Path, agent: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + ANSWER_S
    while not socket.exists():
        if agent.poll() is not None or time.monotonic() > deadline:
            raise UsageError(
                "start ssh-agent", f"it made no socket {socket}", "look at its message"
            )
        time.sleep(0.02)


def _add(socket: Path, key: str, phrase: Secret) -> None:
    """Add a key to the agent. Raises UsageError with the words of ssh-add."""
    changes = {"SSH_AUTH_SOCK": str(socket), "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    environ = {**os.environ, **changes}
    child, terminal = pty.fork()
    if child == 0:  # a process with a terminal of its own, which becomes ssh-add at once
        try:
            os.execvpe("ssh-add", ["ssh-add", key], environ)  # noqa: S606 - no shell
        finally:
            os._exit(127)
    try:
        text = _converse(terminal, phrase)
    finally:
        os.close(terminal)  # hangs up: it ends an ssh-add that asks again
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        lines = [line for line in text.splitlines() if line.strip()]
        got = lines[-1].strip() if lines else "no answer"
        step = "give the pass phrase of that key in HPC_PASSWORD or CLOUD_PASSWORD, or another key"
        raise UsageError(f"unlock the ssh key {key}", got[-300:], step)


def _converse(terminal: int, phrase: Secret) -> str:
    """Answer the first question of ssh-add; return what it wrote until its end or next question."""
    text, answered, deadline = "", False, time.monotonic() + ANSWER_S
    while time.monotonic() < deadline and len(text) < _MAX_BYTES:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            part = os.read(terminal, 1000)
        except OSError:  # Linux reports the end of a terminal so
            break
        if not part:
            break
        text += part.decode(errors="replace")
        if answered and "Bad passphrase" in text:
            return "Bad passphrase"
        if not answered and "passphrase for" in text:
            os.write(terminal, phrase.reveal().encode() + b"\n")
            answered, text = True, ""
    return text

"""The ten steps of `docs/real-site.md`, executed as they are written, on both sites of the sandbox.

The person is an ordinary user, also where root runs the tests and the sandbox's services, and
begins with nothing: an empty home folder, no profile, no results, only what a centre and a project
give out (`person.py`). What a person does between two commands is here: the editor that fills in
the login, the profile's values, the ssh config. Step 7 needs a cluster;
`tests/deploy/test_images.py` executes it with stand-ins.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from idx_files import small_data_dir
from kit_sandbox.sites import PROFILES
from notebook_runs import NO_GATES
from person import Person

from kit.base import ROOT, read_history
from kit.base.settings import load

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(600)]
GUIDE = (ROOT / "docs/real-site.md").read_text().partition("## Ten steps")[2].partition("\n## ")[0]
STEPS = {
    int(number): re.sub("(?m)^ +", "", text)
    for number, text in re.findall(r"(?ms)^(\d+)\. .*?```console\n(.*?)^ *```", GUIDE)
}
# the words of a command that a person replaces: a dry run in place of root's rights on the VM, and
# the gates of 60,000 images, which 900 images do not pass
REPLACED = {
    "vm bootstrap ": "vm bootstrap --dry-run ",
    "--budget 20": f"--budget 20 {shlex.join(NO_GATES)}",
}
HEAD = """set -eu
trap '[ -z "${forward:-}" ] || kill "$forward"' EXIT
ssh() { command ssh -F "$SSH_CONFIG" "$@"; }
echo '== user'; id -u; grep CapEff /proc/self/status
"""
# paths on the site and on the VM, which are not in the folder of what the person was given
ON_THE_SITE = r"s#\${KIT_SANDBOX_DIR}/\(\(trixie/\)\?\(projappl\|home\|etc/modules\)\)#SITE/\1#"
FORWARDED = """forward=$!
until [ -s "$HOME/forwarded" ]; do kill -0 "$forward"; sleep 0.2; done
"""
AGAIN = "kit run cloud-hpc --profile PROFILE -p configured True"


def test_guide_has_the_ten_steps_that_are_executed():
    assert sorted(STEPS) == list(range(1, 11))
    for words in REPLACED:
        assert any(words in text for text in STEPS.values()), words


def commands(profile, site):
    """Return the script of all steps but the seventh, each after a line with its number."""
    lines = [HEAD]
    for number, text in STEPS.items():
        for words, replacement in REPLACED.items():
            text = text.replace(words, replacement)
        text = text.replace("roihu-cpu.csc.fi", site.hpc.ssh_host).replace("roihu", profile)
        if number == 1:  # the sandbox's profiles name the login's file
            paths = ON_THE_SITE.replace("SITE", str(site.sandbox_dir))
            text += f"sed -i -e '/^env_file = /d' -e '{paths}' ~/kit-sites/*.toml\n"
        if number == 8:  # it runs for as long as it is needed
            text = f"{text.rstrip()} >$HOME/forwarded &\n{FORWARDED}"
        if number != 7:
            lines.append(f"echo '== {number}'\n{text}")
    again = shlex.join([*shlex.split(AGAIN.replace("PROFILE", profile)), *NO_GATES])
    return "\n".join([*lines, f"echo '== again'\n{again}\n"])


@pytest.fixture
def person():
    person = Person(Path(f"/tmp/kit-person-{os.getpid()}"))
    yield person
    person.close()


@pytest.mark.parametrize("profile", PROFILES)
def test_ten_steps_lead_from_nothing_to_a_run_and_its_bill(profile, second_site, person):
    site, folder = load(profile), person.folder
    access = person.receive(site)
    (folder / "env").symlink_to(ROOT / "env")  # the guide's commands run in a checkout
    editor = folder / "editor"
    editor.write_text(f'#!/bin/sh\nexec cat "{access}/etc/.env" >"$1"\n')
    editor.chmod(0o755)
    config = Path(site.hpc.ssh_config).relative_to(site.sandbox_dir)
    environ = person.environ(
        EDITOR=str(editor),
        SSH_CONFIG=str(access / config),
        KIT_SANDBOX_DIR=str(access),
        KIT_RESULTS_DIR=str(folder / "results"),
        KIT_DATA_DIR=str(small_data_dir(folder / "data")),
    )
    person.own()
    script = commands(profile, site)
    done = subprocess.run(
        person.argv("bash", "-c", script), cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shown = dict(re.findall(r"(?ms)^== (\w+)\n(.*?)(?=^== |\Z)", done.stdout))
    assert shown["user"].split() == [str(person.uid), "CapEff:", "0" * 16]
    assert "#SBATCH --account=project_2001234" in shown["1"]
    assert "BU" in shown["1"]
    assert "token" in shown["2"].lower()
    assert (person.home / ".ssh/.env").stat().st_mode & 0o777 == 0o600
    for name in ("compose-secrets.json", "ssh-config"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert f'"HPC_ENVIROMENT": "{profile}"' in (folder / "compose-secrets.json").read_text()
    assert "ssh certificate" in shown["4"]
    assert "openstack server create" in shown["5"]
    assert "127.0.0.14" in (person.home / "forwarded").read_text()
    assert re.search(r"\d+ ok", shown["9"])
    assert "CPU BU" in shown["10"]
    runs = read_history(folder / "results" / site.profile / "history.jsonl")[0]
    assert [run["parameters"]["configured"] for run in runs] == [False, True]
    assert [run["slurm"]["job"]["state"] for run in runs] == ["COMPLETED"] * 2
    assert runs[0]["metrics"] == runs[1]["metrics"]
    assert {path.stat().st_uid for path in folder.glob("results/**/*")} == {person.uid}

"""File names and exit codes that the shell programs share with the programs on the site."""

import re

import pytest

from kit.base import ROOT
from kit.onsite import TUNNEL_KEY as KEY
from kit.onsite import names
from kit.slurm.status import EXIT_MEANINGS
from kit.submitter import collect
from kit.submitter.scripts import script


def test_names_and_exit_codes_are_those_of_the_programs_on_the_site():
    run, begin = script("job_run"), script("job_begin")
    assert f"commit {names.MANIFEST}\n" in run
    assert f"exit {names.KILLED} # KILLED" in run
    assert f">{names.RAY_TOKEN}\n" in run
    assert f"rm -f {names.RAY_TOKEN} {KEY}\n" in run
    assert f"exit {names.CODE_CHANGED}\n" in begin
    assert f"{names.CODE_CHANGED}: CODE_CHANGED" in begin
    assert f'"$attempt/{KEY}" "$attempt/{names.RAY_TOKEN}"' in script("drop_secrets")
    for file in collect.PROGRESS_FILES:
        assert file in script("read_progress")


def test_exit_codes_of_the_job_script_are_in_one_of_the_two_tables():
    job = (ROOT / "tests" / "golden" / "ray-job.sh").read_text()
    codes = {int(code) for code in re.findall(r"\bexit (\d+)", job)} - {0}
    assert codes == {88, 93, 95, 96, 97, 98, 99}
    assert codes <= {*names.EXIT_MEANINGS, *EXIT_MEANINGS}
    assert not {*names.EXIT_MEANINGS} & {*EXIT_MEANINGS}


@pytest.mark.parametrize("code", [88, 89, 90, 91, 92, 93, 94, 95])
def test_every_exit_code_has_a_sentence(code):
    assert names.EXIT_MEANINGS[code]

"""What is copied to the site before a job: the inputs and the kit's code, each once."""

import pytest
from submitter_world import DATA, RUN, World

from kit.runs.requests import RunState


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_inputs_are_copied_once(world):
    world.ask()
    world.submitter().once()
    before = {name: id(content) for name, content in world.files.items() if "/inputs/" in name}
    assert len(before) == 2
    assert any(name.endswith(f"{DATA.hash}.zip") for name in before)
    world.requests.store.delete(f"runs/{RUN}/try-1/submitted.json")
    world.submitter().once()
    after = {name: id(content) for name, content in world.files.items() if "/inputs/" in name}
    assert after == before


def test_data_that_is_not_in_the_store_is_waited_for_and_named(world):
    world.ask()
    objects, world.data.objects = world.data.objects, {}
    submitter = world.submitter()
    submitter.once()
    assert DATA.hash in world.requests.read(RUN, "progress")["why"]
    world.data.objects = objects
    assert world.until_finished(submitter).state is RunState.DONE


def test_code_on_the_site_that_was_changed_is_copied_again(world):
    world.ask()
    world.submitter().once()
    (code,) = [n for n in world.files if n.endswith(".zip") and DATA.hash not in n]
    good, world.files[code] = world.files[code], b"somebody else's code"
    world.requests.store.delete(f"runs/{RUN}/try-1/submitted.json")
    world.submitter().once()
    assert world.files[code] == good

"""The six environments, built over a skeleton of upstream always, over the pinned source if it is
there."""

import shutil

import pytest
import upstream_skeleton
import yaml
from upstream_skeleton import LOGIN

from kit.deploy import manifests

SOURCE = manifests.FOLDER / "upstream"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A copy of our overlays beside the skeleton, with secrets: folder and commit."""
    folder = tmp_path_factory.mktemp("platform") / "platform"
    kept = shutil.ignore_patterns("upstream", "*.env", "people")
    shutil.copytree(manifests.FOLDER, folder, ignore=kept)
    commit = upstream_skeleton.make(folder / "upstream")
    manifests.write_secrets(folder / "secrets", LOGIN, "anna")
    return folder, commit


@pytest.fixture(scope="session", params=["skeleton", *(["upstream"] if SOURCE.exists() else [])])
def built(request, made, tmp_path_factory):
    """All six environments: name -> objects. The pinned source takes part where it is."""
    folder, commit = made
    if request.param == "upstream":
        place = tmp_path_factory.mktemp("pinned") / "platform"
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns("upstream"))
        (place / "upstream").symlink_to(SOURCE.resolve())
        folder, commit = place, manifests.COMMIT
    texts = {name: manifests.build(name, folder, commit) for name in manifests.ENVIRONMENTS}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {
        name: (text, [each for each in yaml.load_all(text, loader) if each])
        for name, text in texts.items()
    }

"""The kit carries any experiment: words of the article's are only where the article is."""

import re

import pytest

from kit.base import ROOT

WORDS = re.compile(r"fashion|mnist|epoch(?! seconds|realtime)|accuracy", re.I)
# Folders and files of these words alone, and why.
OWN_PLACES = {
    "kit/experiments/fashion_mnist/": "the article's experiment",
    "kit/experiments/digits.py": "another experiment, with epochs and an accuracy of its own",
    "kit/report/article/": "the article's tables and files",
}
# Lines that may have such a word, by file, and why.
GENERIC = {
    "kit/cli/main.py": (["kit run local -p epochs 1"], "an example of the default experiment"),
    "kit/cli/run.py": (["kit run local -p epochs 1"], "an example of the default experiment"),
    "kit/experiments/contract.py": (["items of an epoch"], "the general term for a pass"),
    "kit/experiments/loader.py": (["BUILT_IN = ", "DEFAULT = "], "names of the experiments"),
    "kit/runs/history.py": (["NOT_IN_THE_ID = "], "parameters of runs of an older kit"),
}
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted((ROOT / "kit").rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
}


def lines_with_words(path):
    return [line for line in path.read_text().splitlines() if WORDS.search(line)]


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith((*OWN_PLACES,))])
def test_file_has_no_word_of_the_articles_experiment(name):
    allowed, _ = GENERIC.get(name, ([], ""))
    found = lines_with_words(FILES[name])
    assert [line for line in found if not any(part in line for part in allowed)] == []


@pytest.mark.parametrize("name", GENERIC)
def test_each_exception_is_still_needed(name):
    found = lines_with_words(FILES[name])
    assert [part for part in GENERIC[name][0] if not any(part in line for line in found)] == []


@pytest.mark.parametrize("place", OWN_PLACES)
def test_each_place_of_its_own_has_such_words(place):
    assert any(lines_with_words(FILES[name]) for name in FILES if name.startswith(place))


@pytest.mark.parametrize("suffix", [".py", ".sh", ".j2", ".toml"])
def test_every_kind_of_text_is_looked_at(suffix):
    assert suffix in {path.suffix for path in FILES.values()}


@pytest.mark.parametrize("text", ["the accuracy", "epochs: int", "cloud-fmnist", "FashionNet"])
def test_a_planted_word_is_found(text):
    assert WORDS.search(text)

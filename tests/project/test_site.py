"""The documentation site: it builds without a warning and loads nothing from elsewhere."""

import re
import subprocess
import sys

import pytest

from kit.base import ROOT

# What a browser loads by itself; a link that a person follows may lead anywhere.
LOADED = re.compile(rb"""<(?:script|img|iframe)[^>]*\ssrc=["'](?:https?:)?//[^"']+""")
STYLE = re.compile(rb"""<link[^>]*rel=["'](?:stylesheet|preload|icon)["'][^>]*href=["']https?://""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "site" / "build.py"],
        env={"PATH": "/usr/bin:/bin", "KIT_RESULTS_DIR": str(results), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ROOT / "build" / "site"


@pytest.mark.core
@pytest.mark.slow
def test_the_site_has_every_page_of_the_documents_and_every_notebook(site):
    pages = {str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html")}
    for folder, pattern in (("docs", "**/*.md"), ("notebooks", "*.ipynb")):
        for path in (ROOT / folder).glob(pattern):
            assert str(path.relative_to(ROOT).with_suffix("")) in pages


@pytest.mark.core
@pytest.mark.slow
def test_a_browser_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        content = path.read_bytes()
        assert LOADED.findall(content) == []
        assert STYLE.findall(content) == []


@pytest.mark.core
@pytest.mark.slow
def test_commands_and_python_names_are_documented_from_the_code(site):
    commands = (site / "docs" / "site" / "commands.html").read_text()
    assert "Refuse a run that may cost more." in commands
    names = (site / "docs" / "site" / "python.html").read_text()
    for name in ("kit.start", "kit.Slurm", "kit.ObjectStore"):
        assert f'id="{name}"' in names
    assert "os.environ" in names  # as the name, never as its value


def test_the_python_page_has_every_public_name():
    import kit

    text = (ROOT / "docs" / "site" / "python.md").read_text()
    assert set(re.findall(r"auto\w+:: kit\.(\w+)", text)) == set(kit.__all__)

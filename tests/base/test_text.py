"""Tables for a terminal: aligned, no wider than it, no word broken without need."""

from kit.base import WIDTH, narrowed, to_text

URL = "docs.csc.fi/cloud/pouta/vm-flavors-and-billing/"


def test_a_table_that_fits_stays_as_it_is():
    rows = [{"what": "vm", "note": "a b\nc"}, {"what": "job", "note": ""}]
    assert narrowed(rows) == rows
    assert narrowed([]) == []
    assert to_text([]) == ""


def test_the_widest_column_is_wrapped_between_words():
    rows = [{"run": "cloud-hpc-0123456789ab-1", "why": "word " * 40, "job": "17"}]
    text = to_text(rows)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "cloud-hpc-0123456789ab-1" in text
    assert text.split().count("word") == 40


def test_words_are_broken_only_where_no_column_has_blanks_left():
    rows = [{"a": URL, "b": f"{URL} (2026-08)", "c": "x" * 30}]
    cells = narrowed(rows)[0]
    assert cells["b"].splitlines()[0] != cells["b"]
    assert "".join(cells["a"].split()) == URL, "nothing is lost"
    assert max(map(len, to_text(rows).splitlines())) <= WIDTH


def test_columns_are_never_too_narrow_to_be_read():
    rows = [{f"column {n}": "several words here" for n in range(12)}]
    assert all("several" in cell for cell in narrowed(rows)[0].values())

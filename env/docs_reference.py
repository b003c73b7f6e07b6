"""Write the parts of the documents that are made from the code; called by `make docs-reference`.

With `--check` nothing is written: the exit code is 1 if a page is not what the code says.
"""

import re
import sys
from pathlib import Path

from kit.base.settings import reference
from kit.doctor import diagnoses, diagnosis_table

DOCS = Path(__file__).resolve().parents[1] / "docs"
PART = re.compile(r"(?<=<!-- begin: make docs-reference -->\n).*(?=\n<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the pages, or compare them."""
    parts = {
        "reference/settings.md": reference(),
        "doctor.md": diagnosis_table(diagnoses().values()),
    }
    for name, part in parts.items():
        text = (DOCS / name).read_text()
        page, count = PART.subn(lambda _, part=part: part.rstrip("\n"), text)
        if count != 1:
            sys.exit(f"docs/{name} has {count} parts to be written; it needs one")
        if "--check" not in sys.argv:
            (DOCS / name).write_text(page)
        elif page != text:
            sys.exit(f"docs/{name} is not what the code says: make docs-reference")


if __name__ == "__main__":
    main()

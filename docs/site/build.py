"""Build the documentation site into build/site (`make docs`): nothing is loaded from elsewhere.

The pages are those of the repository. The notebooks are the copies that `kit reproduce` executed,
where there are some; so the site shows real outputs, and the secret scan goes over all of it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from kit.base import ROOT, read_history, refuse_secrets
from kit.base.settings import Settings, load

SOURCE, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"


def executed_notebooks(settings: Settings) -> dict[str, Path]:
    """Return the newest executed copy of each notebook of a profile, by name."""
    found = {path.stem: path for path in settings.profile_dir.glob("*.ipynb")}
    for run in read_history(settings.profile_dir / "history.jsonl")[0]:
        copy = settings.profile_dir / "runs" / run["run"] / f"{run['target']}.ipynb"
        if copy.exists():
            found[run["target"]] = copy
    return found


def copy_sources(settings: Settings) -> list[str]:
    """Copy the tracked files and the executed notebooks; return the notebooks without outputs."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (path := ROOT / name).is_file():
            (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, SOURCE / name)
    executed, plain = executed_notebooks(settings), []
    for target in sorted((SOURCE / "notebooks").glob("*.ipynb")):
        if target.stem in executed:
            shutil.copyfile(executed[target.stem], target)
        else:
            plain.append(target.stem)
    return plain


def main() -> int:
    """Build the site; return 1 for a warning of Sphinx. Raises SecretFound for one in a page."""
    settings = load(sys.argv[1] if len(sys.argv) > 1 else None)
    plain = copy_sources(settings)
    if plain:
        print(f"not executed yet, shown without outputs: {', '.join(plain)} (kit reproduce)")
    shutil.rmtree(SITE, ignore_errors=True)
    argv = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    argv += ["-c", str(SOURCE / "docs" / "site"), "-d", str(ROOT / "build" / "doctrees")]
    done = subprocess.run([*argv, str(SOURCE), str(SITE)])
    if done.returncode:
        return 1
    refuse_secrets(settings, (path for path in SITE.rglob("*") if path.is_file()))
    (SITE / "index.html").write_text(
        '<!doctype html><meta http-equiv="refresh" content="0; url=docs/site/index.html">\n'
    )
    print(f"the site: {SITE / 'docs' / 'site' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The output of a cell: tables, texts and the experiment's code, in HTML and as plain text."""

import ast
import base64
import html
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import tracking
from kit.base import Json, Unreachable
from kit.base.settings import Settings
from kit.experiments import Experiment
from kit.runs.history import StoredRun

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Table:
    """A table with an optional link above it and sentences below it, its own or its frame's."""

    frame: "pandas.DataFrame"
    link: str = ""
    notes: str = ""

    @property
    def below(self) -> str:
        """The sentences below the table."""
        return self.notes or str(self.frame.attrs.get("notes", ""))

    def __repr__(self) -> str:
        """Return the table as text."""
        table = "" if self.frame.empty else self.frame.to_string()
        return "\n".join(filter(None, [self.link, table, self.below]))

    def _repr_html_(self) -> str:
        link = html.escape(self.link)
        above = f'<p><a href="{link}">{link}</a></p>' if link else ""
        below = f"<p>{html.escape(self.below)}</p>".replace("\n", "<br>") if self.below else ""
        table = "" if self.frame.empty else self.frame.to_html()
        return f"{above}{table}{below}"


@dataclass(frozen=True, repr=False)
class Text:
    """A text in a fixed font; with a `title` it is folded until the reader opens it."""

    text: str
    title: str = ""

    def __repr__(self) -> str:
        """Return the text."""
        return self.text

    def _repr_html_(self) -> str:
        body = f"<pre style='font-family:monospace'>{html.escape(self.text)}</pre>"
        if not self.title:
            return body
        return f"<details><summary>{html.escape(self.title)}</summary>{body}</details>"


@dataclass(frozen=True, repr=False)
class Pictures:
    """Figures by title, one below the other."""

    figures: "Mapping[str, Figure]"

    def __repr__(self) -> str:
        """Return the titles."""
        return f"pictures: {', '.join(self.figures) or 'none'}"

    def _repr_html_(self) -> str:
        pages = []
        for title, figure in self.figures.items():
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=100)
            png = base64.b64encode(file.getvalue()).decode()
            pages.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{png}"/>')
        return "<br>".join(pages)


class Code(Text):
    """Python source, highlighted."""

    def _repr_html_(self) -> str:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        formatter = HtmlFormatter(noclasses=True, prestyles="font-family:monospace")
        return str(highlight(self.text, PythonLexer(), formatter))


def experiment_code(experiment: Experiment, *names: str) -> Code:
    """Return the source of classes and functions of an experiment, in the order of its files.

    Where it has none of these names, of `train` and `evaluate`.
    """
    parts: dict[str, str] = {}
    for path in experiment.sources.values():
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                parts.setdefault(node.name, ast.get_source_segment(source, node) or "")
    wanted = [name for name in parts if name in names]
    return Code("\n\n\n".join(parts[name] for name in wanted or ("train", "evaluate")))


def places(files: Mapping[str, Path], loading: str) -> Text:
    """Return the paths of a run's results and the lines that load its model."""
    lines = [f"{name + ':':17}{path}" for name, path in files.items()]
    return Text("\n".join([*lines, "load the model:", textwrap.indent(loading, "    ")]))


def banner(sentences: list[str], warning: str) -> str:
    """Return lines as HTML, the warning white on red above them."""
    style = "background:#B00000;color:white;font-weight:bold;padding:8px"
    top = f"<p style='{style}'>{html.escape(warning)}</p>" if warning else ""
    return f"{top}<p>{'<br>'.join(map(html.escape, sentences))}</p>"


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """Return the metrics, four digits, a column each and a last row `all`.

    Metrics named `<part>-<metric>` are those of a part of the data, such as a class: a row each.
    """
    import pandas

    whole = [name for name in metrics if name.rpartition("-")[2] not in metrics or "-" not in name]
    parts = dict.fromkeys(n.rpartition("-")[0] for n in metrics if n not in whole)
    rows = {part: [metrics.get(f"{part}-{name}") for name in whole] for part in parts}
    rows["all"] = [metrics[name] for name in whole]
    return Table(pandas.DataFrame.from_dict(rows, orient="index", columns=whole).round(4))


def credentials_table(settings: Settings, job_end: float | None = None) -> Table:
    """List the profile's credentials and when each expires, never the secrets.

    With `job_end` (seconds since 1970) each is compared with the end of the job.
    """
    import pandas

    from kit.store import as_row, describe_expiry, list_credentials

    credentials = list_credentials(settings)
    rows = [as_row(credential) for credential in credentials]
    if job_end is not None:
        for row, credential in zip(rows, credentials, strict=True):
            row["to the job's end"] = describe_expiry(credential, job_end)
    names = [row.pop("credential") for row in rows]
    return Table(pandas.DataFrame(rows, index=pandas.Index(names, name="credential")))


def accounting_table(rows: Json) -> Table:
    """Return what sacct reports of the job and its steps, a column each."""
    import pandas

    if not rows:
        return Table(pandas.DataFrame(), notes="This site has no accounting of the job.")
    frame = pandas.DataFrame.from_dict(rows).dropna(how="all").fillna("")
    return Table(frame.set_axis(list(frame.loc["JobID"]), axis="columns").drop("JobID"))


def value_table(values: Json) -> Table:
    """Return names and values, a row each."""
    import pandas

    return Table(pandas.DataFrame.from_dict(values, orient="index", columns=["value"]))


def mlflow_table(settings: Settings, run: StoredRun, logged: Json) -> Table:
    """Return what MLflow has of a run, or what became of its log (`logged`)."""
    import pandas

    rows: Any = [logged]
    if logged["state"] != "logged":
        return Table(pandas.DataFrame(rows), "", tracking.Logged(**logged).sentence())
    try:
        experiment = tracking.experiment_of(run.target, run.experiment.label)
        stored = tracking.read_logged_run(settings, experiment, run.id)
    except Unreachable as err:
        return Table(pandas.DataFrame(rows), logged["link"], f"MLflow is away now: {err.got}")
    return Table(pandas.DataFrame(tracking.rows(stored)), stored["link"], "")


def rows_table(rows: Sequence[Mapping[str, str]], index: str, notes: Iterable[str] = ()) -> Table:
    """Return rows with one of their columns in front, and sentences below them."""
    import pandas

    frame = pandas.DataFrame(rows).set_index(index) if rows else pandas.DataFrame()
    return Table(frame, notes="\n".join(notes))

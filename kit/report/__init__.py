"""Results of runs: the comparison table, pictures, the page, the crate, the dashboard.

Everything is read from the files that runs left; nothing is run and no service is asked, except
Prometheus by `dashboard`. `article/` holds what belongs to the article alone: its figures, its
published files, the reproduction report. Begin reading at `table.columns`. matplotlib, pandas and
jinja2 are imported where they are used.
"""

from kit.report.table import Column, columns, table_rows, to_form

__all__ = ["Column", "columns", "table_rows", "to_form"]

"""One line that shows how far a training is, in a terminal and in a notebook."""

import sys
from typing import Any

import tqdm


class Bar:
    """A bar with loss and steps a second: call it with step, steps and loss; the last closes it."""

    def __init__(self, file: Any = None) -> None:
        self._file = file
        self._bar: Any = None

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """Show the step; the screen is written to twice a second at most."""
        if self._bar is None:
            self._bar = tqdm.tqdm(
                desc="training",
                total=steps,
                initial=step,
                unit="step",
                ascii=True,
                ncols=100,
                mininterval=0.5,
                file=self._file or _screen(),
            )
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=step == steps)
        self._bar.update(step - self._bar.n)
        if step == steps:
            self._bar.close()


class NotebookLine:
    """A text stream for one cell output: a new line replaces the one before.

    Plain stderr would leave every state of the bar in a notebook that papermill ran.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, text: str) -> None:
        """Show the text; a blank one only moves a terminal's cursor, so it is left out."""
        import IPython.display  # only ever reached inside IPython

        line = text.strip()
        if not line:
            return
        if self._handle is None:
            self._handle = IPython.display.DisplayHandle()  # type: ignore[no-untyped-call]
            self._handle.display({"text/plain": line}, raw=True)
        else:
            self._handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        """Do nothing: `write` shows at once."""


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython() if ipython else None, "kernel")


def _screen() -> Any:
    """Return the stream for a bar: the cell's output in a notebook, else stderr."""
    return NotebookLine() if in_notebook() else sys.stderr

"""A pipeline with its live states: a row of boxes for the notebook, a line for the terminal."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from kit.runs.kfp_here import DONE, FAILED, PENDING, RUNNING, ComponentState

MAX_MESSAGE_CHARACTERS = 44
_COLORS = {  # background, border
    PENDING: ("#E8EAED", "#9AA0A6"),
    RUNNING: ("#FFE8A3", "#B06F00"),
    DONE: ("#CDEBD0", "#2E7D32"),
    FAILED: ("#F6C7C3", "#B3261E"),
}
_BOX = (
    "display:inline-block;min-width:13em;padding:8px;border:2px solid {};border-radius:8px;"
    "background:{};color:#202124;text-align:center;vertical-align:middle"
)


@dataclass(frozen=True)
class PipelinePicture:
    """Components in a row; `flows` are the input, what passes between them, and the output.

    `flows` is one longer than `states`. `now` is the time (epoch seconds) of the picture; `note`
    is a line below it.
    """

    states: Sequence[ComponentState]
    flows: Sequence[str]
    now: float
    note: str = ""

    def __str__(self) -> str:
        """Return one line for a terminal."""
        parts = [f"{state.name}: {self._status(state)}" for state in self.states]
        return " | ".join([*parts, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        """Return the boxes as HTML; text in them is escaped, whatever a component printed."""
        parts = [f"<span>{escape(self.flows[0])} →</span>"]
        for state, flow in zip(self.states, self.flows[1:], strict=True):
            parts += [self._box(state), f"<span>→ {escape(flow)}</span>"]
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return f"<div>{' '.join(parts)}</div>{note}"

    def _status(self, state: ComponentState) -> str:
        if state.state == PENDING:
            return PENDING
        attempt = f", attempt {state.tries}" if state.tries > 1 else ""
        return f"{state.state} {state.seconds(self.now):.1f} s{attempt}"

    def _box(self, state: ComponentState) -> str:
        background, border = _COLORS[state.state]
        message = state.message
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
        lines = [f"<b>{escape(state.name)}</b>", escape(self._status(state))]
        lines += [f"<small>{escape(message)}</small>"] if message else []
        return f'<span style="{_BOX.format(border, background)}">{"<br/>".join(lines)}</span>'


def live_picture(
    flows: Sequence[str],
    states: Sequence[ComponentState],
    now: float | None = None,
    note: str = "",
) -> PipelinePicture:
    """Return the picture of this moment."""
    return PipelinePicture(states, flows, time.time() if now is None else now, note)

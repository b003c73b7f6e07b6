"""A pipeline as a picture for the notebook and a line for the terminal, with live states."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from kit.runs.kfp_here import DONE, FAILED, PENDING, RUNNING, ComponentState

_FILL = {PENDING: "#E8EAED", RUNNING: "#FFE8A3", DONE: "#CDEBD0", FAILED: "#F6C7C3"}
_EDGE = {PENDING: "#9AA0A6", RUNNING: "#B06F00", DONE: "#2E7D32", FAILED: "#B3261E"}
_BOX, _GAP, _HEIGHT = 210, 110, 110
_TEXT = "font-family='sans-serif' text-anchor='middle'"


@dataclass(frozen=True)
class PipelinePicture:
    """Components in a row; `flows` names what goes in, between them, and comes out at the end.

    `flows` is one longer than `states`. `now` is the time (epoch seconds) of the picture.
    `note` stands below it.
    """

    states: Sequence[ComponentState]
    flows: Sequence[str]
    now: float
    note: str = ""

    def __str__(self) -> str:
        """Give one line for a terminal."""
        parts = [f"{state.name}: {self._status(state)}" for state in self.states]
        return " | ".join([*parts, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        """Give the picture (SVG); text in it is escaped, whatever a component printed."""
        width = _GAP * len(self.flows) + _BOX * len(self.states)
        parts = [self._flow(number, text) for number, text in enumerate(self.flows)]
        parts += [self._box(number, state) for number, state in enumerate(self.states)]
        size = f"width='100%' style='max-width:{width}px' viewBox='0 0 {width} {_HEIGHT}'"
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        svg = "<svg xmlns='http://www.w3.org/2000/svg' role='img'"
        return f"{svg} {size}>{''.join(parts)}</svg>{note}"

    def _status(self, state: ComponentState) -> str:
        if state.state == PENDING:
            return PENDING
        again = f", try {state.tries}" if state.tries > 1 else ""
        return f"{state.state} {state.seconds(self.now):.1f} s{again}"

    def _box(self, number: int, state: ComponentState) -> str:
        left = _GAP + number * (_BOX + _GAP)
        middle = left + _BOX / 2
        fill, edge = _FILL[state.state], _EDGE[state.state]
        lines = (
            (48, 15, "bold", state.name),
            (70, 13, "normal", self._status(state)),
            (102, 11, "normal", _short(state.message, 44)),
        )
        texts = (
            f"<text x='{middle}' y='{y}' font-size='{size}' font-weight='{weight}' fill='#202124' "
            f"{_TEXT}>{escape(text)}</text>"
            for y, size, weight, text in lines
        )
        return (
            f"<rect x='{left}' y='20' width='{_BOX}' height='64' rx='8' fill='{fill}' "
            f"stroke='{edge}' stroke-width='2'/>{''.join(texts)}"
        )

    def _flow(self, number: int, text: str) -> str:
        left = number * (_BOX + _GAP)
        tip = left + _GAP - 4
        return (
            f"<path d='M{left + 4} 52H{tip}m-8 -5l8 5l-8 5' fill='none' stroke='#5F6368' "
            f"stroke-width='1.5'/><text x='{left + _GAP / 2}' y='44' font-size='11' "
            f"fill='#5F6368' {_TEXT}>{escape(_short(text, 20))}</text>"
        )


def live_picture(
    flows: Sequence[str],
    states: Sequence[ComponentState],
    now: float | None = None,
    note: str = "",
) -> PipelinePicture:
    """Give the picture of this moment."""
    return PipelinePicture(states, flows, time.time() if now is None else now, note)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"

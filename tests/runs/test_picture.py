"""The picture of a pipeline at work."""

import xml.etree.ElementTree as ET

import pytest

from kit.runs.kfp_here import ComponentState
from kit.runs.picture import PipelinePicture, live_picture

FLOWS = ("data set", "model", "predictions")


def texts_of(picture: PipelinePicture) -> list[str]:
    root = ET.fromstring(f"<p>{picture._repr_html_()}</p>")
    return [text.strip(" →") for text in root.itertext() if text.strip()]


def test_the_picture_shows_states_seconds_and_the_last_line() -> None:
    states = (
        ComponentState("preprocess-train", "done", 100.0, 112.5, "epoch 5/5", 2),
        ComponentState("evaluate", "running", 113.0, None, "gates: passed", 1),
    )
    picture = PipelinePicture(states, FLOWS, now=115.0)
    assert str(picture) == "preprocess-train: done 12.5 s, attempt 2 | evaluate: running 2.0 s"
    assert texts_of(picture) == [
        FLOWS[0],
        "preprocess-train",
        "done 12.5 s, attempt 2",
        "epoch 5/5",
        FLOWS[1],
        "evaluate",
        "running 2.0 s",
        "gates: passed",
        FLOWS[2],
    ]


@pytest.mark.parametrize("message", ["<script>alert(1)</script>", "a & b", "'\"", "x" * 500])
def test_text_that_a_component_prints_is_escaped_in_the_picture(message: str) -> None:
    state = ComponentState("a", "failed", 1.0, 2.0, message, 1)
    picture = live_picture(("in", "out"), [state], 3.0)
    assert texts_of(picture)[-2] in (message, "x" * 43 + "…")
    assert "<script" not in picture._repr_html_()


def test_a_pipeline_that_did_not_start_is_drawn_as_pending() -> None:
    picture = live_picture(FLOWS, [ComponentState("a"), ComponentState("b")], 1.0)
    assert str(picture) == "a: pending | b: pending"

"""Small pipelines for the tests of the runner; the component sources are run by KFP."""

from functools import partial

from kfp import dsl

component = partial(dsl.component, base_image="localhost/python:1", install_kfp_package=False)


@component
def first_step(n: int) -> str:
    import time

    print("epoch 1 of 2", flush=True)
    time.sleep(0.4)
    print("epoch 2 of 2", flush=True)
    return "x" * n


@component
def second_step(text: str, mark: str, metrics: dsl.Output[dsl.Metrics]) -> int:
    from pathlib import Path

    metrics.log_metric("length", len(text))
    Path(mark).write_text(text)
    return len(text)


@component
def failing_step(text: str) -> None:
    print("about to fail")
    try:
        raise ValueError(f"bad {text}\nsecond line")
    except ValueError as err:
        raise RuntimeError("outer") from err


@component
def second_time_lucky(mark: str) -> None:
    from pathlib import Path

    path = Path(mark)
    if not path.exists():
        path.touch()
        raise RuntimeError("the first attempt fails")
    print("the second attempt does not")


@component
def sleeping_step(mark: str) -> None:
    import os
    import time
    from pathlib import Path

    Path(mark).write_text(str(os.getpid()))
    time.sleep(600)


@component
def vanishing_step() -> None:
    import os

    print("last words", flush=True)
    os._exit(9)


@dsl.pipeline(name="good")
def good(mark: str, n: int = 3) -> None:
    second_step(text=first_step(n=n).output, mark=mark)


@dsl.pipeline(name="bad")
def bad(n: int = 3) -> None:
    failing_step(text=first_step(n=n).output)


@dsl.pipeline(name="lucky")
def lucky(mark: str) -> None:
    second_time_lucky(mark=mark).set_retry(num_retries=1, backoff_duration="0s")


@dsl.pipeline(name="sleeping")
def sleeping(mark: str) -> None:
    sleeping_step(mark=mark)


@dsl.pipeline(name="vanishing")
def vanishing() -> None:
    vanishing_step()

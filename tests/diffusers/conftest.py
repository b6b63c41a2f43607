import pytest

from time_tuner.diffusers import paused

ITERATIONS = paused.ITERATIONS


@pytest.fixture(autouse=True)
def runs_of_pipelines_are_short(short_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls in each run of a pipeline's loop, all of which are made when a model of the pipeline is. The truths
    here are that pipelines and our own loop do the same."""
    monkeypatch.setattr(paused, "ITERATIONS", 6)


@pytest.fixture
def usual_loops(runs_of_pipelines_are_short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls in each run of a pipeline's loop as outside of tests."""
    monkeypatch.setattr(paused, "ITERATIONS", ITERATIONS)

"""The conformance suite: checks for whoever writes a sampler, a model, a tuner, a schedule, a spacing or a prediction.

    from time_tuner.testing import check_sampler

    def test_my_sampler() -> None:
        check_sampler(MySampler(order=2))

Each check raises an AssertionError that names the property which does not hold. All of them run on problems whose exact
answer is known, on the CPU, in seconds.
"""

from .models import check_model
from .samplers import check_sampler
from .schedules import check_prediction, check_schedule, check_spacing
from .tuners import check_tuner

__all__ = ["check_model", "check_prediction", "check_sampler", "check_schedule", "check_spacing", "check_tuner"]

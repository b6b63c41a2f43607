"""diffusers' own tests of schedulers, run against TimeTunerScheduler in the place of each class that it replaces.

    make peers DIFFUSERS=/path/to/diffusers        # a checkout of their repository, of about the installed version

For every test class of tests/schedulers with a class of `SCHEDULER_CLASSES`, that class is replaced by a factory of
`TimeTunerScheduler.from_config(Class(**config), calls=...)`, with the sampler of the library that computes the same. A
test does not apply where the scheduler refuses by design (`REFUSALS`), or where it is about something that a plan does
not have (`OTHER`); all others must pass.
"""

import argparse
import importlib
import re
import sys
import unittest
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from diffusers.utils.logging import set_verbosity_error

from time_tuner.diffusers import TimeTunerScheduler
from time_tuner.schedules.scheduler_classes import SCHEDULER_CLASSES

SAME = {
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "EDMEulerScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "ddim(eta=1)",
    "EulerDiscreteScheduler": "ddim",
    "LCMScheduler": "lcm",
    "UniPCMultistepScheduler": "unipc",
}
"""The samplers of the library that compute what a class does; "dpmpp" elsewhere."""

REFUSALS = {
    "there is a plan for": "a plan has its own number of calls",
    "trained noise levels": "a run makes at most one call for each level",
    "that of no call of the plan": "a timestep is that of a call of the plan",
    "was to come: a plan makes every call|remembers its calls|after the last of": "calls are made in their order",
    "cannot be chosen: a plan has its own grid": "a plan has its own grid",
    "eta must be 0": "eta is an option of the sampler",
    "no grid of|rather than noise": "the class has no such grid from noise to data",
    "does not determine the data": "the noise does not determine the data at zero terminal SNR",
    r"betas must lie in \(0, 1\)": "betas of 1 and more are none",
    "no attribute '(step_prk|step_plms|prk_timesteps|_get_variance|batch_step_no_noise)'": "parts of one class alone",
}
"""Errors that are meant, as patterns, and why."""

OTHER = {
    r"\.test_scheduler_outputs_equivalence$": "with return_dict=False too, the output is a lazy pair and no tuple",
    r"\.test_compatibles$": "entries that a class has by default come back as the defaults of TimeTunerScheduler",
    r"^(Heun|KDPM2|LMS|SASolver|UnCLIP|DPMSolverSinglestep).*\.test_full_loop": "numbers of a solver of its own",
    r"^Euler.*\.test_full_loop": "numbers of states x / alpha, where ours are x",
    r"\.test_full_loop_with_(karras|lu)": "numbers with rounded network times",
    r"^(DDIM.*\.test_full_loop_with_no_set_alpha|(EDM)?(DPMSolverMultistep|Euler).*\.test_full_loop)": "a last step of "
    "no length",
    r"^DDPM.*\.test_full_loop_with_noise$": "a run of 1000 calls without set_timesteps",
}
"""Tests that fail for another reason, as patterns of Class.test, and why."""


class Factory:
    """Stands for a scheduler class in their tests."""

    def __init__(self, kind: Any, calls: set[int]) -> None:
        self.kind, self.calls, self.__name__ = kind, sorted(calls), kind.__name__
        self.from_pretrained = TimeTunerScheduler.from_pretrained
        self.from_config = TimeTunerScheduler.from_config
        self._deprecated_kwargs = TimeTunerScheduler._deprecated_kwargs

    def __call__(self, **config: Any) -> TimeTunerScheduler:
        sampler = SAME.get(self.__name__, "dpmpp")
        made: TimeTunerScheduler = TimeTunerScheduler.from_config(
            self.kind(**config), calls=self.calls, sampler=sampler
        )
        return made


def test_classes(checkout: Path) -> list[type[unittest.TestCase]]:
    """Their test classes, each with a factory for its scheduler class."""
    sys.path.insert(0, str(checkout))
    common = importlib.import_module("tests.schedulers.test_schedulers").SchedulerCommonTest
    found: list[type[unittest.TestCase]] = []
    for path in sorted((checkout / "tests" / "schedulers").glob("test_scheduler_*.py")):
        module = importlib.import_module(f"tests.schedulers.{path.stem}")
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, common) and kind.__module__ == module.__name__):
                continue
            of = kind.scheduler_classes[0]
            lacking = "torchsde" in getattr(of, "_backends", [])  # a package that is not installed
            if of.__name__ in SCHEDULER_CLASSES and not SCHEDULER_CLASSES[of.__name__].no_grid and not lacking:
                steps = dict(kind.forward_default_kwargs).get("num_inference_steps") or 10
                factory = Factory(of, {10, steps})
                found.append(type(kind.__name__, (kind,), {"scheduler_classes": (factory,)}))
    return found


def why_not(name: str, problem: str) -> str | None:
    """Why a test that fails does not apply; None where it does."""
    error = problem.strip().split("\n")[-1] if "Error: " in problem.strip().split("\n")[-1] else problem
    found = [why for pattern, why in REFUSALS.items() if re.search(pattern, error)]
    found += [why for pattern, why in OTHER.items() if re.search(pattern, name)]
    return found[0] if found else None


def main(checkout: Path, verbose: bool) -> int:
    warnings.simplefilter("ignore")
    set_verbosity_error()
    failed, reasons, total = list[str](), Counter[str](), Counter[str]()
    for kind in test_classes(checkout):
        counts = Counter[str]()
        for case in unittest.defaultTestLoader.loadTestsFromTestCase(kind):
            name, result = f"{kind.__name__}.{case.id().split('.')[-1]}", unittest.TestResult()
            case.run(result)
            problems = [text for _, text in (*result.errors, *result.failures)]
            reason = why_not(name, problems[0]) if problems else None
            reasons.update([reason] if reason else [])
            passed = "skipped" if result.skipped else "passed"
            counts["does not apply" if reason else "failed" if problems else passed] += 1
            if problems and not reason:
                failed.append(name)
                print(f"FAILED {name}\n{problems[0] if verbose else problems[0].strip().splitlines()[-1]}")
        total += counts
        print(f"{kind.__name__}: {', '.join(f'{count} {what}' for what, count in counts.most_common())}", flush=True)
    print("\nall: " + ", ".join(f"{count} {what}" for what, count in total.most_common()))
    print("what does not apply:", *(f"  {count:4d}  {why}" for why, count in reasons.most_common()), sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of diffusers, with tests/schedulers")
    parser.add_argument("--verbose", action="store_true", help="print tracebacks")
    raise SystemExit(main(**vars(parser.parse_args())))

"""Each kind of extension is one class or function and one entry: then it is on the command line and in plan files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[:-1]  # the last one checks the others
MODEL = '''
from time_tuner import model_wrapper
from time_tuner.models.exact import Mixture

schedule = PowerLaw()
exact = Mixture([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]], 0.2).eps(schedule)


def network(x, n):
    return x - schedule.at(n[0]).sigma * exact(x, n[0])


def make():
    """A network whose prediction type, schedule, sampler, spacing and tuner are all of this module."""
    return model_wrapper(network, schedule, "denoised", shape=(2,)).bind()
'''


def command(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter of its own, which knows the module by its name alone."""
    return subprocess.run(
        [sys.executable, "-m", "time_tuner", *map(str, words)],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_extensions_of_every_kind_are_on_the_command_line_and_in_plan_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("\n".join([*BLOCKS, MODEL]))
    tuned = command(
        tmp_path,
        *("tune", "--model", "mine:make", "--sampler", "ab2", "--spacing", "power(exponent=2.5)", "--calls", 4),
        *("--method", "random(trials=3, scale=0.05)", "--samples", 16, "--out", "plan.json"),
    )
    assert tuned.returncode == 0, tuned.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["sampler"] == {"name": "ab2"} and plan["schedule"] == {"name": "power_law", "power": 2.0}
    assert plan["provenance"]["tuner"] == "random"
    for words in (
        ("sample", "--plan", "plan.json", "-n", 2, "--out", "x.npz"),
        ("compare", "ab2:4@power(exponent=2.5)", "plan.json", "-n", 4, "--out", "runs.png"),
    ):
        ran = command(tmp_path, *words, "--model", "mine:make")
        assert ran.returncode == 0 and (tmp_path / words[-1]).exists(), ran.stderr

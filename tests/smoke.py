"""Try an installed time-tuner, outside the tree: `make release-check` calls this in an empty environment.

Without the extra `cli` only the library is tried.
"""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

import time_tuner
from time_tuner import Plan, SeededNoise, load_model, sample, tune

TREE = Path(__file__).parents[1]


def check(what: str, holds: bool) -> None:
    """Print what was tried; exit with 1 if it does not hold."""
    print(f"{'ok' if holds else 'FAILS'}  {what}")
    if not holds:
        sys.exit(1)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the module as a command."""
    return subprocess.run([sys.executable, "-m", "time_tuner", *words], capture_output=True, text=True)


def try_library() -> None:
    """The library and what comes with it."""
    package = Path(time_tuner.__file__).parent
    check("the installed package is tried, not the tree", TREE / "src" not in package.parents)
    check("the version is that of the package", importlib.metadata.version("time-tuner") == time_tuner.__version__)
    check("py.typed ships", (package / "py.typed").exists())
    files = {str(file) for file in importlib.metadata.files("time-tuner") or ()}
    check("the licence ships", any(name.endswith("LICENSE") for name in files))
    check("the changelog names the version or what is to come", "## [" in (TREE / "CHANGELOG.md").read_text())
    model = load_model("gaussian")
    plan = tune(model, calls=4, samples=16, budget="200calls")
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder) / "plan.json")
        loaded = Plan.load(Path(folder) / "plan.json")
    noise = SeededNoise(0)(torch.empty(16, 1))
    same = torch.equal(sample(model, loaded, noise), sample(model, plan, noise))
    check("a plan is tuned, saved, loaded, and gives the same samples", same)
    latents = load_model("latent-digits", label=3)
    plan = Plan.load("latent-digits/joint-5")
    drawn = sample(latents, plan, plan.initial_state(SeededNoise(0)(torch.empty(2, *latents.shape))))
    check("a bundled network runs a bundled plan", latents.decode(drawn).shape == (2, 1, 28, 28))


def try_command() -> None:
    """The command, where its extra is installed."""
    if find_spec("typer") is None:
        made = run("--version")
        check("without the extra cli the command names it", made.returncode == 2 and "time-tuner[cli]" in made.stderr)
        return
    check("the command prints the version", run("--version").stdout == f"time-tuner {time_tuner.__version__}\n")
    check("a bundled plan is shown", run("show", "digits/joint-5").returncode == 0)
    found = json.loads(run("doctor", "--json").stdout)
    for name, each in found["checks"].items():
        check(f"doctor, {name}: {each['found']}", each["works"])


try_library()
try_command()

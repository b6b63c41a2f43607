"""What holds for a release: one version, types that ship, an import without warnings, a README to begin with."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import time_tuner

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_one_everywhere() -> None:
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert PROJECT["version"] == time_tuner.__version__ == cited
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{cited}]" in changelog


def test_entries_of_the_changelog_are_short() -> None:
    """One item is a line or two of 120 characters."""
    items = re.split(r"^- ", (ROOT / "CHANGELOG.md").read_text().partition("## [Unreleased]")[2], flags=re.M)[1:]
    assert len(items) > 10
    assert not [item for item in items if len(item.strip().splitlines()) > 2 and "\n#" not in item]


def test_the_lowest_versions_are_those_of_the_manual() -> None:
    """`make test-lowest` installs those of the project file."""
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["diffusers"]]
    (torch, diffusers) = re.findall(r"(?:torch|diffusers)>=([\d.]+)", " ".join(needed))
    python = PROJECT["requires-python"].removeprefix(">=")
    assert (
        f"needs Python {python}, torch {torch} and, for pipelines, diffusers {diffusers}"
        in (ROOT / "README.md").read_text()
    )


def test_types_ship() -> None:
    assert (Path(time_tuner.__file__).parent / "py.typed").exists()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_importing_warns_of_nothing() -> None:
    made = subprocess.run([sys.executable, "-W", "error", "-c", "import time_tuner"], capture_output=True, text=True)
    assert made.returncode == 0 and not made.stdout + made.stderr


def test_the_first_screen_of_the_readme_has_the_demo_and_the_tests() -> None:
    text = (ROOT / "README.md").read_text()
    first = text.splitlines()[:12]
    assert any(line.startswith("make demo") for line in first) and any(line.startswith("make test") for line in first)
    assert any(line.startswith("![") for line in first), "a picture"
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len(table.splitlines()) <= 2 + 6


def test_extras_are_named_where_they_are_required() -> None:
    """`require(package, extra)` names an extra that has the package."""
    extras = PROJECT["optional-dependencies"]
    packages = {"PIL": "pillow"}
    for path in (ROOT / "src").rglob("*.py"):
        for package, extra in re.findall(r'require\("(\w+)", "(\w+)"\)', path.read_text()):
            assert packages.get(package, package) in " ".join(extras[extra]), f"{path.name}: {package}"

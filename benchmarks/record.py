"""Results of benchmarks: JSON with the environment and the command, and the tables of the pages that are made of them.

    python benchmarks/record.py [--check]

A page has a table between the lines `<!-- table: NAME -->` and `<!-- end -->`, made from `benchmarks/results/NAME.json`
or the file that the entry of NAME in `TABLES` names. The command writes all of them anew; with `--check` it names those
that differ.

Rows of a benchmark are its numbers, and the function of the entry makes the cells. A file with the entry "measured" has
the cells themselves: they were printed at that commit, before the benchmark wrote rows. It is to be measured again, and
where the entry has no function, that is to be written.
"""

import argparse
import json
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from time_tuner.tuners.checkpoint import versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.S)

Rows = Sequence[Mapping[str, Any]]


def read(path: Path | None) -> list[dict[str, Any]]:
    """The rows of a file, none where there is no file."""
    return [] if path is None or not path.exists() else list(json.loads(path.read_text())["rows"])


def write(path: Path | None, rows: Rows) -> None:
    """Write rows with the environment and the command, a row a line; nothing without a path."""
    if path is None:
        return
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    about = {
        "command": shlex.join(["python", str(name), *sys.argv[1:]]),
        "environment": {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            **versions(),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(json.dumps(about, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]}}\n')


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def of_cells(rows: Rows) -> str:
    """The cells of rows as they are, under their names."""
    columns = list(rows[0])
    return markdown(columns, ([row[column] for column in columns] for row in rows))


def mean(rows: Rows, *names: str) -> float:
    """The mean of a number over rows, which may be in an object."""
    total = 0.0
    for row in rows:
        value: Any = row
        for name in names:
            value = value[name]
        total += value
    return total / len(rows)


def of_orders(rows: Rows) -> str:
    return markdown(
        ("name", "options", "declared", "graded grid", "even in lam"),
        ([r["name"], r["options"], r["declared"], f"{r['graded']:.2f}", f"{r['even']:.2f}"] for r in rows),
    )


def of_peers(rows: Rows, metric: str = "distance") -> str:
    """Procedures in rows and calls in columns: the mean over seeds; the best of a column is bold."""
    calls, names = sorted({row["calls"] for row in rows}), list(dict.fromkeys(row["procedure"] for row in rows))
    cells = {(name, n): some for name in names for n in calls
             if (some := [row for row in rows if (row["procedure"], row["calls"]) == (name, n)])}  # fmt: skip
    values = {key: f"{mean(some, metric):.3f}" for key, some in cells.items()}
    best = {n: min((values[name, n] for name in names if (name, n) in values), key=float) for n in calls}

    def cell(name: str, n: int) -> str:
        value = values.get((name, n), "-")
        return f"**{value}**" if value == best[n] else value

    return markdown(
        ("procedure", "as", *(f"{n} calls" for n in calls)),
        ([name, next(row["setting"] for row in rows if row["procedure"] == name), *(cell(name, n) for n in calls)]
         for name in names),
    )  # fmt: skip


def of_robustness(rows: Rows) -> str:
    """The distances of a plan after each change, and how much nearer the tuned plan is than the untuned one."""
    names = ["untuned", "tuned", *(["anew"] if all("anew" in row for row in rows) else [])]
    return markdown(
        ("change", *({"anew": "tuned anew"}.get(name, name) for name in names), "tuned is nearer by"),
        ([r["change"], *(f"{r[name]:.2f}" for name in names), f"{1 - r['tuned'] / r['untuned']:.0%}"] for r in rows),
    )


def of_guidance(rows: Rows) -> str:
    """For each problem and number of evaluations the mean distances over seeds; of the search its calls, and how many
    of them have guidance, by seed."""
    out = []
    for problem, count in dict.fromkeys((row["problem"], row["evaluations"]) for row in rows):
        of = {kind: [row for row in rows if (row["problem"], row["evaluations"], row["kind"]) == (problem, count, kind)]
              for kind in dict.fromkeys(row["kind"] for row in rows)}  # fmt: skip
        if not all(of.values()):
            continue
        means, searched = [mean(some, "distance") for some in of.values()], list(of.values())[-1]
        found = "; ".join(dict.fromkeys(f"{row['calls']}, {row['guided']}" for row in searched))
        numbers = [f"{value:.3f}" for value in means]
        out.append([problem, count, len(searched), *numbers, f"{means[-1] / means[-2]:.2f}", found])
    columns = ("untuned, all calls", "untuned, some", "tuned, all calls", "tuned, searched", "ratio", "calls, guided")
    return markdown(("problem", "evaluations", "seeds", *columns), out)


def of_left_out(rows: Rows) -> str:
    """The distance of an untuned plan by the number of its calls, and of those with guidance."""
    return markdown(
        ("calls", "with guidance", "evaluations", "distance"),
        ([row["calls"], row["guided"], row["evaluations"], f"{row['distance']:.4f}"] for row in rows),
    )


def of_patterns(rows: Rows) -> str:
    """The mean distance over seeds of each pattern tuned alone, without reuse and with it."""
    guided = dict.fromkeys(row["guided"] for row in rows)
    reuse = {False: "without reuse", True: "with reuse"}

    def cell(count: int, with_reuse: bool) -> str:
        some = [row for row in rows if row["guided"] == count and row["kind"].endswith("reuse") == with_reuse]
        return f"{mean(some, 'distance'):.3f}" if some else "-"

    return markdown(
        ("calls", "with guidance", *reuse.values()),
        ([next(row["calls"] for row in rows if row["guided"] == count), count, *(cell(count, one) for one in reuse)]
         for count in guided),
    )  # fmt: skip


def of_best(rows: Rows) -> str:
    """For each problem and number of calls the best untuned plan, the mean and the worst of the seeds, and in how many
    of them the tuned plan ends farther by more than the standard error."""
    out = []
    for problem, calls in dict.fromkeys((row["problem"], row["calls"]) for row in rows):
        some = [row for row in rows if (row["problem"], row["calls"]) == (problem, calls)]
        worst = max(row["distance"]["tuned"] for row in some)
        tuned = f"{mean(some, 'distance', 'tuned'):.3f} ({worst:.3f})"
        apart = [row["distance"]["tuned"] - row["distance"]["untuned"] - row["distance"]["error"] for row in some]
        farther = f"{sum(one > 0 for one in apart)} of {len(some)}"
        of_sets = [f"{mean(some, 'frechet', name):.3f}" for name in ("untuned", "tuned", "teacher")]
        out.append([problem, calls, f"{mean(some, 'distance', 'untuned'):.3f}", tuned, farther, *of_sets])
    columns = ("distance, best untuned", "tuned, mean (worst)", "farther", "FD, best untuned", "tuned, mean", "teacher")
    return markdown(("problem", "calls", *columns), out)


def of_quality(rows: Rows) -> str:
    """Untuned samplers in rows and calls in columns: the least value of all grids, and the first letter of the grid."""
    calls = sorted({row["wanted"] for row in rows})

    def cell(run: str, wanted: int) -> str:
        some = [row for row in rows if (row["run"], row["wanted"]) == (run, wanted)]
        best = min(some, key=lambda row: row["value"], default=None)
        return "-" if best is None else f"{best['value']:.3f} {best['grid'][0]}"

    names = dict.fromkeys(row["run"] for row in rows)
    return markdown(("sampler", *calls), ([f"`{name}`", *(cell(name, n) for n in calls)] for name in names))


def of_overhead(rows: Rows) -> str:
    """Milliseconds of a run without the network, and their ratios."""
    times = ("bare", "ours", "scheduler", "diffusers")
    pairs = (("ours", "bare"), ("scheduler", "ours"), ("scheduler", "diffusers"))
    columns = (
        "sampler",
        "B",
        "bare",
        "loop",
        *times[2:],
        *("loop / bare", "scheduler / loop", "scheduler / diffusers"),
    )
    out = []
    for row in rows:
        numbers = [*(row[name] for name in times), *(row[a] / row[b] for a, b in pairs), row["corrections"]]
        out.append([f"`{row['sampler']}`", row["batch"], *(f"{number:.2f}" for number in numbers)])
    return markdown((*columns, "with corrections"), out)


def of_problems(rows: Rows) -> str:
    """The nearest untuned plans of a problem, measured on other noise than they were ranked on."""
    return markdown(
        ("problem", "calls", "plan", "distance", "FD"),
        ([r["problem"], r["calls"], f"`{r['plan']}`", f"{r['distance']:.3f}", f"{r['frechet']:.3f}"] for r in rows),
    )


def of_spacings(rows: Rows) -> str:
    """The worst ratio of each spacing to the best of the same network, sampler and calls, and the mean ratio, by kind
    of sampler. Bold is the least worst ratio."""
    kinds: dict[str, Callable[[str], bool]] = {
        "DDIM": lambda run: run.startswith("ddim"),
        "multistep samplers": lambda run: not run.startswith(("ddim", "heun")),
        "Heun": lambda run: run.startswith("heun"),
    }
    least = dict[tuple[str, str], float]()
    for row in rows:
        key = row["network"], row["run"]
        least[key] = min(row["distance"], least.get(key, row["distance"]))
    ratios = {
        (grid, kind): [row["distance"] / least[row["network"], row["run"]] for row in rows
                       if row["spacing"] == grid and chosen(row["run"])]
        for grid in dict.fromkeys(row["spacing"] for row in rows) for kind, chosen in kinds.items()
    }  # fmt: skip
    best = {kind: min(max(some) for (_, of), some in ratios.items() if of == kind and some) for kind in kinds
            if any(some for (_, of), some in ratios.items() if of == kind)}  # fmt: skip

    def cell(grid: str, kind: str) -> str:
        if not (some := ratios[grid, kind]):
            return "-"
        worst = f"{max(some):.2f}"
        return f"{f'**{worst}**' if max(some) == best[kind] else worst} ({sum(some) / len(some):.2f})"

    grids = dict.fromkeys(grid for grid, _ in ratios)
    return markdown(("spacing", *best), ([f"`{grid}`", *(cell(grid, kind) for kind in best)] for grid in grids))


def of_readme(rows: Rows) -> str:
    """The rows of the bundled network that the README shows; of several seeds the least and the greatest value."""
    shown = {"best untuned": "the best untuned plan of all samplers and spacings", "joint, three seeds": "joint tuning",
             "DDIM": "untuned DDIM"}  # fmt: skip

    def spread(cell: str) -> str:
        values = sorted(re.findall(r"\d+\.\d+", cell))
        return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"

    found = []
    for row in rows:
        name = next((text for start, text in shown.items() if row["plan"].startswith(start)), None)
        if name is not None and row["calls"] != "20":
            found.append([row["calls"], name, spread(row["distance"]), spread(row["FD"])])
    return markdown(("calls", "plan", "distance", "Frechet distance to the MNIST test digits"), found)


CELLS = (
    "joint-calls",
    "joint-cost",
    "joint-memory",
    "joint-network",
    "joint-network-guided",
    "joint-network-parts",
    "joint-parts",
    "joint-samplers",
    "joint-teachers",
    "joint-transfer",
    "least-squares",
    "network",
    "objectives",
    "search",
    "spacings-ddim",
    "spacings-heun",
    "spacings-ipndm",
    "spacings-multistep",
    "spacings-ratios",
    "spacings-values",
    "without-gradients",
)
"""The tables whose files have cells, and no function of rows."""

TABLES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    **{name: (name, of_cells) for name in CELLS},
    "best": ("best", of_best),
    "best-short": ("best-short", of_best),
    "overhead": ("overhead", of_overhead),
    "untuned-digits": ("untuned-digits", of_quality),
    "untuned-network": ("untuned-network", of_quality),
    "guidance": ("guidance", of_guidance),
    "guidance-left-out": ("guidance-left-out", of_left_out),
    "guidance-patterns": ("guidance-patterns", of_patterns),
    "orders": ("orders", of_orders),
    "peers-distance": ("peers", of_peers),
    "peers-frechet": ("peers", lambda rows: of_peers(rows, "frechet")),
    "readme": ("joint-network", of_readme),
    "robustness": ("robustness", of_robustness),
    "spacings-pictograms": ("spacings-pictograms", of_spacings),
}
"""The file and the function of every table."""


def _when(kept: Mapping[str, Any]) -> str:
    """What a page says of how a table was measured: the commit for one that is to be measured again."""
    if "measured" not in kept:
        return "Measured with"
    commits = " to ".join(dict.fromkeys([kept.get("measured_from", kept["measured"]), kept["measured"]]))
    return f"Printed at commit {commits} ({kept['environment']['date']}) with"


def filled(text: str) -> str:
    """A page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise ValueError(f"table {name!r} is none of {', '.join(TABLES)}")
        file, made = TABLES[name]
        kept = json.loads((RESULTS / f"{file}.json").read_text())
        made = of_cells if "measured" in kept and made is not of_readme else made
        notes = "".join(f"\n{fill(note, 120, break_on_hyphens=False)}\n" for note in kept.get("notes", ()))
        return f"{match[1]}\n{made(kept['rows'])}{notes}\n{_when(kept)}:\n\n```\n{kept['command']}\n```\n\n{match[4]}"

    return TABLE.sub(table, text)


def main(check: bool) -> int:
    changed = 0
    for page in PAGES:
        text = page.read_text()
        if (new := filled(text)) != text:
            changed += 1
            print(f"{page.relative_to(ROOT)} {'differs from its JSON' if check else 'is written anew'}")
            if not check:
                page.write_text(new)
    return changed if check else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page differs")
    raise SystemExit(main(**vars(parser.parse_args())))

"""The tables of the reference that are made from the code: python docs/hooks/tables.py writes them anew.

A page has such a table between the lines `<!-- from the code: NAME -->` and `<!-- end -->`; NAME is in `TABLES`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from time_tuner import SAMPLERS, NoiseScheduleVP, Plan, make_plan
from time_tuner.samplers import Sampler

DOCS = Path(__file__).resolve().parents[1]
MADE = re.compile(r"(<!-- from the code: (\S+) -->\n)(.*?)(<!-- end -->)", re.S)
CALLS = range(12, 16)  # of a run, among which every sampler finds its number


def orders(kind: type[Sampler]) -> dict[str, Sampler]:
    """The sampler with its usual options, or with each value of its option `order`, by the text of that option."""
    if "order" not in {field.name for field in fields(kind)}:  # type: ignore[arg-type]
        return {"": kind()}
    made = {}
    for order in range(1, 6):
        try:
            made[f"order={order}"] = kind(order=order)  # type: ignore[call-arg]
        except ValueError:
            break
    return made


def by_order(values: dict[str, str]) -> str:
    """A value that holds for every order, or the values of each order."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    if all(text == f"order={value}" for text, value in values.items()):
        return "`order`"
    texts = {value: [text for text in values if values[text] == value] for value in values.values()}
    return ", ".join(f"{value} ({', '.join(f'`{text}`' for text in some)})" for value, some in texts.items())


def stochastic(kind: type[Sampler]) -> str:
    """Whether runs draw noise, with the usual options and with `eta`."""
    made = {"": kind()}
    if "eta" in {field.name for field in fields(kind)}:  # type: ignore[arg-type]
        made["eta"] = kind(eta=1.0)  # type: ignore[call-arg]
    found = {text: _plan(sampler).stochastic for text, sampler in made.items()}
    if len(set(found.values())) == 1:
        return "yes" if found[""] else "no"
    return "if `eta` > 0"


def calls_of_steps(sampler: Sampler) -> str:
    """The calls of the steps of a run that does not end at sigma = 0."""
    within = next(steps for calls in CALLS if (steps := _steps(sampler, calls)) and steps[-1] == steps[-2])
    return ", then ".join(map(str, dict.fromkeys(within)))


def _steps(sampler: Sampler, calls: int) -> tuple[int, ...]:
    try:
        return sampler.steps(calls, to_zero=False)
    except ValueError:
        return ()


def _plan(sampler: Sampler) -> Plan:
    for calls in CALLS:
        try:
            return make_plan(sampler, NoiseScheduleVP("linear"), calls, "quadratic")
        except ValueError:
            continue
    raise ValueError(f"{sampler!r} makes no run of {CALLS}")


def of_samplers() -> Iterator[tuple[str, ...]]:
    """A row for each sampler: its name, its class, its paper and its facts."""
    yield "name", "class", "paper", "year", "order of convergence", "stochastic", "calls a step"
    for name, kind in SAMPLERS.items():
        authors, year, address = kind.paper.rsplit(", ", 2)
        made = orders(kind)
        yield (
            f"`{name}`",
            f"`{kind.__name__}`",
            f"[{authors}]({address})",
            year,
            by_order({text: str(sampler.convergence) for text, sampler in made.items()}),
            stochastic(kind),
            by_order({text: calls_of_steps(sampler) for text, sampler in made.items()}),
        )


TABLES: dict[str, Callable[[], Iterator[tuple[str, ...]]]] = {"samplers": of_samplers}


def markdown(rows: Iterator[tuple[str, ...]]) -> str:
    """The rows, the first of which has the titles, as a table in Markdown."""
    head, *rest = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rest))


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return MADE.sub(lambda match: f"{match[1]}\n{markdown(TABLES[match[2]]())}\n{match[4]}", text)


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        if (new := filled(text := page.read_text())) != text:
            page.write_text(new)
            print(f"{page.relative_to(DOCS)} is written anew")

"""The command `evaluate`: reads its texts, and prints and writes the report."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import data
from .._files import replacing
from ..evaluation import evaluate
from ..models.conditions import Conditions
from ..plans.plan import Plan
from . import compare, options, output


def run(
    model: str,
    conditions: Conditions,
    texts: Sequence[str],
    out: Path,
    given: Mapping[str, Any],
    as_json: bool = False,
) -> None:
    """Evaluate the plans of these texts, print the table, and write the report into a folder.

    Args:
        model: its name.
        conditions: of the model.
        texts: of plans, as `compare.read_runs` takes them.
        out: the folder.
        given: the values of the other options, by their names on the command line.
        as_json: whether the result is printed as JSON.
    """
    if out.is_file():
        raise ValueError(f"--out must be a folder, got the file {str(out)!r}")
    data.check_writable(out / "index.html")
    counts, samplers = options.read_numbers("--calls", given["calls"], 1), split(given["against"])
    load, read = options.loader(model), compare.read_runs(texts)
    with output.waiting(f"loading {model}"):
        loaded = load(conditions)
    made = {name: one if isinstance(one, Plan) else one(loaded) for name, one in read.items()}
    plans = {re.sub(r"\.json(?=$|:\d+$)", "", name): plan for name, plan in made.items()}
    features, budget = given["features"], given["budget"]
    kept = "data-" + re.sub(r"[^\w.-]", "-", features or "default") + ".safetensors"
    partial = output.partial_of(out)
    with output.resumable(out), output.Bar("evaluation") as bar:
        report = evaluate(
            loaded,
            plans,
            samplers,
            counts,
            name=model,
            data=given["data"],
            features=features,
            samples=given["count"],
            seed=given["seed"],
            batch=conditions.batch,
            budget=None if budget == "none" else budget,
            cache=None if given["data"] is None else out / kept,
            command=command(model, conditions, texts, out, given),
            progress=bar.tuning,
            checkpoint=partial,
        )
        written = report.write(out)
    values = {**report.to_dict(), "out": written}
    output.report(values if as_json else None, str(report), "", *(f"wrote {path}" for path in written))


def split(text: str) -> list[str]:
    """The samplers of a text such as "ddim,unipc(order=3)@quadratic": its commas outside parentheses divide them."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def command(model: str, conditions: Conditions, texts: Sequence[str], out: Path, given: Mapping[str, Any]) -> str:
    """The command line that makes the report again. Several prompts are kept in a file beside it."""
    values = conditions.given()
    prompts = values.pop("prompts", ())
    if len(prompts) > 1:
        values["prompts"] = out / "prompts.txt"
        with replacing(out / "prompts.txt") as file:
            file.write("\n".join(prompts).encode())
    elif prompts:
        values["prompt"] = prompts[0]
    words: list[Any] = ["time-tuner", "evaluate", *texts, "--model", model]
    for name, value in {**values, **given, "out": out}.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        words += [flag] if value is True else [flag, ",".join(map(str, value)) if isinstance(value, tuple) else value]
    return shlex.join(map(str, words))

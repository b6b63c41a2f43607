"""The cost model of tuning: beside measured runs, and for networks and numbers of devices that are not here.

    python benchmarks/cost.py measured [--model digits] [--json out.json]
    python benchmarks/cost.py simulated [--json out.json]

"measured" tunes by several tuners, and prints the seconds and the network calls that `estimate` predicts from a probe
of one batch beside those of the run, and their ratio; a prediction is to be within 20 %. "simulated" prints the calls,
the hours, what each device exchanges and the memory that it needs for a network of the size of SDXL and for a video
network of 14 B weights, by the code of `estimate`. Their weights, activations and speed are parameters of this script,
stated in `NETWORKS` and in the table; they are not measured.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from time_tuner import NoiseScheduleFlow, NoiseScheduleVP, estimate, load_model, make_plan, tune
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import Budget, tuner_of
from time_tuner.tuners.budget import Speed
from time_tuner.tuners.costs import bytes_exchanged, memory_needed, planned_costs, seconds_on
from time_tuner.tuners.estimate import DEVICES

MEASURED = ("sequential", "parallel", "least_squares(pairs=32)", "joint(pairs=32, iterations=20)")
SIMULATED = ("sequential", "least_squares(pairs=64)", "joint(pairs=64, iterations=100, candidates=1)")
CALLS, SAMPLES = 8, 32


@dataclass(frozen=True)
class Network:
    """A network as the simulation states it.

    Attributes:
        schedule: its noise schedule.
        shape: of a state.
        weights: bytes.
        activations: bytes of a forward call with one sample under guidance; a backward pass keeps `kept` times these.
        seconds: of an evaluation, without guidance.
        kept: how many times the activations a backward pass through one call keeps.
    """

    schedule: NoiseSchedule
    shape: tuple[int, ...]
    weights: float
    activations: float
    seconds: float
    kept: float = 5.0


NETWORKS = {
    "SDXL-sized, 1024 x 1024, bfloat16": Network(NoiseScheduleVP("linear"), (4, 128, 128), 5.2e9, 3e9, 0.05),
    "14 B video, 81 frames of 720p, bfloat16": Network(NoiseScheduleFlow(), (16, 21, 90, 160), 28e9, 12e9, 15.0),
}


def measured(name: str) -> list[dict[str, Any]]:
    """Predicted and measured costs of several tuners."""
    model, rows = load_model(name), []
    plan = make_plan("ddim", model.schedule, 5, "quadratic")
    for text in MEASURED:
        how: dict[str, Any] = {"samples": SAMPLES, "budget": "1000000calls"}
        expected = estimate(model, plan, text, **how)
        began = time.monotonic()
        tuned = tune(model, plan, text, **how)
        seconds = time.monotonic() - began
        cost = tuned.provenance["cost"]
        rows.append(
            {
                "tuner": text,
                "predicted seconds": expected.seconds,
                "seconds": seconds,
                "ratio": expected.seconds / seconds,
                "predicted evaluations": sum(usual.evaluations for usual, _ in expected.costs.values()),
                "evaluations": sum(one["evaluations"] for name, one in cost.items() if name != "sizing"),
            }
        )
    return rows


def simulated() -> list[dict[str, Any]]:
    """The cost of tuning by several tuners on networks that are not here."""
    rows = []
    for name, network in NETWORKS.items():
        plan, numbers = make_plan("dpmpp", network.schedule, CALLS), prod(network.shape)
        speed = Speed(0.0, 2 * network.seconds)  # under guidance
        for text in SIMULATED:
            tuner, pairs = tuner_of(text), 0 if text == "sequential" else 64
            costs = planned_costs(tuner, plan, False, SAMPLES, None, True, True, Budget(), speed)
            for devices in DEVICES:
                kept = network.kept if text.startswith("joint") else 1.0
                memory = memory_needed(
                    plan, numbers, int(network.weights), int(kept * network.activations), 1, pairs, "least" in text
                )
                rows.append(
                    {
                        "network": name,
                        "tuner": text,
                        "devices": devices,
                        "evaluations": 2 * sum(usual.evaluations for usual, _ in costs.values()),
                        "hours": seconds_on(devices, costs, speed) / 3600,
                        "exchanged MB": bytes_exchanged(tuner, plan, costs, numbers) / 1e6 if devices > 1 else 0.0,
                        "device GB": memory.device / 1e9,
                        "host GB": memory.host / 1e9,
                    }
                )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    made = Table(*rows[0])
    for row in rows:
        made.add_row(*(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measured", "simulated"))
    parser.add_argument("--model", default="digits")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measured(given.model) if given.what == "measured" else simulated()
    show(rows)
    if given.what == "simulated":
        for name, network in NETWORKS.items():
            stated = {key: value for key, value in asdict(network).items() if key != "schedule"}
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in stated.items()))
        print(f"A plan of {CALLS} calls under guidance, {SAMPLES} samples, one sample in a call of a device.")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

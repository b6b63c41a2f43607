"""Plan files, read and checked with the standard library alone."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT, VERSION = "time-tuner plan", 1
MOST_BYTES = 64 * 2**20
KINDS = ("x", "eps", "x0", "c", "g", "z")

PARTS = ("guidance", "corrected", "next_state")
"""The sums of a row, in the order in which they are computed."""

LARGE = 1e6
"""sigma / alpha in place of infinity, where a plan starts at alpha = 0."""

NEAR = 1e-4
"""The relative difference within which two sigmas are the same."""


@dataclass(frozen=True)
class Plan:
    """A run of K calls, as its file has it. The state is x = alpha x_0 + sigma eps.

    ComfyUI counts noise, and scales states, in its own way: on "vp" and "ve" schedules a state is x / alpha, and its
    noise sigma / alpha; in a rectified flow both are those of the plan.

    Attributes:
        schedule: the noise schedule, as plain values.
        alpha, sigma: K + 1 numbers each, of the states before each call and of the last.
        tau: K conditioning times.
        rows: K objects, the arithmetic of each call.
        shape: of one sample in the tuning; empty where it is not known.
    """

    schedule: dict[str, Any]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    tau: tuple[float, ...]
    t: tuple[float, ...]
    rows: tuple[dict[str, Any], ...]
    shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tau)

    @property
    def flow(self) -> bool:
        """Whether the plan is for a rectified flow."""
        return bool(self.schedule["name"] == "flow")

    @property
    def scales(self) -> tuple[float, ...]:
        """The factor from ComfyUI's state to the plan's, K + 1 numbers."""
        return tuple(1.0 if self.flow else a or 1 / LARGE for a in self.alpha)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise of each state as ComfyUI counts it, K + 1 numbers that do not rise."""
        return tuple(s / scale for s, scale in zip(self.sigma, self.scales, strict=True))

    @property
    def called_sigmas(self) -> tuple[float, ...]:
        """The noise that the model receives at each call, K numbers, no two the same.

        A sampler with several calls a step may call twice at one noise, with two conditioning times. The second noise
        is larger by 5e-7 of it, so that the two calls differ.
        """
        made: list[float] = []
        for sigma in self.sigmas[:-1]:
            made.append(sigma * (1 + 2**-21) if made and abs(made[-1] / sigma - 1) < 1e-7 else sigma)
        return tuple(made)

    @property
    def guides_all(self) -> bool:
        """Whether every call has guidance."""
        return not any("guidance" in row for row in self.rows)

    def levels(self) -> list[float]:
        """The level that a network with N discrete levels receives at each call: tau N - 1."""
        values = self.schedule.get("betas") or self.schedule.get("alphas_cumprod") or ()
        return [tau * len(values) - 1 for tau in self.tau]

    def noise_at_tau(self) -> list[float]:
        """The noise at each conditioning time, as ComfyUI counts it; not on "vp" schedules."""
        if not self.flow:
            return list(self.tau)
        shift = float(self.schedule.get("shift", 1.0))
        return [shift * tau / (1 + (shift - 1) * tau) for tau in self.tau]

    def reads_from(self, k: int) -> int:
        """The earliest call that row k reads."""
        row = self.rows[k]
        return k - max((ago for name in PARTS for _, ago, _ in row.get(name, ())), default=0)

    def is_tail_of(self, other: "Plan") -> bool:
        """Whether the plan is the rest of another, from the first call of a step on."""
        return len(self) < len(other) and same(self.sigmas, other.sigmas[len(other) - len(self) :])


def same(a: Any, b: Any) -> bool:
    """Whether two lists of sigmas are the same but for rounding."""
    return len(a) == len(b) and all(abs(p - q) <= NEAR * max(abs(p), abs(q)) for p, q in zip(a, b, strict=True))


def read_plans(path: Any) -> list[Plan]:
    """The plans of a file, from the fewest calls to the most.

    Raises:
        ValueError: it is not a plan file; names the file.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        plans = [_plan(one) for one in (values if isinstance(values, list) else [values])]
        if not plans or len({len(plan) for plan in plans}) < len(plans):
            raise ValueError("it must hold plans for different numbers of calls, at least one")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a plan file: {error}") from None
    return sorted(plans, key=len)


def choose(plans: list[Plan], calls: int) -> Plan:
    """The plan with so many calls; for 0 the only one, or the one that the others are tails of.

    Raises:
        ValueError: there is none, or for 0 there are several.
    """
    found = [plan for plan in plans if len(plan) == calls]
    if calls == 0 and all(plan.is_tail_of(plans[-1]) for plan in plans[:-1]):
        found = plans[-1:]
    if not found:
        raise ValueError(f"calls must be one of {[len(plan) for plan in plans]}, the plans of the file, got {calls}")
    return found[0]


def _plan(values: Any) -> Plan:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"its 'format' must be {FORMAT!r}")
    if values.get("version") != VERSION:
        raise ValueError(f"it has version {values.get('version')!r}, these nodes read {VERSION}: update them")
    calls, schedule, rows = values.get("calls"), values.get("schedule"), values.get("rows")
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 1:
        raise ValueError(f"calls must be a whole number of at least 1, got {calls!r}")
    if not isinstance(schedule, dict) or schedule.get("name") not in ("vp", "ve", "flow"):
        raise ValueError("schedule must be named vp, ve or flow")
    columns = {name: _numbers(name, values.get(name), calls + 1) for name in ("t", "alpha", "sigma")}
    if min(columns["sigma"][:-1]) <= 0 or min(columns["alpha"][1:]) <= 0 or columns["alpha"][0] < 0:
        raise ValueError("sigma must be above 0 at every call, and alpha after the first")
    if not isinstance(rows, list) or len(rows) != calls:
        raise ValueError(f"rows must hold {calls} rows: save the plan with time_tuner, which writes them")
    for k in range(calls):
        _check_row(rows, k)
    tau = _numbers("tau", values.get("tau"), calls)
    return Plan(schedule, tau=tau, rows=tuple(rows), shape=_shape(values.get("provenance")), **columns)


def _shape(provenance: Any) -> tuple[int, ...]:
    """The shape of one sample that a plan was tuned on, by its provenance."""
    made_for = provenance.get("made_for") if isinstance(provenance, dict) else None
    shape = made_for.get("shape") if isinstance(made_for, dict) else None
    return tuple(shape) if isinstance(shape, list) and all(isinstance(n, int) for n in shape) else ()


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    fits = isinstance(values, list) and len(values) == count
    if not fits or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise ValueError(f"{name} must hold {count} finite numbers")
    return tuple(map(float, values))


def _check_row(rows: list[Any], k: int) -> None:
    row = rows[k]
    if not isinstance(row, dict) or row.get("predicts", "eps") not in ("eps", "x0"):
        raise ValueError(f"row {k} must be an object that predicts eps or x0")
    for name in PARTS:
        terms = row.get(name, [] if name != "next_state" else None)
        if not isinstance(terms, list) or (name == "next_state" and not terms):
            raise ValueError(f"row {k} needs {name}, a list of terms")
        for term in terms:
            if not isinstance(term, list) or len(term) != 3 or term[0] not in KINDS:
                raise ValueError(f"row {k} has the term {term!r}; these nodes know {', '.join(KINDS)}: update them")
            if not isinstance(term[1], int) or not 0 <= term[1] <= k or not isinstance(term[2], int | float):
                raise ValueError(f"row {k} has the term {term!r}, not [tensor, calls ago, weight]")
            source = rows[k - term[1]]
            if term[0] in ("eps", "x0") and source.get("predicts", "eps") != term[0]:
                raise ValueError(f"row {k} uses {term[0]} of call {k - term[1]}, which has none")
            if (term[0] == "g") != (name == "guidance") or (term[0] == "g" and (not term[1] or "guidance" in source)):
                raise ValueError(f"row {k} uses guidance of call {k - term[1]}, which has none")
            if term[0] == "c" and ("corrected" not in source or (name == "corrected" and term[1] == 0)):
                raise ValueError(f"row {k} uses the corrected state of call {k - term[1]}, which has none")

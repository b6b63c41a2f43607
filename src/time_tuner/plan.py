"""The plan: one row (t, alpha, sigma, tau) for each call of the network, as a value, a JSON file and a table."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .rows import Row, compile_rows
from .samplers import Sampler, sampler_from_dict, sampler_to_dict
from .sampling import trajectory
from .schedules import NoiseSchedule, Point, as_times, schedule_from_dict
from .spacings import SPACINGS

FORMAT, VERSION = "time-tuner plan", 1


@dataclass(frozen=True, eq=False)
class Plan:
    """A run of K network calls: call k is made in the state at point k, told tau_k, and leads to point k + 1.

    Made by `make_plan`, changed by `with_times`, `with_tau` and `with_corrections`, run by `sample`.

    Attributes:
        sampler: how predictions are combined.
        schedule: the noise schedule that the points lie on.
        t, alpha, sigma: the points, float64 of shape (K + 1,). A sampler with several calls a step (Heun) may stand at
            one time twice: a call is known by its index.
        tau: the time that the network is told at each call, (K,); `tau = t[:K]` in an untuned plan.
        corrections: None, or C (K, K), strictly lower triangular: after call k the state is moved by
            gamma_k sum_{j < k} C[k, j] (eps_j - eps_k), with gamma_k = sigma_q - alpha_q / alpha_b sigma_b, where q is
            point k + 1 and b the first point of the step that call k belongs to. Zero is the sampler as it stands.
        provenance: how it was made; plain JSON values.
    """

    sampler: Sampler
    schedule: NoiseSchedule
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    tau: Tensor
    corrections: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("t", "alpha", "sigma", "tau", "corrections"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_times(getattr(self, name)))
        _validate(self)

    def __len__(self) -> int:
        """The number of network calls, K."""
        return len(self.tau)

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Plan) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Plan({self.sampler!r}, {self.schedule!r}, calls={len(self)}, tuned={self.tuned})"

    @property
    def tuned(self) -> bool:
        """Whether the network is told other times, or predictions are combined otherwise, than untuned."""
        return self.corrections is not None or not torch.equal(self.tau, self.t[:-1])

    @property
    def stochastic(self) -> bool:
        """Whether running it draws noise."""
        return any(row.draws for row in self.rows)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Network calls of each step; they sum to K."""
        return self.sampler.steps(len(self), bool(self.sigma[-1] == 0))

    @property
    def ends(self) -> Tensor:
        """The times where steps begin and end, (S + 1,): t without what lies inside a step."""
        firsts = [sum(self.steps[:i]) for i in range(len(self.steps))]
        return self.t[[*firsts, len(self)]]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """What each call does to the tensors, as numbers."""
        return compile_rows(self)

    def point(self, k: int) -> Point:
        """Point k = 0 .. K: where call k is made; K is the end."""
        return Point(self.t[k], self.alpha[k], self.sigma[k])

    def with_times(self, ends: Any) -> "Plan":
        """The same run on another grid of step ends, (S + 1,) strictly falling. The ratios tau / t are kept."""
        ratios = self.tau / self.t[:-1]
        grid = _points(self.sampler, self.schedule, _checked_ends(ends, self.schedule), self.steps)
        return replace(self, t=grid.t, alpha=grid.alpha, sigma=grid.sigma, tau=ratios * grid.t[:-1])

    def with_tau(self, tau: Any) -> "Plan":
        """The same run with the network told other times, (K,)."""
        tau = as_times(tau)
        if tau.shape != self.tau.shape:
            raise ValueError(f"tau must hold one time for each of {len(self)} calls, got shape {tuple(tau.shape)}")
        return replace(self, tau=tau)

    def with_corrections(self, corrections: Any) -> "Plan":
        """The same run with other corrections, (K, K) strictly lower triangular, or None."""
        return replace(self, corrections=None if corrections is None else as_times(corrections))

    def with_provenance(self, **values: Any) -> "Plan":
        """The same run with these entries added to what is known of its making."""
        return replace(self, provenance={**self.provenance, **values})

    def coefficients(self) -> Tensor:
        """The whole run as a table, float64 (K, 1 + 2 K): row k is the state after call k as a combination of
        x_T, eps_0 .. eps_{K-1}, z_0 .. z_{K-1}.

        It is the loop itself, run on unit vectors.
        """
        calls = len(self)
        unit = torch.eye(1 + 2 * calls, dtype=torch.float64)
        said = iter(unit[1 : 1 + calls])
        drawn = {k: unit[1 + calls + k] for k in range(calls)}
        draws = iter([drawn[k] for k in range(calls) if self.rows[k].draws])
        return torch.stack(list(trajectory(lambda x, t, tau: next(said), self, unit[0], lambda x: next(draws))))

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        corrections = None if self.corrections is None else self.corrections.tolist()
        return {
            "format": FORMAT,
            "version": VERSION,
            "calls": len(self),
            "sampler": sampler_to_dict(self.sampler),
            **{name: getattr(self, name).tolist() for name in ("t", "alpha", "sigma", "tau")},
            "corrections": corrections,
            "provenance": dict(self.provenance),
            "schedule": self.schedule.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Plan":
        """The inverse of `to_dict`.

        Raises:
            ValueError: not a plan, a newer version, missing or misshapen entries, or points off the schedule.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"not a plan: its 'format' must be {FORMAT!r}")
        version = values.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise ValueError(f"plan has version {version!r}, this library reads up to {VERSION}: update time-tuner")
        needed = ("calls", "sampler", "t", "alpha", "sigma", "tau", "schedule")
        missing = [name for name in needed if values.get(name) is None]
        if missing:
            raise ValueError(f"plan lacks {', '.join(missing)}")
        for name, kind in (("sampler", Mapping), ("schedule", Mapping), ("provenance", Mapping)):
            if not isinstance(values.get(name, {}), kind):
                raise ValueError(f"{name} of a plan must be a JSON object, got {type(values[name]).__name__}")
        columns: dict[str, Tensor] = {}
        for name in ("t", "alpha", "sigma", "tau", "corrections"):
            if values.get(name) is not None:
                try:
                    columns[name] = torch.tensor(values[name], dtype=torch.float64)
                except (TypeError, ValueError, OverflowError) as error:
                    raise ValueError(f"{name} of a plan must be a list of numbers: {error}") from None
        plan = cls(
            sampler=sampler_from_dict(values["sampler"]),
            schedule=schedule_from_dict(values["schedule"]),
            provenance=dict(values.get("provenance", {})),
            **columns,
        )
        if len(plan) != values["calls"]:
            raise ValueError(f"plan says calls = {values['calls']!r}, but holds {len(plan)} of them")
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the file appears whole or not at all."""
        write_atomically(Path(path), _readable_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str], calls: int | None = None) -> "Plan":
        """Read a plan file; of a file that holds a list of plans, the one with this number of calls.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a valid plan file, or holds no plan with this number of calls; names the file.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constants)
        except ValueError as error:
            raise ValueError(f"{path} is not a plan file: {error}") from None
        try:
            plans = [cls.from_dict(entry) for entry in (values if isinstance(values, list) else [values])]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found = {len(plan): plan for plan in plans}
        if calls is None and len(plans) == 1:
            return plans[0]
        if calls not in found:
            raise ValueError(f"{path} has plans for calls = {sorted(found)}, got calls={calls}: name one of them")
        return found[calls]


def make_plan(
    sampler: Sampler | str,
    schedule: NoiseSchedule,
    calls: int | None = None,
    spacing: str | None = None,
    times: Any = None,
) -> Plan:
    """An untuned plan: where a sampler's steps end on a schedule, and with that where the network is called.

    Args:
        sampler: a sampler, or the name of one in `SAMPLERS` for its default options.
        schedule: the noise schedule of the network.
        calls: number of network calls; may be left out when `times` are given.
        spacing: a name in `SPACINGS`; "quadratic" when neither spacing nor times are given.
        times: instead of a spacing, the step ends themselves, strictly falling, in the schedule's trained range; the
            last may be 0.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    if isinstance(sampler, str):
        sampler = sampler_from_dict({"name": sampler})
    if calls is not None:
        _check_calls(calls, schedule)
    if times is not None:
        if spacing is not None:
            raise ValueError(f"give either spacing or times, got spacing={spacing!r} and times")
        ends = _checked_ends(times, schedule)
        calls = _calls_for(sampler, ends) if calls is None else calls
        steps = sampler.steps(calls, bool(ends[-1] == 0))
        if len(ends) != len(steps) + 1:
            raise ValueError(f"times must hold {len(steps) + 1} step ends for calls={calls}, got {len(ends)}")
    else:
        if calls is None:
            raise ValueError("make_plan needs calls=, the number of network calls, or times=")
        spacing = "quadratic" if spacing is None else spacing
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")
        to_zero = bool(SPACINGS[spacing](schedule, 1)[-1] == 0)
        steps = sampler.steps(calls, to_zero)
        ends = _checked_ends(SPACINGS[spacing](schedule, len(steps)), schedule)
    grid = _points(sampler, schedule, ends, steps)
    return Plan(sampler, schedule, grid.t, grid.alpha, grid.sigma, grid.t[:-1])


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name beside its place, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # a temporary file is private, a plan need not be
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _points(sampler: Sampler, schedule: NoiseSchedule, ends: Tensor, steps: Sequence[int]) -> Point:
    """The K + 1 points of a run: where each call of each step is made, and the end."""
    if len(ends) != len(steps) + 1:
        raise ValueError(f"times must hold {len(steps) + 1} step ends, got {len(ends)}")
    times: list[Tensor] = []
    for p, q, calls in zip(ends[:-1], ends[1:], steps, strict=True):
        for r in sampler.stages(calls):
            if r in (0, 1):
                times.append(q if r else p)
            else:
                lam_p, lam_q = schedule.at(p).lam, schedule.at(q).lam
                times.append(schedule.inverse_lambda(lam_p + r * (lam_q - lam_p)).to(torch.float64))
    return schedule.at(torch.stack([*times, ends[-1]]))


def _calls_for(sampler: Sampler, ends: Tensor) -> int:
    """The least number of calls that makes as many steps as the ends say."""
    steps = len(ends) - 1
    for calls in range(steps, 10 * steps + 1):
        try:
            if len(sampler.steps(calls, bool(ends[-1] == 0))) == steps:
                return calls
        except ValueError:
            continue
    raise ValueError(f"times has {steps} steps, which {type(sampler).__name__} cannot make: give calls= too")


def _check_calls(calls: int, schedule: NoiseSchedule) -> None:
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 1:
        raise ValueError(f"calls must be a whole number of network calls, at least 1, got {calls!r}")
    if calls > schedule.total_N:
        raise ValueError(f"calls must be at most the schedule's {schedule.total_N} trained noise levels, got {calls}")


def _checked_ends(times: Any, schedule: NoiseSchedule) -> Tensor:
    try:
        ends = as_times(times)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"times must be numbers: {error}") from None
    if ends.dim() != 1 or len(ends) < 2:
        raise ValueError(f"times must be a list of at least two step ends, got shape {tuple(ends.shape)}")
    if not torch.isfinite(ends).all():
        raise ValueError("times must be finite, got NaN or infinity in them")
    if (ends.diff() >= 0).any():
        k = int((ends.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"times must fall strictly, got {float(ends[k]):.6g} then {float(ends[k + 1]):.6g} at index {k} "
            "(fewer calls, or another spacing)"
        )
    low, high, slack = schedule.t_min, schedule.T, 1e-9
    inside = (ends >= low - slack) & (ends <= high + slack)
    inside[-1] |= ends[-1] == 0
    if not inside.all():
        k = int((~inside).nonzero()[0])
        raise ValueError(
            f"times must lie in the trained range [{low:.6g}, {high:.6g}] (the last may be 0), got {float(ends[k]):.6g}"
        )
    return ends


def _validate(plan: Plan) -> None:
    for name in ("t", "alpha", "sigma", "tau", "corrections"):
        column = getattr(plan, name)
        if column is not None and not torch.isfinite(column).all():
            raise ValueError(f"{name} of a plan must be finite, got NaN or infinity")
    calls = plan.tau.numel()
    if plan.tau.dim() != 1 or calls < 1:
        raise ValueError(f"tau of a plan must have shape (K,) with K >= 1, got {tuple(plan.tau.shape)}")
    for name in ("t", "alpha", "sigma"):
        if getattr(plan, name).shape != (calls + 1,):
            got = tuple(getattr(plan, name).shape)
            raise ValueError(f"{name} of a plan with {calls} calls must have shape ({calls + 1},), got {got}")
    if (plan.tau <= 0).any():
        raise ValueError(f"tau of a plan must be positive, got {float(plan.tau.min())}")
    c = plan.corrections
    if c is not None and (c.shape != (calls, calls) or c.detach().triu().any()):
        raise ValueError(f"corrections must be ({calls}, {calls}) and strictly lower triangular, got {tuple(c.shape)}")
    _checked_ends(plan.ends.detach(), plan.schedule)
    if (plan.t.diff() > 0).any() or (plan.sigma[:-1] <= 0).any():
        raise ValueError("t of a plan must not rise, and the network is never called at sigma = 0")
    point = plan.schedule.at(plan.t.detach())
    for name in ("alpha", "sigma"):
        on_schedule, held = getattr(point, name), getattr(plan, name).detach()
        if not torch.allclose(on_schedule, held, rtol=1e-6, atol=1e-9):
            raise ValueError(
                f"{name} of a plan does not lie on its noise schedule {plan.schedule!r}: the file was edited"
            )


def _no_constants(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def _readable_json(values: Mapping[str, Any]) -> str:
    """One entry a line, so that a plan can be read and compared."""
    lines = (f"  {json.dumps(key)}: {_entry(value)}" for key, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _entry(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        inner = (f"    {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value.items())
        return "{\n" + ",\n".join(inner) + "\n  }"
    return json.dumps(value, allow_nan=False)

"""The plan: a point and a conditioning time for each network call of a run, as a value and as a JSON file."""

import os
from collections.abc import Mapping, Sequence, Sized
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from .._files import one_line, same_numbers, write_json
from ..samplers import Sampler, sampler_from_dict, sampler_to_dict
from ..schedules import NoiseSchedule, Point, as_float64, schedule_from_dict
from .grid import checked_ends, place_calls
from .rows import Row, compile_rows, detached, predicted_at, with_guidance
from .sharing import embed, fetch, push, read_values

FORMAT, VERSION = "time-tuner plan", 1
COLUMNS = ("t", "alpha", "sigma", "tau", "corrections")
GUIDANCE = ("guided", "reuse")  # entries of plans that leave guidance out of some calls
ENTRIES = ("format", "version", "calls", "sampler", *COLUMNS, *GUIDANCE, "provenance", "schedule", "rows")
NEEDED = ("calls", "sampler", "t", "alpha", "sigma", "tau", "schedule")

LARGEST = float(torch.finfo(torch.float32).max)  # of a weight, which states in float32 are multiplied by
MOST_CALLS = 2000
"""The most calls of all plans of a file together: the rows of a call take up to 10 milliseconds."""

ROUNDING = 2**-8
"""The largest relative error of a network time that was rounded to bfloat16, which a plan may hold."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A run of K network calls. Call k receives the state at point k and the conditioning time tau_k, and leads to
    point k + 1.

    `make_plan` makes a plan, `with_times`, `with_tau` and `with_corrections` change one, `sample` runs it.

    Attributes:
        sampler: the rule that combines the predictions.
        schedule: the noise schedule that the points lie on.
        t: the times of the points, float64 (K + 1,), falling. A sampler with several calls a step (Heun) may call the
            network twice at one time, so that a call is identified by its index.
        alpha: of the points, float64 (K + 1,).
        sigma: of the points, float64 (K + 1,).
        tau: the conditioning time of each call, (K,); the network receives `schedule.network_time(tau)`. An untuned
            plan has `tau = t[:K]`.
        corrections: None, or C (K, K), strictly lower triangular, which adds
            gamma_k sum_{j < k} C[k, j] (eps_j - eps_k) to the state after call k. Here gamma_k is
            sigma_q - alpha_q / alpha_b sigma_b, q is point k + 1, and b is the first point of the step that call k
            belongs to. Zero corrections leave the sampler as it is.
        guided: for each call, whether the network is evaluated with and without its condition, which costs two
            evaluations under classifier-free guidance; all by default. At the other calls it is evaluated under the
            condition alone. Of no effect, and all, for models without guidance.
        reuse: None, or G (K, K), strictly lower triangular, which adds sum_j G[k, j] g_j to the noise that is predicted
            at call k where guidance is left out. Here g_j is what guidance has added to the noise predicted at call j,
            with the scale w that is (w - 1) (eps_cond - eps_uncond). It is 0 but for such calls k and guided calls j.
        provenance: how the plan was made; plain JSON values.
    """

    sampler: Sampler
    schedule: NoiseSchedule
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    tau: Tensor
    corrections: Tensor | None = None
    guided: tuple[bool, ...] = ()
    reuse: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*COLUMNS, "reuse"):
            if getattr(self, name) is None:
                continue
            try:
                column = as_float64(getattr(self, name))
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                raise ValueError(f"{name} of a plan must be a list of numbers: {error}") from None
            if not torch.isfinite(column).all():
                raise ValueError(f"{name} of a plan must be finite, got NaN or infinity")
            object.__setattr__(self, name, column)
        object.__setattr__(self, "guided", _flags(self.guided, self.tau))
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
        """Whether conditioning times or corrections differ from those of an untuned plan."""
        return self.corrections is not None or not torch.equal(self.tau, self.t[:-1])

    @property
    def evaluations(self) -> int:
        """The evaluations of the network for a sample under classifier-free guidance: two for each guided call, one for
        each other. Models without guidance make one for each call."""
        return len(self) + sum(self.guided)

    @property
    def stochastic(self) -> bool:
        """Whether the sampler draws noise."""
        return any(row.uses_noise for row in self.rows)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The number of network calls of each step; they sum to K."""
        return self.sampler.steps(len(self), bool(self.sigma[-1] == 0))

    @property
    def step_times(self) -> Tensor:
        """The times where steps begin and end, (S + 1,): t without the times inside of steps."""
        firsts = [sum(self.steps[:i]) for i in range(len(self.steps))]
        return self.t[[*firsts, len(self)]]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The arithmetic of each call, as weights."""
        rows = compile_rows(self.sampler, self._points, self.steps, self.corrections)
        return rows if all(self.guided) else with_guidance(rows, self.guided, self.reuse_weights)

    @cached_property
    def reuse_weights(self) -> Tensor:
        """G (K, K) between what the rows predict: where that is the data, guidance adds g to the data and
        -alpha / sigma g to the noise."""
        reuse = torch.zeros(len(self), len(self), dtype=torch.float64) if self.reuse is None else self.reuse
        points = self._points[:-1]
        data = torch.tensor([predicted_at(p) == "x0" for p in points])
        # The noise for a unit of what is predicted; at alpha = 0 there is nothing to use again.
        noise = torch.where(data, torch.stack([-p.alpha / p.sigma for p in points]), 1.0)
        return reuse * noise / torch.where(noise == 0, 1.0, noise)[:, None]

    def point(self, k: int) -> Point:
        """Point k = 0 .. K: call k receives the state at point k, and the run ends at point K."""
        return self._points[k]

    @cached_property
    def _points(self) -> tuple[Point, ...]:
        return tuple(map(Point, self.t.unbind(), self.alpha.unbind(), self.sigma.unbind()))

    @cached_property
    def taus(self) -> tuple[Tensor, ...]:
        """The conditioning time of each call, 0-dim each."""
        return self.tau.unbind()

    def initial_state(self, noise: Tensor) -> Tensor:
        """The state with which a run begins: standard normal noise (B, ...) times sqrt(alpha^2 + sigma^2) of the first
        point. The factor is 1 on a variance-preserving schedule, and about sigma_max on a variance-exploding one."""
        return float(self.point(0).scale.detach()) * noise

    def with_times(self, ends: Any, ratios: Any = None) -> "Plan":
        """The same run on another grid of step ends, (S + 1,), strictly falling.

        The ratios tau / t are kept, or are other ones (K,), as far as tau stays in the trained range.
        """
        grid = place_calls(self.sampler, self.schedule, checked_ends(ends, self.schedule), self.steps)
        tau = (self.tau / self.t[:-1] if ratios is None else as_float64(ratios)) * grid.t[:-1]
        tau = _in_range(self.schedule, tau, grid.t[:-1])
        return replace(self, t=grid.t, alpha=grid.alpha, sigma=grid.sigma, tau=tau)

    def with_tau(self, tau: Any) -> "Plan":
        """The same run with other conditioning times, (K,)."""
        tau = as_float64(tau)
        if tau.shape != self.tau.shape:
            raise ValueError(f"tau must hold one time for each of {len(self)} calls, got shape {tuple(tau.shape)}")
        return replace(self, tau=tau)

    def with_ratios(self, ratios: Any) -> "Plan":
        """The same run with the conditioning times tau = ratio * t, for ratios (K,), kept in the trained range."""
        t = self.t[:-1]
        return self.with_tau(_in_range(self.schedule, as_float64(ratios) * t, t))

    def with_corrections(self, corrections: Any) -> "Plan":
        """The same run with other corrections, (K, K) and strictly lower triangular, or None."""
        return replace(self, corrections=corrections)

    def with_guidance(self, guided: "int | Sequence[bool]", reuse: Any = None) -> "Plan":
        """The same run with guidance at these calls alone, the first `guided` ones or those of K flags; and what other
        calls reuse of it, G (K, K), see `Plan`: nothing by default."""
        if isinstance(guided, Integral) and not isinstance(guided, bool):
            count = check_int("guided", guided, 0)
            if count > len(self):
                raise ValueError(f"guided must be at most the number of calls, {len(self)}, got {count}")
            guided = [k < count for k in range(len(self))]
        if not isinstance(guided, Sequence) or not len(guided):
            raise ValueError(f"guided must be a number of first calls, or a flag for each call, got {guided!r}")
        return replace(self, guided=tuple(guided), reuse=reuse)

    def with_provenance(self, **values: Any) -> "Plan":
        """The same run with these entries added to its provenance."""
        made = copy(self)  # not a new plan, whose columns are checked and whose rows are compiled again
        object.__setattr__(made, "provenance", {**self.provenance, **values})
        return made

    def detached(self) -> "Plan":
        """The same plan without gradients, whose rows are not compiled again."""
        made = copy(self)
        for name in (*COLUMNS, "reuse"):
            if (column := getattr(self, name)) is not None:
                object.__setattr__(made, name, column.detach())
        for name in ("_points", "taus", "reuse_weights"):
            made.__dict__.pop(name, None)
        made.__dict__["rows"] = detached(self.rows)
        return made

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values; `rows` follow from the others, for programs without this library."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "calls": len(self),
            "sampler": sampler_to_dict(self.sampler),
            **{name: None if (column := getattr(self, name)) is None else column.tolist() for name in COLUMNS},
            **({} if all(self.guided) else {"guided": list(self.guided)}),
            **({} if self.reuse is None else {"reuse": self.reuse.tolist()}),
            "provenance": dict(self.provenance),
            "schedule": self.schedule.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Plan":
        """The inverse of `to_dict`.

        Raises:
            ValueError: not a plan, a newer version, missing or misshapen entries, points off the schedule, conditioning
                times out of its trained range, or rows that do not follow from the rest.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"not a plan: its 'format' must be {FORMAT!r}")
        version = values.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise ValueError(f"plan has version {version!r}, this library reads up to {VERSION}: update time-tuner")
        if unknown := values.keys() - set(ENTRIES):
            raise ValueError(f"plan has an unknown entry {min(unknown)!r}; its entries are {', '.join(ENTRIES)}")
        if missing := [name for name in NEEDED if values.get(name) is None]:
            raise ValueError(f"plan lacks {', '.join(missing)}")
        for name in ("sampler", "schedule", "provenance"):
            if not isinstance(values.get(name, {}), Mapping):
                raise ValueError(f"{name} of a plan must be a JSON object, got {type(values[name]).__name__}")
        if isinstance(values["tau"], Sized) and len(values["tau"]) > MOST_CALLS:
            raise ValueError(f"plan must have at most {MOST_CALLS} calls, got {len(values['tau'])}")
        sampler, schedule = sampler_from_dict(values["sampler"]), schedule_from_dict(values["schedule"])
        columns: dict[str, Any] = {name: values.get(name) for name in (*COLUMNS, "reuse")}
        if values.get("guided") is not None:
            columns["guided"] = values["guided"] or None  # () alone stands for all calls
        plan = cls(sampler, schedule, **columns, provenance=dict(values.get("provenance", {})))
        if len(plan) != values["calls"]:
            raise ValueError(f"calls of a plan must be the length of its tau, {len(plan)}, got {values['calls']!r}")
        for k, row in enumerate(plan.rows):
            sums = (one for one in (row.next_state, row.corrected, row.guidance) if one is not None)
            if not all(abs(number) <= LARGEST for one in sums for number in one.numbers):
                raise ValueError(
                    f"the arithmetic of call {k} must be finite, which it is not at t = {float(plan.t[k]):.6g} and "
                    f"{float(plan.t[k + 1]):.6g}: the file was edited"
                )
        if "rows" in values and not same_numbers(values["rows"], [row.to_dict() for row in plan.rows]):
            raise ValueError("rows of the plan do not follow from its sampler and points: the file was edited")
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the file is replaced whole or not at all."""
        write_json(Path(path), self.to_dict())

    @staticmethod
    def save_several(plans: "Sequence[Plan]", path: str | os.PathLike[str]) -> None:
        """Write plans for different numbers of calls into one file; `load(path, calls=)` reads one of them.

        Raises:
            ValueError: there are no plans, or two have the same number of calls.
        """
        calls = sorted(map(len, plans))
        if len(set(calls)) < len(calls) or not calls:
            raise ValueError(f"plans of one file must have different numbers of calls, got {calls or 'none'}")
        write_json(Path(path), [plan.to_dict() for plan in sorted(plans, key=len)])

    @classmethod
    def load_several(cls, path: str | os.PathLike[str]) -> "list[Plan]":
        """All plans of a file, from the fewest calls to the most.

        A safetensors file has plans in its metadata, see `embed`. If there is no such file, a name such as
        "digits/joint-5" is the plan that comes with a bundled model.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a valid plan file; names the file.
        """
        try:
            values = read_values(_found(path))
        except ValueError as error:
            raise ValueError(f"{path} is not a plan file: {one_line(error)}") from None
        return cls._several(values, path)

    @classmethod
    def _several(cls, values: Any, path: Any) -> "list[Plan]":
        """The plans of the values in a file, from the fewest calls to the most."""
        several = values if isinstance(values, list) else [values]
        taus = [entry.get("tau") for entry in several if isinstance(entry, Mapping)]
        try:
            if (total := sum(len(tau) for tau in taus if isinstance(tau, Sized))) > MOST_CALLS:
                raise ValueError(f"plans of one file must have at most {MOST_CALLS} calls in all, got {total}")
            plans = [cls.from_dict(entry) for entry in several]
        except ValueError as error:
            raise ValueError(f"{path}: {one_line(error)}") from None
        if not plans:
            raise ValueError(f"{path} is not a plan file: the list in it is empty")
        calls = sorted(map(len, plans))
        if len(set(calls)) < len(calls):
            raise ValueError(f"{path} has two plans for the same number of calls, got calls = {calls}: remove one")
        return sorted(plans, key=len)

    @classmethod
    def load(cls, path: str | os.PathLike[str], calls: int | None = None) -> "Plan":
        """The plan of a file; if the file has several, the one with this number of calls. See `load_several`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a valid plan file, or has no plan for this number of calls; names the file.
        """
        return cls._with_calls(cls.load_several(path), path, calls)

    @classmethod
    def _with_calls(cls, several: "Sequence[Plan]", path: Any, calls: int | None) -> "Plan":
        plans = {len(plan): plan for plan in several}
        if calls is None and len(plans) == 1:
            (calls,) = plans
        if calls not in plans:
            raise ValueError(
                f"{path} has plans for calls = {list(plans)}, got calls={calls}: choose one of them with calls=, "
                "--calls, or file.json:CALLS where runs are compared"
            )
        return plans[calls]

    def push_to_hub(self, repo_id: str, *others: "Plan", private: bool | None = None) -> str:
        """Write the plan, and others for other numbers of calls, with a card into a repository of models on the Hub.

        The card has a picture, tables of the plans and of their distances, and the provenance. The plans of the
        repository are replaced.

        Args:
            repo_id: "user/name"; a repository that does not exist is made.
            *others: plans for other numbers of calls.
            private: whether a new repository is private; by default as the account has it.

        Returns:
            The address of the repository.

        Raises:
            ValueError: huggingface_hub is missing, another kind of name, or two plans for the same number of calls.
        """
        return push([self, *others], repo_id, private)

    @classmethod
    def from_hub(cls, source: str | os.PathLike[str], calls: int | None = None) -> "Plan":
        """The plan of a repository on the Hub, of a folder, of a file, or of an http address.

        Args:
            source: "user/name" or "user/name@revision"; a folder with a `plan.json`; or the address or path of a plan
                file. What exists as a path is not looked for on the Hub.
            calls: which plan, of several.

        Raises:
            OSError: it cannot be reached or read.
            ValueError: it is no valid plan file or too large, or has no plan for this number of calls.
        """
        try:
            values = fetch(source)
        except ValueError as error:
            raise ValueError(f"{source}: {one_line(error)}") from None
        return cls._with_calls(cls._several(values, source), source, calls)

    def embed(self, path: str | os.PathLike[str], *others: "Plan") -> None:
        """Write the plan, and others for other numbers of calls, into the metadata of a safetensors file, such as the
        weights of its network; `Plan.load(path)` reads it there.

        The tensors stay as they are, and the file is replaced whole or not at all.

        Raises:
            OSError: the file cannot be read or written.
            ValueError: it is no safetensors file.
        """
        embed([self, *others], path)


BUNDLED = Path(__file__).parents[1] / "digits" / "assets" / "plans"


def bundled_plans() -> list[str]:
    """The names of the plans that come with the bundled models, such as "digits/joint-5"."""
    return sorted(file.relative_to(BUNDLED).with_suffix("").as_posix() for file in BUNDLED.rglob("*.json"))


def _found(path: str | os.PathLike[str]) -> Path:
    """The file itself, or the plan of that name, with ".json" or without, that comes with a bundled model."""
    bundled = BUNDLED / f"{os.fspath(path).removesuffix('.json')}.json"
    if Path(path).is_dir():
        inside = os.fspath(Path(path) / "plan.json")
        raise IsADirectoryError(f"{os.fspath(path)!r} is a directory: name the plan file in it, such as {inside!r}")
    if Path(path).exists():
        return Path(path)
    if bundled.is_file() and BUNDLED in bundled.resolve().parents:
        return bundled
    names = ", ".join(bundled_plans())
    raise FileNotFoundError(f"there is no file {os.fspath(path)!r}; plans that come with a model: {names}")


def _range(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest conditioning time at times t: the trained range, and t itself where it lies beyond."""
    t = t.detach()
    return t.clamp(max=schedule.t_min), t.clamp(min=schedule.T)


def _in_range(schedule: NoiseSchedule, tau: Tensor, t: Tensor) -> Tensor:
    """tau (K,) moved into `_range`. On a bound its derivative is 1, that of the way inside: versions of torch differ
    there in that of `clamp`."""
    low, high = _range(schedule, t)
    return torch.where((tau >= low) & (tau <= high), tau, tau.clamp(low, high))


def _flags(guided: Any, tau: Tensor) -> tuple[bool, ...]:
    """The flags of each call; all of them by default, ()."""
    calls, flags = tau.numel(), guided
    if isinstance(guided, Sequence) and not len(guided):
        return (True,) * calls
    if isinstance(guided, Tensor):
        flags = guided.tolist()
    if not isinstance(flags, Sequence) or len(flags) != calls or not all(isinstance(one, bool) for one in flags):
        raise ValueError(f"guided of a plan must be true or false for each of {calls} calls, got {guided!r}")
    return tuple(flags)


def _validate(plan: Plan) -> None:
    """Raise a ValueError unless the columns fit each other, lie on the schedule and hold only trained times."""
    calls = plan.tau.numel()
    if plan.tau.dim() != 1 or calls < 1:
        raise ValueError(f"tau of a plan must have shape (K,) with K >= 1, got {tuple(plan.tau.shape)}")
    for name in ("t", "alpha", "sigma"):
        if (shape := tuple(getattr(plan, name).shape)) != (calls + 1,):
            raise ValueError(f"{name} of a plan with {calls} calls must have shape ({calls + 1},), got {shape}")
    if (plan.tau <= 0).any():
        raise ValueError(f"tau of a plan must be positive, got {float(plan.tau.min())}")
    c = plan.corrections
    if c is not None and (c.shape != (calls, calls) or c.detach().triu().any()):
        raise ValueError(f"corrections must be ({calls}, {calls}) and strictly lower triangular, got {tuple(c.shape)}")
    if plan.reuse is not None:
        _check_reuse(plan.reuse.detach(), plan.guided)
    checked_ends(plan.step_times.detach(), plan.schedule)
    if (plan.t.diff() > 0).any() or (plan.sigma[:-1] <= 0).any():
        raise ValueError("t of a plan must not rise, and the network is never called at sigma = 0")
    point = plan.schedule.at(plan.t.detach())
    for name in ("alpha", "sigma"):
        if not torch.allclose(getattr(point, name), getattr(plan, name).detach(), rtol=1e-6, atol=1e-9):
            own = repr(plan.schedule)
            raise ValueError(f"{name} of a plan does not lie on its noise schedule {own}: the file was edited")
    tau, schedule = plan.tau.detach(), plan.schedule
    least, greatest = tau.aminmax()
    if least >= schedule.t_min and greatest <= schedule.T:
        return
    low, high = _range(schedule, plan.t[:-1])
    outside = (tau < low - 1e-9) | (tau > high + 1e-9)
    # What a network of half precision receives is rounded, level 999 to 1000.
    receives, low, high = (schedule.network_time(t) for t in (tau, low, high))
    outside &= (receives < low - ROUNDING * low.abs()) | (receives > high + ROUNDING * high.abs())
    if outside.any():
        k = int(outside.nonzero()[0])
        raise ValueError(
            f"tau of call {k} must lie in the range that the network was trained at, [{schedule.t_min:.6g}, "
            f"{schedule.T:.6g}], got {float(tau[k]):.6g}: tune the plan again, or set tau with Plan.with_ratios, which "
            "keeps it in the range"
        )


def _check_reuse(reuse: Tensor, guided: Sequence[bool]) -> None:
    """Raise a ValueError unless calls without guidance alone reuse that of earlier calls with it."""
    calls, has = len(guided), torch.tensor(guided)
    if reuse.shape != (calls, calls) or reuse.triu().any():
        raise ValueError(f"reuse must be ({calls}, {calls}) and strictly lower triangular, got {tuple(reuse.shape)}")
    if reuse[has].any():
        k = next(k for k in range(calls) if guided[k] and reuse[k].any())
        raise ValueError(f"reuse of call {k} must be 0, for the call has its own guidance: leave it out of guided")
    if reuse[:, ~has].any():
        j = next(j for j in range(calls) if not guided[j] and reuse[:, j].any())
        raise ValueError(f"reuse must be 0 in column {j}, for call {j} has no guidance that can be used again")

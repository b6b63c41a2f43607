r"""The gradient and the curvature of joint tuning by differences between runs, with forward calls only.

With the derivative J_i of the end of pair i by the parameters, the gradient of the mean distance is the mean of
J_i^T q_i, and its curvature is the mean of J_i^T J_i |q_i|^2 / d_i, see `TeacherLoss.gradients`. Here each column of
J_i is the difference between the end of a run in which one number is moved and the end of the run itself. Both runs
are the same until the first call that the number has an effect on, so that only the calls from there on are made: none
for a correction of the last call. A plan of K calls has K (K + 1) / 2 calls to make again for tau, K (K - 1) / 2 for
the step times and K (K - 1) (K - 2) / 6 for the corrections: at 5 calls 35, which is 7 runs for 19 numbers. A number
with which call k reuses guidance has K - k calls.

The networks may be compiled, quantised or remote, and the memory is that of one call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._distributed import gathered, rank, share, summed
from ..._dtypes import like, squared_norms, wide
from ...models.base import Model, check_prediction, for_rows
from ...plans.plan import Plan
from ...sampling import predict
from .loss import FLOOR, Gradients, TeacherLoss, robust
from .parameters import Parameters

STEP = 0.05  # of a parameter, between the two runs of a difference
NOTHING = 1e-10  # of the largest derivative of the numbers of a run, below which there is none
PROBES = 8  # differences of a distance of the user's, in random directions, for the mean square of its slope
PROBE = 0.05  # of the root mean square of x - y, between the two ends of such a difference
MOST_BYTES = 2**29  # of the derivatives of ends that are in memory together


@torch.no_grad()
def gradients_by_differences(loss: TeacherLoss, parameters: Parameters, v: Tensor, rows: Tensor) -> Gradients:
    """The mean distance over some of the pairs at v, its gradient and its curvature, of forward calls."""
    plan, numbers, derivative = parameters.linear(v)
    # 1. The directions in which v is moved, and the numbers of the run with it.
    directions = parameters.directions(v)
    moves = derivative @ directions
    moves[moves.abs() <= NOTHING * moves.abs().max()] = 0
    # 2. The distances, their slopes J_i^T q_i, and J_i^T J_i |q_i|^2 / d_i, of as many pairs as there is memory for.
    at_once = max(1, MOST_BYTES // (4 * max(1, len(v)) * loss.pairs.x[0].numel()))
    parts = [_sums(loss, plan, numbers, parameters.pairs, moves, some) for some in rows.split(at_once)]
    distance, slope, curvature = (sum(part[i] for part in parts) / len(rows) for i in range(3))
    # 3. They are by the directions so far: J_v = J directions^-1.
    back = torch.linalg.inv(directions)
    return Gradients(float(distance), back.T @ slope, back.T @ curvature @ back)


def _sums(
    loss: TeacherLoss, plan: Plan, numbers: Tensor, places: Tensor, moves: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over these pairs of the distance (), of its slopes (P,) and of its curvatures (P, P); of the pairs of
    all processes, where several share the work."""
    count, own = len(rows), share(len(rows))
    rows = rows[own]
    model, pairs = for_rows(loss.model, rows), loss.pairs[rows]
    run = _Run(model, plan, numbers, places, pairs.x)
    ends, steps = list[Tensor](), list[float]()
    for move in moves.T:
        step = STEP if run.fits(STEP * move) else -STEP
        ends.append(run.end_with(step * move))
        steps.append(step)
    each = torch.stack([(wide(end) - wide(run.end)) / step for end, step in zip(ends, steps, strict=True)], 1).flatten(
        2
    )
    gram = (each @ each.mT).cpu().double()
    distances = loss.distances(run.end, pairs.y)
    if loss.distance is robust:
        q = (wide(run.end) - wide(pairs.y)).flatten(1).to(each.dtype) / like(distances, each)[:, None]
        slopes, steepness = (each @ q[:, :, None])[:, :, 0].cpu().double(), squared_norms(q).cpu().double()
    else:
        changes = [(loss.distances(end, pairs.y) - distances) / h for end, h in zip(ends, steps, strict=True)]
        slopes = torch.stack(changes, -1).expand(len(rows), -1)
        steepness = _steepness(loss, run.end, pairs.y, count)
    whole = loss.of_all(distances, len(rows), count).expand(count)
    least = FLOOR * float(whole.abs().mean()) + 1e-300
    weights = steepness / distances.abs().expand(len(rows)).clamp(min=least) * (rank() < count)
    return whole.sum(), gathered(slopes, count).sum(0), summed(torch.einsum("b,bpq->pq", weights, gram))


def _steepness(loss: TeacherLoss, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The square norm of the slope q of a distance by the ends, (B,), from differences in random directions u: q^T u
    has the mean square |q|^2. The ends are the share of this process among `count`."""

    def of_each(x: Tensor) -> Tensor:
        distances = loss.distances(x, y)  # or their mean, which is that of a pair where there is one alone
        pairs = zip(x.split(1), y.split(1), strict=True)
        return distances if distances.dim() else torch.stack([loss.distances(*pair).mean() for pair in pairs])

    apart = squared_norms(wide(x) - wide(y)) / x[0].numel()
    size = (PROBE * apart.sqrt()).clamp(min=1e-6)
    sizes = size.view(-1, *(1,) * (x.dim() - 1))
    generator, found = torch.Generator().manual_seed(0), list[Tensor]()
    for _ in range(PROBES):
        drawn = torch.randn(count, *x.shape[1:], generator=generator)[share(count)]
        u = (sizes * drawn.to(sizes)).to(x)
        found.append((of_each(x + u) - of_each(x - u)) / (2 * size.cpu().double()))
    return torch.stack(found).square().mean(0)


class _Run:
    """The runs of a plan from noise (B, ...), and runs in which the numbers of `Parameters.linear` are others.

    Attributes:
        end: the ends, (B, ...).
    """

    def __init__(self, model: Model, plan: Plan, numbers: Tensor, places: Tensor, noise: Tensor) -> None:
        self.model, self.plan, self.numbers = model, plan, numbers
        self.places: list[list[int]] = places.T.tolist()
        self.terms, self.added = [plan.initial_state(noise)], dict[int, Tensor]()
        self.end = self._continued(numbers, torch.zeros_like(numbers[-2 * len(plan) :]), self.terms, self.added)

    def fits(self, move: Tensor) -> bool:
        """Whether the conditioning times are in the trained range after this move of the numbers."""
        calls = len(self.plan)
        log_tau = move[-2 * calls : -calls]
        return bool((self.plan.tau * log_tau.exp() <= self.plan.schedule.T).all())

    def end_with(self, move: Tensor) -> Tensor:
        """The ends with other numbers, by the calls from the first that they have an effect on."""
        calls = len(self.plan)
        (*weights, reused), times = self._split(move), move[-2 * calls :].view(2, calls)
        other = {k for (k, _), number in zip(self.places, reused.tolist(), strict=True) if number}
        changed = [
            bool(times[:, k].any()) or k in other or (k > 0 and bool(weights[k - 1].any())) for k in range(calls)
        ]
        first = changed.index(True) if True in changed else calls
        added = {j: one for j, one in self.added.items() if j < first}
        return self._continued(self.numbers + move, times, self.terms[: 1 + first], added)

    def _split(self, numbers: Tensor) -> Sequence[Tensor]:
        """The weights in the state after each call, and those with which guidance is reused."""
        return list(numbers[: -2 * len(self.plan)].split([*range(2, len(self.plan) + 2), len(self.places)]))

    def _continued(self, numbers: Tensor, log_times: Tensor, terms: list[Tensor], added: dict[int, Tensor]) -> Tensor:
        """The ends of runs whose first terms, the noise and predictions, are known, and what guidance has added to
        these; the others are added to both."""
        calls, plan, dtype = len(self.plan), self.plan, terms[0].dtype
        (*weights, reused), factors = self._split(numbers), log_times.view(2, calls).exp()
        reuse = list(zip(self.places, reused.tolist(), strict=True))
        for k in range(len(terms) - 1, calls):
            x = self._state(weights[k - 1], terms) if k else terms[0]
            tau, t = plan.tau[k] * factors[0, k], plan.t[k] * factors[1, k]
            if all(plan.guided):
                terms.append(predict(self.model, plan, k, x, tau, t).to(dtype))
                continue
            prediction, more = self.model.parts(plan.rows[k].predicts, x, t, tau, plan.guided[k])
            prediction = check_prediction(prediction, x, f" at call {k}").to(dtype)
            if more is None:
                terms.append(sum((weight * added[j] for (at, j), weight in reuse if at == k), prediction))
            else:
                added[k] = check_prediction(more, x, f" at call {k}").to(dtype)
                terms.append(prediction + added[k])
        return self._state(weights[-1], terms)

    @staticmethod
    def _state(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
        state = torch.zeros_like(terms[0])
        for weight, term in zip(weights.tolist(), terms, strict=False):
            state.add_(term, alpha=weight)
        return state

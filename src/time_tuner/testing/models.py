"""Checks of models."""

import torch
from torch import Tensor

from ..models.base import Model, for_rows
from ..schedules import as_float64
from ._assertions import close, holds, seeded


def check_model(model: Model, x: Tensor | None = None, precision: float = 1e-5) -> None:
    """Check that a model does what every model of the library does.

    Its predictions have the shape, dtype and device of the state. They do not depend on the batch: a part of it under
    `select` predicts what the whole does. The data that it predicts belongs to the noise that it predicts. tau is t by
    default. `rounded_times` are those that it receives: whole levels, if it takes those alone.

    Args:
        model: the model.
        x: states (B, ...) with B >= 4, and a multiple of the number of conditions; seeded noise by default, where the
            model knows its shape.
        precision: relative to 1, of equal predictions.

    Raises:
        AssertionError: names what does not hold.
    """
    holds(isinstance(model, Model), f"a model is a Model, got {type(model).__name__}: see as_model")
    if x is None:
        if model.shape is None:
            raise ValueError("x= is needed: the model does not know the shape of a sample")
        count = model.num_conditions or 4
        x = seeded(count * -(-4 // count), *model.shape).float()
    t = as_float64(model.schedule.t_min + 0.6 * (model.schedule.T - model.schedule.t_min))
    rows = torch.arange(len(x))
    whole = model if model.num_conditions in (None, len(x)) else for_rows(model, rows)
    for quantity in ("eps", "x0"):

        def predict(part: Model, x: Tensor, tau: Tensor | None = None, quantity: str = quantity) -> Tensor:
            with torch.no_grad():
                return part.predict(quantity, x, t, tau)

        all_rows = predict(whole, x)
        same = (all_rows.shape, all_rows.dtype, all_rows.device) == (x.shape, x.dtype, x.device)
        holds(same, f"the {quantity} of a model has the shape, dtype and device of the state")
        holds(bool(all_rows.isfinite().all()), f"the {quantity} of a model is finite")
        tolerance = {"rtol": precision, "atol": precision}
        close(predict(whole, x, t), all_rows, "tau is t by default", **tolerance)
        some = rows[1::2]
        for name, part in (("selected rows", for_rows(model, some)), ("rows of selected rows", whole.select(some))):
            close(predict(part, x[some]), all_rows[some], f"{name} have the {quantity} of the whole", **tolerance)
        alone = torch.cat([predict(whole.select(rows[i : i + 1]), x[i : i + 1]) for i in rows.tolist()])
        close(alone, all_rows, f"the {quantity} of a sample does not depend on its batch", **tolerance)
    p = model.schedule.at(t)
    if p.alpha > 0:
        with torch.no_grad():
            state = p.alpha * whole.x0(x, t) + p.sigma * whole(x, t)
        scale = 10 * precision * float(p.sigma / p.alpha + p.alpha / p.sigma)
        close(state, x, "x is alpha x0 + sigma eps of the model's own predictions", rtol=scale, atol=scale)
    rounded = model.rounded_times(t)
    holds(rounded.shape == t.shape, "rounded_times keeps the shape of the times")
    close(model.rounded_times(rounded), rounded, "rounded times are not rounded further", rtol=1e-9, atol=1e-12)
    if model.whole_levels:
        level = model.schedule.network_time(rounded)
        close(level, level.round(), "a model of whole levels rounds times to whole network times", rtol=0, atol=1e-9)

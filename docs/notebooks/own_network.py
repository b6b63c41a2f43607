# %% [markdown]
# # Your own network: heartbeats instead of pictures
#
# Nothing in this library knows that your data are pictures. In this notebook we
# train a small diffusion model of *time series*, from nothing to a finished
# network in less than half a minute, and make it sample in four network calls.
# These are the five steps that you need for a network of your own:
#
# 1. train it, or load it: this library does not care how,
# 2. wrap it: what does it predict, and with which noise schedule was it
#    trained?
# 3. tune a plan,
# 4. evaluate the plan against untuned samplers, with your own data and your own
#    measure,
# 5. save it.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from time_tuner import (
    Joint,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    evaluate,
    make_plan,
    model_wrapper,
    sample,
    tune,
)
from time_tuner.testing import check_model

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"

# %% tags=["parameters"]
STEPS = 2000  # of training
PAIRS, ITERATIONS = 64, 60  # of tuning
MEASURED = 400  # series that nothing was tuned on

# %% [markdown]
# ## 1. The data and the network
#
# A series has 64 numbers. It looks a little like a heartbeat: a sharp peak, a
# dip, a flat wave, and again. The place of the peaks, their height and the
# height of the wave differ from series to series.

# %%
LENGTH, PERIOD = 64, 21


def heartbeats(count, seed):
    """Series (count, 64) of mean 0 and standard deviation near 1."""
    draws = torch.Generator().manual_seed(seed)
    phase, height, wave = torch.rand(3, count, 1, generator=draws)
    beat = (torch.arange(LENGTH) / PERIOD + phase) % 1

    def bump(place, width):
        return torch.exp(-(((beat - place) / width) ** 2))

    peak = 3.5 * bump(0.3, 0.06) - 1.2 * bump(0.42, 0.05)
    return (0.7 + 0.6 * height) * peak + 1.5 * wave * bump(0.7, 0.12) - 0.4


data = heartbeats(20_000, seed=0)
print(f"mean {data.mean():.2f}, standard deviation {data.std():.2f}")


# %%
def draw(rows, title):
    """Five series of each kind, side by side."""
    fig, panels = plt.subplots(
        len(rows),
        5,
        figsize=(7.5, 0.9 * len(rows) + 0.7),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    fig.suptitle(title)
    for line, (name, series) in zip(panels, rows.items(), strict=True):
        for axes, one in zip(line, series, strict=False):
            axes.plot(one, color=BLUE, linewidth=1)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes in panels[-1]:
        axes.set_xlabel("time")
    fig.tight_layout()


draw({"data": data}, "Five of the training series")

# %% [markdown]
# *Figure 1. The data: each panel is one series of 64 numbers.*
#
# The network is a small multilayer perceptron. It receives noisy series and
# their times, and learns to predict v = alpha eps - sigma x_0, a mixture of the
# noise and the data. The times are continuous, from 0 (data) to 1 (noise), and
# the *noise schedule* gives alpha and sigma at each time. We take the cosine
# schedule.


# %%
class Network(nn.Module):
    """network(x, t): v in series x (B, 64) at times t (B,)."""

    def __init__(self, width=160, blocks=4):
        super().__init__()
        self.inlet = nn.Linear(LENGTH, width)
        self.time = nn.Sequential(
            nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, width),
            )
            for _ in range(blocks)
        )
        self.outlet = nn.Linear(width, LENGTH)
        self.register_buffer(
            "frequencies", torch.pi * 2.0 ** torch.linspace(-1, 7, 16)
        )

    def forward(self, x, t):
        angles = t[:, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.inlet(x)
        for block in self.blocks:
            h = h + block(h + time)
        return self.outlet(h)


schedule = NoiseScheduleVP("cosine")


def train(steps, batch=128):
    """A trained network, and its loss in each step."""
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    falling = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps
    )
    losses = []
    for _ in range(steps):
        x0, eps = (
            data[torch.randint(len(data), (batch,))],
            torch.randn(batch, LENGTH),
        )
        t = schedule.t_min + (schedule.T - schedule.t_min) * torch.rand(batch)
        point = schedule.at(t)
        alpha, sigma = (
            point.alpha.float()[:, None],
            point.sigma.float()[:, None],
        )
        loss = (
            (network(alpha * x0 + sigma * eps, t) - (alpha * eps - sigma * x0))
            .square()
            .mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        losses.append(loss.item())
    return network.eval().requires_grad_(False), losses


network, losses = train(STEPS)

# %%
fig, axes = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
fig.suptitle("Training")
every = max(1, len(losses) // 60)
means = (
    torch.tensor(losses[: len(losses) // every * every])
    .reshape(-1, every)
    .mean(1)
)
axes.semilogy(torch.arange(len(means)) * every, means, color=BLUE)
axes.set(xlabel="training step", ylabel="mean squared error of v")
axes.grid(color="#e4e4e4", which="both")

# %% [markdown]
# *Figure 2. The loss of the training, in means over neighbouring steps.*
#
# ## 2. Wrap the network
#
# Two facts turn a network into a *model*: what it predicts (`model_type`), and
# its noise schedule. `shape` is that of one sample. A wrong fact gives wrong
# samples without an error, so there is a check of everything that can be
# checked without knowing your data.

# %%
model = model_wrapper(network, schedule, model_type="v", shape=(LENGTH,)).bind()
check_model(model)
print("the model passes the checks")

# %% [markdown]
# Let us see what it can do. The noise of each sample comes from its own seed,
# so that every run below starts from the same noise. A run of 100 calls is the
# *reference*.

# %%
x_T = SeededNoise(range(5000, 5000 + MEASURED))(torch.empty(MEASURED, LENGTH))


def run(plan):
    """The series (n, 64) that a plan draws."""
    return sample(model, plan, plan.initial_state(x_T))


unseen = heartbeats(MEASURED, seed=1)  # the network was not trained on these
reference = run(make_plan("unipc(order=3)", schedule, calls=100))
untuned = run(make_plan("ddim", schedule, calls=4))
draw(
    {"data": unseen, "100 calls": reference, "4 calls": untuned},
    "Data, samples in many calls, and samples in few calls",
)

# %% [markdown]
# *Figure 3. Top: series that the network has never seen. Middle: samples in 100
# calls. Bottom: DDIM in 4 calls, from the same noise as the row above.*
#
# ## 3. Tune a plan
#
# `tune` finds the best plan of four calls: it ranks the untuned plans of all
# samplers, starts from the best one, and adjusts the times of the steps, the
# times that the network receives, and the weights of the predictions in each
# step. It needs no data: the run of many steps shows where the four calls
# should end.

# %%
plan = tune(
    model, calls=4, tuner=Joint(pairs=PAIRS, iterations=ITERATIONS), samples=64
)
print("untuned plans:", plan.provenance.get("untuned_plans"))
print(
    "distances:",
    {
        name: round(value, 2)
        for name, value in plan.provenance["distance"].items()
    },
)

# %% [markdown]
# The provenance of a plan records how it was made. Here it has the best of the
# untuned plans, from which tuning started, and the mean distance of samples to
# the reference, on noise that nothing was tuned on: "best untuned" before,
# "tuned" after.

# %%
tuned = run(plan)
draw(
    {"100 calls": reference, "4 calls": untuned, "4, tuned": tuned},
    "Before and after tuning",
)

# %% [markdown]
# *Figure 4. Top: 100 calls. Middle: four calls of DDIM. Bottom: four calls of
# the tuned plan. All start from the same noise.*
#
# ## 4. Evaluate it
#
# Two questions remain. Does the plan draw *what the network would draw* in many
# calls? That is the distance to the reference, sample by sample. And do its
# samples look *like the data*? That is a distance between two sets, for which
# we have series that neither training nor tuning has seen. `evaluate` answers
# both, beside untuned samplers in as many calls and in more:

# %%
report = evaluate(
    model,
    {"tuned": plan},
    ["ddim", "dpmpp", "unipc(order=3)"],
    calls=[4, 8],
    data=unseen,
    samples=MEASURED,
    budget=None,
    name="heartbeats",
)
print(report)

# %% [markdown]
# The first column is the distance to the reference, where the tuned plan is far
# ahead of all other runs of four calls. The others compare the samples with the
# data. There, the tuned plan has the values of the reference, or nearly so: it
# draws what the network draws in a hundred calls, with its virtues and faults.
#
# Such numbers are hard to imagine. So measure what matters in your field, too.
# Here it is the height of the peaks: in blurred series they are too low.

# %%
kinds = {
    "data": (unseen, GREY),
    "100 calls": (reference, GREEN),
    "4 calls": (untuned, ORANGE),
    "4 calls, tuned": (tuned, BLUE),
}
fig, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
fig.suptitle("The height of the highest peak in each series")
for name, (series, colour) in kinds.items():
    heights = series.amax(1).sort().values
    axes.plot(
        heights, torch.linspace(0, 1, len(heights)), color=colour, label=name
    )
axes.set(xlabel="height", ylabel="share of series below")
axes.grid(color="#e4e4e4")
axes.legend(frameon=False)
for name, (series, _) in kinds.items():
    print(f"{name:15} mean height {series.amax(1).mean():.2f}")

# %% [markdown]
# *Figure 5. The heights in increasing order. The nearer a line is to that of
# the data (grey), the better. What the network itself has not learnt, tuning
# cannot add: the tuned plan follows the line of 100 calls.*
#
# ## 5. Keep it
#
# The plan is a text file. With it and the network, anybody draws the same
# samples.

# %%
plan.save("heartbeats-4.json")
again = Plan.load("heartbeats-4.json")
print("the same samples:", torch.equal(run(again), tuned))

# %% [markdown]
# ## What to keep
#
# - Any network can be tuned that predicts noise, data, v, a score or a
#   velocity. [Tune a network](../how-to/tune-a-network.md) has the arguments
#   for yours: conditions, guidance, whole levels.
# - `tune(model, calls=4, budget="2m")` is all that is usually needed. Here the
#   amount of work was set by hand, so that the notebook takes less than a
#   minute.
# - Measure twice: against many calls, and against data. [Measure a
#   plan](../how-to/measure.md) shows more.

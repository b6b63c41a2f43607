"""The published interface, tuning: what `optimize_timesteps` finds, and what it takes."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import seeded
from published import (
    ANY,
    DISCRETE,
    LINEAR,
    NONE,
    SCALE,
    THREE,
    assert_optimal,
    by_hand,
    classifier,
    ddim_step,
    euler,
    exact_end,
    guidances,
    images,
    loader,
    network,
    noting_first,
    recording,
    strategies,
    types,
    wrapped,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from time_tuner import SAMPLERS, SeededNoise, TimeTuner, model_wrapper
from time_tuner.paper import interface

# On data like these the published loss does harm as often as good, and the tuner warns; the warning is tested apart.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the tuned timesteps are the optimum:UserWarning"),
    pytest.mark.usefixtures("short_runs"),
]

# --- tuning ---


@strategies
@types
def test_the_ratios_minimise_the_published_loss(model_type: str, tune_type: str) -> None:
    net, shown = noting_first(network(DISCRETE, model_type))
    tuner, data = TimeTuner(model_wrapper(net, DISCRETE, model_type), DISCRETE), loader()
    ratios = tuner.optimize_timesteps(data, tuner.ddim_step_fn, num_steps=4, tune_type=tune_type)
    eps = by_hand(DISCRETE, model_type)
    step = lambda x, t, s, t_ratio: ddim_step(DISCRETE, eps, x, t, s, t_ratio)  # noqa: E731
    assert_optimal(ratios, tune_type, step, eps, DISCRETE, images(data), shown[0])
    assert (ratios[:-1] - 1).abs().max() > 0.05


@strategies
@guidances
def test_the_ratios_minimise_it_under_guidance(guidance: str, tune_type: str) -> None:
    net, shown = noting_first(network(DISCRETE))
    model_fn = model_wrapper(
        net, DISCRETE, guidance_type=guidance, guidance_scale=SCALE, classifier_fn=classifier(DISCRETE)
    )
    tuner, data = TimeTuner(model_fn, DISCRETE), loader()
    ratios = tuner.optimize_timesteps(
        data, tuner.ddim_step_fn, num_steps=4, tune_type=tune_type, eta=0, uncond_condition=torch.tensor([NONE])
    )
    eps = by_hand(DISCRETE, "noise", guidance, torch.cat([batch["label"] for batch in data]))
    step = lambda x, t, s, t_ratio: ddim_step(DISCRETE, eps, x, t, s, t_ratio)  # noqa: E731
    assert_optimal(ratios, tune_type, step, eps, DISCRETE, images(data), shown[0][:128])


@strategies
def test_adam_and_the_search_find_the_same_ratios(tune_type: str) -> None:
    data = [{"image": THREE.sample(64, seed=i)} for i in range(60)]
    tuner = TimeTuner(THREE.eps(DISCRETE), DISCRETE)
    searched = tuner.optimize_timesteps(data, num_steps=6, tune_type=tune_type)
    trained = tuner.optimize_timesteps(data, num_steps=6, tune_type=tune_type, lr=0.02, total_iters=60)
    assert (searched[:3] - 1).abs().min() > 0.05
    # Further on the loss is so flat that Adam ends here or there.
    torch.testing.assert_close(trained[:3], searched[:3], rtol=0, atol=0.04)


class Counting:
    """A loader that remembers how many batches it gave."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches, self.count = batches, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            self.count += 1
            yield batch


@pytest.mark.parametrize(
    ("options", "adam"),
    [({}, 0), ({"lr": 0.01, "total_iters": 5}, 5), ({"total_iters": 5}, 5), ({"lr": 0.01}, 500)],
    ids=["neither", "both", "total_iters", "lr"],
)
@pytest.mark.filterwarnings("ignore:data_loader has:UserWarning")
def test_lr_or_total_iters_select_the_published_optimiser(options: dict[str, Any], adam: int) -> None:
    modes: list[bool] = []
    model = ANY.eps(DISCRETE)
    model_fn = lambda x, t, tau: (modes.append(torch.is_grad_enabled()), model(x, t, tau))[1]  # noqa: E731
    data = Counting(loader(50, 4))
    ratios = TimeTuner(model_fn, DISCRETE).optimize_timesteps(data, num_steps=3, samples=4, **options)
    assert data.count == 1 + 2 * adam  # one to judge on, and a fresh one at every iteration
    assert any(modes) == bool(adam)  # the search goes forward only
    if adam == 5:
        # Adam's first steps are of the length of the learning rate, whatever the gradient's.
        assert (ratios[:-1] - 1).abs().max() <= 5.01 * options.get("lr", 2e-3)
        assert (ratios[:-1] != 1).all()


def test_the_same_seed_gives_the_same_ratios() -> None:
    tuner = TimeTuner(ANY.eps(DISCRETE), DISCRETE)
    for options in ({}, {"total_iters": 3}):
        runs = [tuner.optimize_timesteps(loader(), num_steps=3, seed=seed, **options) for seed in (0, 0, 1)]
        assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_tuned(name: str) -> None:
    tuner = TimeTuner(ANY.eps(LINEAR), LINEAR)
    grid = [0.9, 0.6, 0.3, 0.1]
    plan = tuner.plan(timesteps=grid, sampler=name)
    ratios = tuner.optimize_timesteps(loader(), tuner.step_fn(name), timesteps=grid)
    assert ratios.shape == (len(plan),) and ratios[-1] == 1 and (ratios[:-1] != 1).any()
    tuned = tuner.plan(timesteps=grid, sampler=name, t_ratios=ratios)
    end = tuner.sample(seeded(6, 2), name, timesteps=grid, t_ratios=ratios, noise=SeededNoise(1))
    assert torch.equal(end, tuner.sample(seeded(6, 2), tuned.sampler, t_ratios=tuned, noise=SeededNoise(1)))


@strategies
def test_a_tuned_run_is_nearer_to_the_exact_one(tune_type: str) -> None:
    tuner, x = TimeTuner(THREE.eps(DISCRETE), DISCRETE), seeded(200, 2, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has nothing to object
        ratios = tuner.optimize_timesteps([{"image": THREE.sample(256)}], num_steps=5, tune_type=tune_type)
    tuned, plain = (tuner.ddim_sample(x, num_steps=5, t_ratios=r) for r in (ratios, None))
    exact = exact_end(THREE.eps(DISCRETE), x)
    assert (tuned - exact).norm(dim=1).mean() < 0.8 * (plain - exact).norm(dim=1).mean()


@pytest.mark.parametrize("own_step", [False, True], ids=["ddim", "user"])
def test_it_warns_where_the_tuned_run_is_worse(own_step: bool) -> None:
    """On ten steps the optimum of the published loss runs off to ratios that do harm."""
    tuner, x = TimeTuner(ANY.eps(DISCRETE), DISCRETE), seeded(200, 2, seed=5)
    step = euler(ANY.eps(DISCRETE), DISCRETE) if own_step else tuner.ddim_step_fn
    with pytest.warns(UserWarning, match="worse than untuned ones: on held-out noise they end .*guard=True") as caught:
        ratios = tuner.optimize_timesteps(loader(), step, num_steps=10)
    assert len(caught) == 1 and caught[0].filename == __file__
    exact = exact_end(ANY.eps(DISCRETE), x)
    tuned, plain = (tuner.ddim_sample(x, num_steps=10, t_ratios=r) for r in (ratios, None))
    assert (tuned - exact).norm(dim=1).mean() > (plain - exact).norm(dim=1).mean()


@pytest.mark.parametrize("own_step", [False, True], ids=["ddim", "user"])
@pytest.mark.parametrize("worse", [0.0, 1e-3, 0.5])
def test_it_warns_only_beyond_the_standard_error(monkeypatch: pytest.MonkeyPatch, own_step: bool, worse: float) -> None:
    """Ends that are as far, or farther by chance, need no word."""
    spread = torch.linspace(-1, 1, 64, dtype=torch.float64)
    distances = torch.ones(64).double(), 1 + worse + 0.1 * (spread - spread.mean())
    monkeypatch.setattr(interface, "_distances", lambda run, ratios, batch: distances)
    tuner = TimeTuner(ANY.eps(DISCRETE), DISCRETE)
    step = euler(ANY.eps(DISCRETE), DISCRETE) if own_step else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuner.optimize_timesteps(loader(), step, num_steps=3)
    assert len(caught) == (worse == 0.5)


def energy(x: Tensor, y: Tensor) -> Tensor:
    """The energy distance between two sets."""
    return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()


def test_a_stochastic_run_is_judged_by_its_distribution() -> None:
    """DDPM ends elsewhere than the flow, however good it is: here its tuned run is nearer to it, and yet worse."""
    tuner, x = TimeTuner(THREE.eps(DISCRETE), DISCRETE), seeded(1000, 2, seed=5)
    data = [{"image": THREE.sample(256)}]
    with pytest.warns(UserWarning, match="worse than untuned ones"):
        ratios = tuner.optimize_timesteps(data, tuner.step_fn("ddpm"), num_steps=8)
    plain, tuned = (tuner.sample(x, "ddpm", 8, t_ratios=r, noise=SeededNoise(1)) for r in (None, ratios))
    target, exact = THREE.sample(1000, seed=9), exact_end(THREE.eps(DISCRETE), x)
    assert energy(tuned, target) > 1.5 * energy(plain, target)
    assert (tuned - exact).norm(dim=1).mean() < (plain - exact).norm(dim=1).mean()


def test_sequential_tuning_starts_from_noise_and_parallel_tuning_where_the_run_does() -> None:
    """Sequential states come down from T also where the grid begins later, as published."""
    grids, starts = ([900, 500, 100], [400, 200, 100]), {}
    for tune_type in ("sequential", "parallel"):
        for timesteps in grids:
            model, shown = noting_first(ANY.eps(DISCRETE))
            TimeTuner(model, DISCRETE).optimize_timesteps(loader(), timesteps=timesteps, tune_type=tune_type)
            starts[tune_type, timesteps[0]] = shown[0]
    assert torch.equal(starts["sequential", 900], starts["sequential", 400])
    p, top, x0 = DISCRETE.at(0.401), DISCRETE.at(1.0), images(loader())
    noise = (starts["sequential", 400] - top.alpha * x0) / top.sigma
    torch.testing.assert_close(starts["parallel", 400], p.alpha * x0 + p.sigma * noise)


# --- data ---


class Pictures(Dataset[dict[str, Any]]):
    """A data set as the paper's README describes it: dictionaries with `image` and, if it has any, `label`."""

    def __init__(self, labelled: bool = True) -> None:
        self.labelled, (self.batch,) = labelled, loader(1, 64)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"image": self.batch["image"][index]}
        return item | {"label": int(self.batch["label"][index])} if self.labelled else item


@guidances
@pytest.mark.parametrize("how", [{}, {"total_iters": 4}], ids=["search", "adam"])
def test_a_torch_data_set_is_taken(guidance: str, how: dict[str, int]) -> None:
    tuner, options = TimeTuner(wrapped(DISCRETE, "noise", guidance), DISCRETE), {"num_steps": 3, **how}
    if guidance == "classifier-free":
        options["uncond_condition"] = torch.tensor([NONE])
    got = tuner.optimize_timesteps(DataLoader(Pictures(), batch_size=16), tuner.ddim_step_fn, **options)
    assert got.shape == (3,) and (got[:-1] != 1).all()
    batches = [{name: value[i : i + 16] for name, value in Pictures().batch.items()} for i in range(0, 64, 16)]
    assert torch.equal(got, tuner.optimize_timesteps(batches, tuner.ddim_step_fn, **options))
    unlabelled = DataLoader(Pictures(labelled=False), batch_size=16)
    if guidance == "uncond":
        assert torch.equal(got, tuner.optimize_timesteps(unlabelled, **options))
    else:
        with pytest.raises(ValueError, match=f"guidance_type='{guidance}' needs condition="):
            tuner.optimize_timesteps(unlabelled, **options)


def test_labels_are_of_no_concern_without_guidance() -> None:
    bare, plain = loader(), [{"image": batch["image"]} for batch in loader()]
    for model_fn in (ANY.eps(DISCRETE), wrapped(DISCRETE)):
        tuner = TimeTuner(model_fn, DISCRETE)
        got = tuner.optimize_timesteps(bare, num_steps=3)
        assert torch.equal(got, tuner.optimize_timesteps(plain, num_steps=3))
        # A step function gets no `condition` either.
        step = lambda x, t, s, t_ratio, ddim=tuner.ddim_step_fn: ddim(x, t, s, t_ratio)  # noqa: E731
        own = tuner.optimize_timesteps(bare, step, num_steps=3)
        torch.testing.assert_close(own, got, rtol=0, atol=1e-4)


def test_images_go_through_encode_fn() -> None:
    """Tuning on latents is tuning on what they were encoded to."""
    sizes: list[tuple[int, ...]] = []

    def encode(image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        sizes.append(tuple(image.shape))
        return image[:, :, 0, 0] / 5

    pictures = [{"image": batch["image"][:, :, None, None].expand(-1, -1, 4, 4) * 5} for batch in loader()]
    tuner = TimeTuner(ANY.eps(DISCRETE), DISCRETE)
    for how in ({}, {"total_iters": 3}):
        sizes.clear()
        got = tuner.optimize_timesteps(pictures, encode_fn=encode, num_steps=3, **how)
        torch.testing.assert_close(got, tuner.optimize_timesteps(loader(), num_steps=3, **how), rtol=0, atol=1e-5)
        assert set(sizes) == {(32, 2, 4, 4)}


@pytest.mark.parametrize("own_step", [False, True], ids=["ddim", "user"])
def test_conditions_are_embedded_once_a_run(own_step: bool) -> None:
    """Texts, as in latent diffusion; a network has to see only what they are embedded to."""
    seen: list[Any] = []

    def embed(texts: str | tuple[str, ...]) -> Tensor:
        seen.append(texts)
        return torch.tensor([["left", "right", ""].index(text) for text in ([texts] if texts == "" else texts)])

    model_fn = wrapped(DISCRETE, "noise", "classifier-free", cond_process_fn=embed)
    tuner, plain = TimeTuner(model_fn, DISCRETE), TimeTuner(wrapped(DISCRETE, "noise", "classifier-free"), DISCRETE)
    x, words = seeded(2, 2), ["right", "left"]
    got = tuner.ddim_sample(x, num_steps=5, condition=words, uncond_condition="")
    assert seen == [words, ""]
    classes = {"condition": torch.tensor([1, 0]), "uncond_condition": torch.tensor([NONE])}
    assert torch.equal(got, plain.ddim_sample(x, num_steps=5, **classes))
    words.reverse()  # the same list, with other words in it
    got = tuner.ddim_sample(x, num_steps=5, condition=words, uncond_condition="")
    assert torch.equal(got, plain.ddim_sample(x, num_steps=5, **classes | {"condition": torch.tensor([0, 1])}))

    seen.clear()
    model_fn = wrapped(DISCRETE, "noise", "classifier-free", cond_process_fn=embed)
    tuner, step = TimeTuner(model_fn, DISCRETE), euler(model_fn, DISCRETE) if own_step else None
    texts = [
        {"image": batch["image"], "label": [("left", "right")[c] for c in batch["label"].tolist()]}
        for batch in loader()
    ]
    ratios = tuner.optimize_timesteps(texts, step, num_steps=4, uncond_condition="")
    expected = plain.optimize_timesteps(loader(), num_steps=4, uncond_condition=torch.tensor([NONE]))
    torch.testing.assert_close(ratios, expected, rtol=0, atol=1e-4)
    # Nothing, and the labels to tune on, some of which serve to judge; a step of the user's own embeds these itself.
    assert sorted(map(len, seen)) == ([0, 64, 128] if own_step else [0, 128])


@pytest.mark.parametrize("own_step", [False, True], ids=["ddim", "user"])
@pytest.mark.parametrize("how", [{}, {"total_iters": 3}], ids=["search", "adam"])
@pytest.mark.parametrize("texts", [False, True], ids=["labels", "texts"])
def test_the_unconditional_condition_has_any_batch_that_fits(texts: bool, how: dict[str, int], own_step: bool) -> None:
    """One, that of the loader's batches, which fill the samples several times, or that of the samples."""

    def embed(raw: Any) -> Tensor:
        words = [raw] if isinstance(raw, str) else raw
        return torch.tensor([{"left": 0, "right": 1, "": NONE}[word] for word in words])

    model_fn = wrapped(DISCRETE, "noise", "classifier-free", **({"cond_process_fn": embed} if texts else {}))
    tuner, step = TimeTuner(model_fn, DISCRETE), euler(model_fn, DISCRETE) if own_step else None
    data = loader(3, 16)
    if texts:
        data = [{**batch, "label": [("left", "right")[c] for c in batch["label"].tolist()]} for batch in data]

    def tuned(uncond: Any, samples: int = 256) -> Tensor:
        return tuner.optimize_timesteps(data, step, num_steps=3, uncond_condition=uncond, samples=samples, **how)

    expected, fewer = tuned("" if texts else torch.tensor([NONE])), tuned("" if texts else torch.tensor([NONE]), 40)
    for count in (16, 48):
        got = tuned([""] * count if texts else torch.full((count,), NONE))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    for count in (16, 40):
        got = tuned([""] * count if texts else torch.full((count,), NONE), samples=40)
        torch.testing.assert_close(got, fewer, rtol=0, atol=1e-6)
    for count in (7, 17, 64):
        with pytest.raises(
            ValueError, match=f"uncond_condition must be one condition, .* 1 or 16 or 48 .*, got {count}"
        ):
            tuned([""] * count if texts else torch.full((count,), NONE))


def test_conditions_of_two_sizes_are_refused() -> None:
    model_fn = wrapped(DISCRETE, "noise", "classifier-free")
    with pytest.raises(
        ValueError, match=r"uncond_condition must have a batch of 1 or of condition, 48, got shape \(16,\)"
    ):
        model_fn.bind(torch.zeros(48).long(), torch.full((16,), NONE))


def test_images_and_labels_are_moved_to_the_device() -> None:
    """A device that only `encode_fn` could leave again shows that they were on it."""
    devices: list[str] = []

    def encode(image: Tensor) -> Tensor:
        devices.append(image.device.type)
        return torch.zeros(image.shape, dtype=torch.float64)

    for device in ("meta", torch.device("meta"), None):
        devices.clear()
        with pytest.raises(NotImplementedError) if device else warnings.catch_warnings():
            TimeTuner(wrapped(DISCRETE, "noise", "classifier"), DISCRETE, device).optimize_timesteps(
                loader(1), encode_fn=encode, num_steps=2
            )
        assert set(devices) == {"meta" if device else "cpu"}


def test_a_short_loader_is_cycled_with_a_warning() -> None:
    tuner = TimeTuner(ANY.eps(DISCRETE), DISCRETE)
    with pytest.warns(UserWarning, match="data_loader has 3 batches, fewer than the 7 of one ratio: it is cycled") as w:
        got = tuner.optimize_timesteps(loader(3), num_steps=3, total_iters=7)
    assert sum("cycled" in str(warning.message) for warning in w) == 1  # once, not at every round
    cycled = (loader(3) * 5)[:14]
    assert torch.equal(got, tuner.optimize_timesteps(cycled, num_steps=3, total_iters=7))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "data_loader")
        tuner.optimize_timesteps(loader(7), num_steps=3, total_iters=7)  # each ratio has its seven


def test_batches_that_come_only_once_are_enough_if_there_are_enough() -> None:
    tuner = TimeTuner(ANY.eps(DISCRETE), DISCRETE)
    got = tuner.optimize_timesteps(iter(loader(9)), num_steps=3, total_iters=4, samples=32)
    assert got.shape == (3,) and (got[:-1] != 1).all()
    with pytest.raises(ValueError, match="data_loader is empty, or cannot be started again"):
        tuner.optimize_timesteps(iter(loader(5)), num_steps=3, total_iters=4, samples=32)


def test_whole_numbers_are_taken_as_such() -> None:
    tuner = TimeTuner(ANY.eps(DISCRETE), DISCRETE)
    whole = [{"image": torch.tensor([[1, 0], [0, 1], [2, 1], [-1, -1]])}]
    got = tuner.optimize_timesteps(whole, num_steps=3)
    assert torch.equal(got, tuner.optimize_timesteps([{"image": whole[0]["image"].float()}], num_steps=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune_type": "both"}, "tune_type must be one of sequential, parallel, got 'both'"),
        ({"samples": 0}, "samples must be a whole number of at least 2, got 0"),
        ({"total_iters": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"lr": -1.0}, "lr must be positive, got -1.0"),
        ({"data_loader": []}, "data_loader is empty: give at least one batch of images"),
        ({"data_loader": [torch.zeros(4, 2)]}, "data_loader must yield dicts with 'image' .* got Tensor"),
        ({"data_loader": [{"x": 1}]}, r"data_loader must yield dicts with 'image' .* got one with \['x'\]"),
        ({"data_loader": [{"image": torch.full((4, 2), math.nan)}]}, "an image with NaN or infinity in it"),
        ({"variance": "large"}, "DDIM has no option 'variance'; its options: eta"),
        ({"condition": torch.zeros(1)}, "DDIM has no option 'condition'"),
    ],
)
def test_wrong_arguments_of_tuning_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeTuner(ANY.eps(DISCRETE), DISCRETE).optimize_timesteps(
            **{"data_loader": loader(), "num_steps": 3, **options}
        )


def test_a_network_of_integer_levels_is_tuned_by_the_search_alone() -> None:
    net, received = recording(lambda x, t_input: network(DISCRETE)(x, t_input.float()))
    tuner = TimeTuner(model_wrapper(net, DISCRETE, time_dtype="int"), DISCRETE)
    ratios = tuner.optimize_timesteps(loader(), num_steps=3)
    assert ratios[0] != 1 and all(level == round(level) for level in received)
    with pytest.raises(
        ValueError, match="lr and total_iters need gradients to the time, which time_dtype='int' has none"
    ):
        tuner.optimize_timesteps(loader(), num_steps=3, total_iters=5)

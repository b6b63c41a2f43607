"""The wrapper on networks made from exact models: two classes, each a Gaussian, so that every prediction, the
unconditional one and the classifier are known in closed form at every time."""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from time_tuner import NoiseScheduleVP, make_plan, model_wrapper, sample, tune
from time_tuner.models.batching import BatchedModel
from time_tuner.models.exact import Gaussian, Mixture
from time_tuner.models.wrapper import GUIDANCE_TYPES

MEANS, STD, N = torch.tensor([[-1.0, 0.5], [1.5, 1.0]]).double(), 0.6, 1000
SCHEDULES = {
    "discrete": NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, N, dtype=torch.float64)),
    "linear": NoiseScheduleVP("linear"),
}
T, TAU, SCALE = 0.6, 0.45, 1.7


def eps_of_class(schedule: NoiseScheduleVP, x: Tensor, c: Tensor, tau: Any) -> Tensor:
    both = torch.stack([Gaussian(mean, STD).eps(schedule)(x, tau) for mean in MEANS])
    return both[c, torch.arange(len(x))]


def eps_of_any(schedule: NoiseScheduleVP, x: Tensor, tau: Any) -> Tensor:
    return Mixture(MEANS, STD).eps(schedule)(x, tau)


def log_p(schedule: NoiseScheduleVP, x: Tensor, c: Tensor, tau: Any) -> Tensor:
    """log p(c | x, tau), (B,)."""
    p = schedule.at(tau)
    v = p.alpha**2 * STD**2 + p.sigma**2
    joint = torch.stack([-(x - p.alpha * mean).square().sum(1) / (2 * v) for mean in MEANS], 1)
    return joint.log_softmax(1)[torch.arange(len(x)), c]


def from_network_time(schedule: NoiseScheduleVP, t_input: Tensor) -> float:
    """The time that a network is told; it has to be one, in the unit of that kind of network."""
    assert t_input.dtype == torch.float32 and t_input.dim() == 1 and (t_input == t_input[0]).all()
    return (float(t_input[0]) + 1) / N if schedule.schedule == "discrete" else float(t_input[0])


def network(schedule: NoiseScheduleVP, model_type: str):
    """A network of this type, exact at the time it is told; without a condition, or with class 2, for all data."""

    def predict(x: Tensor, t_input: Tensor, cond: Tensor | None = None) -> Tensor:
        assert t_input.shape == (len(x),)
        tau = from_network_time(schedule, t_input)
        p, eps = schedule.at(tau), eps_of_any(schedule, x, tau)
        if cond is not None:
            assert cond.shape == (len(x),)
            eps = torch.where((cond == 2)[:, None], eps, eps_of_class(schedule, x, cond.clamp(max=1), tau))
        x0 = (x - p.sigma * eps) / p.alpha
        return {"noise": eps, "x_start": x0, "v": p.alpha * eps - p.sigma * x0, "score": -eps / p.sigma}[model_type]

    return predict


def as_noise(schedule: NoiseScheduleVP, model_type: str, eps: Tensor, x: Tensor, t: float, tau: float) -> Tensor:
    """What a network that is exact at tau says, read at t: only what it was told is tau."""
    p, q = schedule.at(t), schedule.at(tau)
    x0 = (x - q.sigma * eps) / q.alpha
    if model_type == "x_start":
        return (x - p.alpha * x0) / p.sigma
    if model_type == "v":
        return p.alpha * (q.alpha * eps - q.sigma * x0) + p.sigma * x
    return eps * p.sigma / q.sigma if model_type == "score" else eps


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # the network's time is a float32


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("model_type", ["noise", "x_start", "v", "score"])
@pytest.mark.parametrize("guidance", GUIDANCE_TYPES)
@pytest.mark.parametrize("tau", [None, TAU])
def test_every_type_under_every_guidance_is_its_closed_form(schedule, model_type, guidance, tau) -> None:
    x, c = seeded(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    classify = lambda x, t_input, cond: log_p(schedule, x, cond, from_network_time(schedule, t_input))  # noqa: E731
    wrapped = model_wrapper(
        network(schedule, model_type), schedule, model_type, None, guidance, SCALE, classifier_fn=classify
    )
    got = wrapped(x, T, tau, c, torch.tensor(2))
    told = T if tau is None else tau
    any_class = as_noise(schedule, model_type, eps_of_any(schedule, x, told), x, T, told)
    of_class = as_noise(schedule, model_type, eps_of_class(schedule, x, c, told), x, T, told)
    # The classifier's gradient is the difference of two scores, that of the class and that of all data.
    slope = (eps_of_any(schedule, x, told) - eps_of_class(schedule, x, c, told)) / schedule.at(told).sigma
    expected = {
        "uncond": any_class,
        "classifier": of_class - SCALE * schedule.at(T).sigma * slope,
        "classifier-free": any_class + SCALE * (of_class - any_class),
    }
    close(got, expected[guidance])
    if tau is None:  # told the true time, every type says the same
        close(any_class, eps_of_any(schedule, x, T))
    bound = wrapped.bind() if guidance == "uncond" else wrapped.bind(c, torch.tensor(2))
    assert torch.equal(bound(x, T, tau), got)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            inside = bound(seeded(6, 2), T, tau)
        assert torch.equal(inside, got) and not inside.requires_grad


# --- the time that a network receives ---


def inputs_of(schedule: NoiseScheduleVP, times: list[float], **options: Any) -> list[Tensor]:
    told: list[Tensor] = []
    eps = model_wrapper(lambda x, t_input: (told.append(t_input), x)[1], schedule, **options).bind()
    for tau in times:
        eps(torch.zeros(3, 2), 0.7, tau)
    return told


def test_a_discrete_network_receives_fractional_levels(discrete: NoiseScheduleVP) -> None:
    told = inputs_of(discrete, [0.001, 0.5, 0.7256, 1.0])
    assert all(t.dtype == torch.float32 and t.shape == (3,) for t in told)
    torch.testing.assert_close(torch.stack(told)[:, 0], torch.tensor([0.0, 499.0, 724.6, 999.0]), rtol=1e-6, atol=1e-4)
    (short,) = inputs_of(NoiseScheduleVP(betas=[0.1] * 10), [0.5])
    assert short.tolist() == [4.0] * 3


def test_a_network_of_integer_levels_receives_the_nearest(discrete: NoiseScheduleVP) -> None:
    told = inputs_of(discrete, [0.001, 0.7256, 1.0], time_dtype="int")
    assert [(t.dtype, t.tolist()) for t in told] == [(torch.int64, [n] * 3) for n in (0, 725, 999)]


def test_a_continuous_network_receives_the_time_itself(linear: NoiseScheduleVP) -> None:
    (told,) = inputs_of(linear, [0.7256])
    assert told.dtype == torch.float32 and told.tolist() == pytest.approx([0.7256] * 3)


def test_without_tau_the_network_receives_t(discrete: NoiseScheduleVP) -> None:
    assert inputs_of(discrete, [None])[0].tolist() == pytest.approx([699.0] * 3)


@pytest.mark.parametrize("guidance", GUIDANCE_TYPES)
def test_gradients_to_tau_and_to_the_state(guidance: str) -> None:
    schedule = SCHEDULES["linear"]

    def predict(x: Tensor, t_input: Tensor, cond: Tensor | None = None) -> Tensor:
        if guidance == "classifier":  # the classifier alone carries the gradient
            return torch.zeros_like(x)
        return x * t_input[:, None] + (0 if cond is None else cond[:, None])

    classify = lambda x, t_input, cond: (x.sum(1) * t_input * cond) ** 2  # noqa: E731
    wrapped = model_wrapper(predict, schedule, guidance_type=guidance, guidance_scale=2.0, classifier_fn=classify)
    conditions = () if guidance == "uncond" else (torch.tensor([0.5]), torch.tensor([0.1]))
    eps = wrapped.bind(*conditions)
    tau, x = torch.tensor(TAU, dtype=torch.float64, requires_grad=True), seeded(3, 2).requires_grad_()
    for gradient in torch.autograd.grad(eps(x, T, tau).square().sum(), (tau, x)):
        assert gradient.isfinite().all() and (gradient != 0).all()
    assert torch.autograd.grad(eps(seeded(3, 2), T, tau).square().sum(), tau)[0] != 0
    assert not eps(seeded(3, 2), T, TAU).requires_grad


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("model_type", ["noise", "x_start", "v", "score"])
@pytest.mark.parametrize("guidance", GUIDANCE_TYPES)
def test_samples_may_have_times_of_their_own(schedule, model_type, guidance) -> None:
    classify = lambda x, t_input, cond: -((x * t_input[:, None]).square().sum(1))  # noqa: E731
    wrapped = model_wrapper(
        lambda x, t_input, *cond: torch.tanh(x) * t_input[:, None],
        schedule,
        model_type,
        None,
        guidance,
        SCALE,
        classify,
    )
    conditions = () if guidance == "uncond" else (torch.tensor([1.0]), torch.tensor([0.0]))
    eps = wrapped.bind(*conditions)
    x, t, tau = seeded(3, 2), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.8, 0.45, 0.12])
    one_by_one = [eps(x[i : i + 1], t[i], tau[i]) for i in range(3)]
    close(eps(x, t, tau), torch.cat(one_by_one))
    with pytest.raises(ValueError, match=r"t must be one time, or one for each sample of x, 3, got shape \(2,\)"):
        eps(x, t[:2], tau)


# --- conditions ---


class Recorder:
    """A network that remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, x: Tensor, *rest: Any, **options: Any) -> Tensor:
        self.calls.append(((x, *rest), options))
        return torch.zeros_like(x)


def test_without_guidance_no_condition_reaches_the_network(discrete: NoiseScheduleVP) -> None:
    net, process = Recorder(), Recorder()
    wrapped = model_wrapper(net, discrete, cond_process_fn=process)
    wrapped(torch.zeros(4, 2), 0.5, condition=torch.zeros(3), uncond_condition=torch.zeros(7))
    assert len(net.calls[0][0]) == 2 and not process.calls


def test_classifier_free_guidance_is_one_call_of_a_doubled_batch(discrete: NoiseScheduleVP) -> None:
    net = Recorder()
    wrapped = model_wrapper(net, discrete, guidance_type="classifier-free", guidance_scale=3.0)
    x = seeded(4, 2)
    wrapped(x, 0.5, None, torch.arange(4), torch.tensor([9]))
    ((args, _),) = net.calls
    assert torch.equal(args[0], torch.cat([x, x])) and args[1].shape == (8,)
    assert args[2].tolist() == [9, 9, 9, 9, 0, 1, 2, 3]


def test_a_scale_of_one_needs_no_unconditional_half(discrete: NoiseScheduleVP) -> None:
    net = Recorder()
    model_wrapper(net, discrete, guidance_type="classifier-free")(seeded(4, 2), 0.5, condition=torch.arange(4))
    assert [args[2].tolist() for args, _ in net.calls] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("condition", [torch.tensor(3), torch.tensor([3]), 3])
def test_a_condition_of_one_is_shared_by_the_batch(condition: Any, discrete: NoiseScheduleVP) -> None:
    net = Recorder()
    eps = model_wrapper(net, discrete, guidance_type="classifier-free").bind(condition)
    for batch in (4, 1):
        eps(torch.zeros(batch, 2), 0.5)
    assert [args[2].tolist() for args, _ in net.calls] == [[3] * 4, [3]]
    eps = model_wrapper(net, discrete, guidance_type="classifier-free").bind(torch.ones(1, 5, 7))
    eps(torch.zeros(4, 2), 0.5)
    assert net.calls[-1][0][2].shape == (4, 5, 7)


def test_conditions_are_processed_once_for_each_bind(discrete: NoiseScheduleVP) -> None:
    net, seen = Recorder(), []

    def embed(text: str) -> Tensor:
        seen.append(text)
        return torch.full((1,), len(text))

    wrapped = model_wrapper(net, discrete, guidance_type="classifier-free", guidance_scale=2.0, cond_process_fn=embed)
    sample(wrapped.bind("seven", ""), make_plan("ddim", discrete, calls=5), torch.zeros(2, 1))
    assert seen == ["seven", ""]
    assert [args[2].tolist() for args, _ in net.calls] == [[0, 0, 5, 5]] * 5


@pytest.mark.parametrize("kind", ["tensors", "dicts", "words"])
def test_a_data_loader_of_conditions(kind: str, discrete: NoiseScheduleVP) -> None:
    """It is read to its end, and the encoder sees a batch at a time."""
    net, sizes = Recorder(), []
    words = ["a", "bb", "ccc", "dddd", "eeeee"]

    def embed(batch: Any) -> Tensor:
        sizes.append(len(batch))
        return torch.tensor([float(len(word)) for word in batch]) if kind == "words" else batch.double()

    lengths = torch.tensor([1, 2, 3, 4, 5])
    held: Any = {
        "tensors": TensorDataset(lengths),
        "dicts": [{"image": torch.zeros(2), "label": length} for length in lengths],
        "words": words,
    }[kind]
    wrapped = model_wrapper(net, discrete, guidance_type="classifier-free", cond_process_fn=embed)
    wrapped.bind(DataLoader(held, batch_size=2))(torch.zeros(5, 2), 0.5)
    assert net.calls[0][0][2].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0] and sizes == [2, 2, 1]


def test_a_data_loader_without_conditions_is_refused(discrete: NoiseScheduleVP) -> None:
    wrapped = model_wrapper(Recorder(), discrete, guidance_type="classifier-free")
    images, labels = torch.zeros(4, 2), torch.arange(4)
    refused: list[tuple[Any, str]] = [
        ([], "condition= must be a data loader of conditions, got one with nothing in it"),
        ([{"image": image} for image in images], "or of dicts with 'label', got one of dicts with image"),
        (TensorDataset(images, labels), "or of dicts with 'label', got one of 2 tensors each"),
    ]
    for held, message in refused:
        with pytest.raises(ValueError, match=re.escape(message)):
            wrapped.bind(DataLoader(held))
    with pytest.raises(ValueError, match=r"^uncond_condition="):
        wrapped.bind(labels, DataLoader(refused[0][0]))


@pytest.mark.parametrize("method", ["joint", "sequential"])
def test_more_conditions_than_samples_are_refused_before_any_work(discrete: NoiseScheduleVP, method: str) -> None:
    net = Recorder()
    eps = model_wrapper(net, discrete, guidance_type="classifier-free").bind(torch.arange(40))
    with pytest.raises(ValueError, match="samples must be at least as many as the model has conditions, 40, got 16"):
        tune(eps, make_plan("ddim", discrete, 3), method, samples=16, shape=(2,))
    assert not net.calls


def test_a_condition_given_again_is_not_processed_again(discrete: NoiseScheduleVP) -> None:
    net, seen = Recorder(), []
    wrapped = model_wrapper(
        net,
        discrete,
        guidance_type="classifier-free",
        guidance_scale=2.0,
        cond_process_fn=lambda c: (seen.append(0), c)[1],
    )
    x, condition, none = torch.zeros(2, 1), torch.tensor([3.0]), torch.tensor([9.0])
    for _ in range(3):
        wrapped(x, 0.5, None, condition, none)
    assert len(seen) == 2
    condition += 1  # another one now
    wrapped(x, 0.5, None, condition, none)
    assert len(seen) == 3
    wrapped(x, 0.5, None, torch.tensor([5.0]), none)
    assert [args[2].tolist() for args, _ in net.calls[-2:]] == [[9, 9, 4, 4], [9, 9, 5, 5]]


def test_extra_arguments_reach_network_and_classifier(discrete: NoiseScheduleVP) -> None:
    net, heard = Recorder(), {}

    def classify(x: Tensor, t_input: Tensor, cond: Tensor, **options: Any) -> Tensor:
        heard.update(options, cond=cond.tolist(), t=t_input.tolist())
        return x.sum(1)

    wrapped = model_wrapper(
        net,
        discrete,
        model_kwargs={"depth": 3},
        guidance_type="classifier",
        classifier_fn=classify,
        classifier_kwargs={"heads": 2},
    )
    wrapped(torch.zeros(2, 2), 0.5, 0.3, torch.tensor([4]))
    assert net.calls[0][1] == {"depth": 3}
    assert heard == {"heads": 2, "cond": [4, 4], "t": [299.0, 299.0]}


# --- errors ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"model_type": "epsilon"},
            "model_type must be one of noise, .* edm_v, got 'epsilon'",
        ),
        ({"guidance_type": "cfg"}, "guidance_type must be one of uncond, classifier, classifier-free, got 'cfg'"),
        ({"time_dtype": "round"}, "time_dtype must be one of float32, int, bfloat16, float16, got 'round'"),
        ({"guidance_type": "classifier"}, "guidance_type='classifier' needs classifier_fn="),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], says: str, discrete: NoiseScheduleVP) -> None:
    with pytest.raises(ValueError, match=says):
        model_wrapper(Recorder(), discrete, **options)


@pytest.mark.parametrize("guidance", ["classifier", "classifier-free"])
def test_guidance_needs_conditions(guidance: str, discrete: NoiseScheduleVP) -> None:
    wrapped = model_wrapper(
        Recorder(), discrete, guidance_type=guidance, guidance_scale=2.0, classifier_fn=lambda x, t, c: x.sum(1)
    )
    with pytest.raises(ValueError, match=f"guidance_type='{guidance}' needs condition="):
        wrapped.bind()
    with pytest.raises(ValueError, match=r"condition must have a batch of 1 or of x, 4, got shape \(3,\)"):
        wrapped(torch.zeros(4, 2), 0.5, None, torch.zeros(3), torch.zeros(1))
    if guidance == "classifier-free":
        with pytest.raises(ValueError, match="needs uncond_condition= unless guidance_scale is 1"):
            wrapped.bind(torch.zeros(1))
        with pytest.raises(ValueError, match="uncond_condition must have a batch of 1 or of condition, 4, got shape"):
            wrapped(torch.zeros(4, 2), 0.5, None, torch.zeros(4), torch.zeros(2))


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 2)])
@pytest.mark.parametrize("model_type", ["noise", "v"])
def test_of_a_network_with_learned_variance_the_mean_is_used(shape, model_type, discrete: NoiseScheduleVP) -> None:
    x, variance = seeded(*shape), seeded(*shape, seed=1)
    options = {"guidance_type": "classifier-free", "guidance_scale": 2.0}

    def mean(x: Tensor, n: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(x) + c.view(-1, *[1] * (x.dim() - 1))

    def both(x: Tensor, n: Tensor, c: Tensor) -> Tensor:
        return torch.cat([mean(x, n, c), torch.cat([variance, variance])], 1)

    got, expected = (
        model_wrapper(network, discrete, model_type, **options)(x, 0.5, None, torch.tensor([0.3]), torch.tensor([0.1]))
        for network in (both, mean)
    )
    assert torch.equal(got, expected)


def test_answers_of_another_shape_are_refused(discrete: NoiseScheduleVP) -> None:
    x = torch.zeros(2, 3)
    for copies in (((0, 2)), (1, 3)):
        answer = lambda x, n, copies=copies: torch.cat([x] * copies[1], copies[0])  # noqa: E731
        got = rf"\(2, 3\), got shape {re.escape(str(tuple(answer(x, 0).shape)))}"
        with pytest.raises(ValueError, match=rf"model must return a tensor of the shape of x, {got}"):
            model_wrapper(answer, discrete)(x, 0.5)
    for answer, got in (({"sample": x}, "dict"), (("x", x), "tuple"), ((), "tuple"), ([x], "list")):
        with pytest.raises(ValueError, match=rf"model must return a tensor .* got {got}"):
            model_wrapper(lambda x, n, answer=answer: answer, discrete)(x, 0.5)
    # Vectors have no channels: a head twice too wide is not taken for a learned variance.
    with pytest.raises(ValueError, match=r"got shape \(2, 6\): of a learned variance, wrap .* output\[:, :3\]"):
        model_wrapper(lambda x, n: torch.cat([x, x], 1), discrete)(x, 0.5)
    wrapped = model_wrapper(
        Recorder(), discrete, guidance_type="classifier", classifier_fn=lambda x, n, c: x.log_softmax(1)
    )
    with pytest.raises(
        ValueError, match=r"classifier_fn must return log p\(c \| x\) of shape \(2,\), got shape \(2, 3\)"
    ):
        wrapped(x, 0.5, condition=torch.zeros(1))


def test_outputs_of_diffusers_networks_are_taken(discrete: NoiseScheduleVP) -> None:
    x = seeded(2, 3, 4, 4)
    expected = model_wrapper(lambda x, n: torch.tanh(x), discrete)(x, 0.5)
    for output in (lambda y: SimpleNamespace(sample=y), lambda y: (y,), lambda y: (y, "state")):
        got = model_wrapper(lambda x, n, output=output: output(torch.tanh(x)), discrete)(x, 0.5)
        assert torch.equal(got, expected)


TABLE = torch.linspace(0.5, 1, 1000, dtype=torch.float64)
LOOK_UPS = {
    "a table": lambda n: TABLE[n],
    "an embedding": lambda n: torch.nn.functional.embedding(n, TABLE[:, None])[:, 0],
    "a one-hot code": lambda n: torch.nn.functional.one_hot(n, 1000) @ TABLE.long(),
    "gather": lambda n: TABLE.gather(0, n),
    "index_select": lambda n: TABLE.index_select(0, n),
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_a_network_that_looks_its_time_up_is_given_whole_levels(name: str, discrete: NoiseScheduleVP) -> None:
    def network(x: Tensor, n: Tensor) -> Tensor:
        return x * LOOK_UPS[name](n)[:, None]

    x = seeded(2, 3)
    with pytest.raises(ValueError, match=r"the network uses its time as an index \(.*\): give time_dtype='int'"):
        model_wrapper(network, discrete)(x, 0.5)
    assert model_wrapper(network, discrete, time_dtype="int")(x, 0.5).shape == x.shape


def test_errors_of_the_network_are_its_own(discrete: NoiseScheduleVP) -> None:
    for network, error in (
        (lambda x, n: TABLE[n.long() + 5000] * x, IndexError),
        (lambda x, n: x @ x, RuntimeError),
        (lambda x, n: x / {}, TypeError),
    ):
        for time_dtype in ("float32", "int"):
            with pytest.raises(error):
                model_wrapper(network, discrete, time_dtype=time_dtype)(seeded(2, 3), 0.5)


@pytest.mark.parametrize("kind", [lambda network: network, lambda network: FunctionNetwork(network)])
def test_a_network_for_other_arguments_is_refused(kind: Any, discrete: NoiseScheduleVP) -> None:
    called = r"model must be a network called with \(x, time{}\), got one for other arguments: .*bind.*model_kwargs="
    for network, condition, options, names in (
        (lambda x: x, None, {}, ""),
        (lambda x, n, c: x, None, {}, ""),
        (lambda x, n: x, torch.tensor([1]), {}, ", condition"),
        (lambda x, n: x, None, {"heads": 2}, ", heads="),
    ):
        guidance = "uncond" if condition is None else "classifier-free"
        made = model_wrapper(kind(network), discrete, model_kwargs=options, guidance_type=guidance).bind(condition)
        with pytest.raises(ValueError, match=called.format(names)):
            made(seeded(2, 3), 0.5)


class FunctionNetwork(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.forward = function


def test_labels_that_are_no_classes_of_the_network_are_refused(discrete: NoiseScheduleVP) -> None:
    """By number where the network knows its classes, and by what torch raises otherwise."""

    class Classes(torch.nn.Module):
        def __init__(self, **known: Any) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(4, 3)
            for name, value in known.items():
                setattr(self, name, value)

        def forward(self, x: Tensor, n: Tensor, labels: Tensor) -> Tensor:
            return x + self.table(labels)

    for network in (Classes(num_classes=4), Classes(config={"num_class_embeds": 4, "num_embeds_ada_norm": None})):
        wrapped = model_wrapper(network, discrete, guidance_type="classifier-free", guidance_scale=2.0)
        assert wrapped.bind(torch.tensor([0, 3]), torch.tensor([3]))(seeded(2, 3), 0.5).shape == (2, 3)
        for label in (4, -1):
            with pytest.raises(ValueError, match=rf"condition must be 0 to 3, got {label}"):
                wrapped.bind(torch.tensor([1, label]), torch.tensor([3]))
        with pytest.raises(ValueError, match=r"uncond_condition must be 0 to 3, got 4"):
            wrapped.bind(torch.tensor([1]), torch.tensor([4]))
    unknown = model_wrapper(Classes(), discrete, guidance_type="classifier-free").bind(torch.tensor([4]))
    with pytest.raises(ValueError, match=r"condition must be labels of the network's classes, from 0, got \[4, 4\]"):
        unknown(seeded(2, 3), 0.5)


def test_a_condition_that_would_be_ignored_is_refused(discrete: NoiseScheduleVP) -> None:
    with pytest.raises(ValueError, match=r"condition= has no effect with guidance_type='uncond'"):
        model_wrapper(lambda x, n: x, discrete).bind(torch.tensor([1]))


def test_states_of_another_shape_are_named_where_the_network_fails(discrete: NoiseScheduleVP) -> None:
    model = model_wrapper(lambda x, n: x @ torch.eye(3), discrete, shape=(3,)).bind()
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3\), got \(2, 4\)"):
        model(seeded(2, 4), 0.5)


@pytest.mark.parametrize("guidance", ["uncond", "classifier-free"])
def test_arguments_with_a_row_for_each_sample_are_refused_in_parts_of_the_batch(
    guidance: str, discrete: NoiseScheduleVP
) -> None:
    """The second batch would be called with the rows of the first."""

    def network(x: Tensor, n: Tensor, *condition: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(x + y[:, None])

    x, y = seeded(4, 3), torch.arange(4.0)
    made = model_wrapper(network, discrete, model_kwargs={"y": y}, guidance_type=guidance)
    model = made.bind(*(() if guidance == "uncond" else (torch.zeros(1),)))
    assert model(x, 0.5).shape == x.shape
    for run in (
        lambda: model(x[:3], 0.5),
        lambda: BatchedModel(model, 2)(x, 0.5),
        lambda: model.select(torch.tensor([2, 0])),
        lambda: tune(model, make_plan("ddim", discrete, 3), "sequential", shape=(3,), samples=4, batch=2),
    ):
        with pytest.raises(
            ValueError, match=r"model_kwargs\['y'\] has 4 rows, and a batch may hold other samples: give"
        ):
            run()


def test_arguments_that_all_samples_share_fit_every_batch(discrete: NoiseScheduleVP) -> None:
    def network(x: Tensor, n: Tensor, one: Tensor, number: Tensor, table: Tensor) -> Tensor:
        return torch.tanh(x + one + number) * table.sum()

    shared = {"one": torch.ones(1, 3), "number": torch.tensor(2.0)}
    x = seeded(4, 3)
    model = model_wrapper(partial(network, table=torch.ones(7)), discrete, model_kwargs=shared).bind()
    torch.testing.assert_close(BatchedModel(model, 3)(x, 0.5), model(x, 0.5))
    tabled = model_wrapper(network, discrete, model_kwargs=shared | {"table": torch.ones(7)}).bind()
    assert torch.equal(tabled(x, 0.5), model(x, 0.5))  # in one batch it may be anything

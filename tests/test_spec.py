"""The grammar of samplers, spacings and runs: what it takes, and that any other text is one line of error."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from time_tuner import SAMPLERS, NoiseScheduleVP, TimeTuner, make_plan
from time_tuner._checks import choose
from time_tuner._spec import LONGEST, build, parse_call, parse_run
from time_tuner.plans import parse_run as parse_plan
from time_tuner.samplers import sampler_of
from time_tuner.samplers.ddim import DDIM
from time_tuner.spacings import spacing_of

# --- what it takes ---


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("ddim", "ddim", {}),
        ("ddim()", "ddim", {}),
        (" ddim ( eta = 0.5 ) ", "ddim", {"eta": 0.5}),
        ("ddim(eta=1e-3,)", "ddim", {"eta": 1e-3}),
        ("a(n=-3, x=-0.5, big=1_000)", "a", {"n": -3, "x": -0.5, "big": 1000}),
        ("a(x=true, y=False, z=none, w=None)", "a", {"x": True, "y": False, "z": None, "w": None}),
        ("a(type=dpmsolver, kind='two words', path=\"x(1):2@y\")", "a",
         {"type": "dpmsolver", "kind": "two words", "path": "x(1):2@y"}),
        ("joint(parts=(times, tau), pairs=[1, 2], one=(tau,), none=())", "joint",
         {"parts": ("times", "tau"), "pairs": [1, 2], "one": ("tau",), "none": ()}),
        ("a(x=True_ish, y=Truth)", "a", {"x": "True_ish", "y": "Truth"}),
        ("a(\n  x=1,\n  y=2,\n)", "a", {"x": 1, "y": 2}),
    ],
)  # fmt: skip
def test_names_options_and_values(text: str, name: str, options: dict[str, Any]) -> None:
    got = parse_call(text)
    assert got == (name, options)
    assert [type(value) for value in got[1].values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("ddim:10", ("ddim", 10, None)),
        ("ddim(eta=0.5):10@quadratic", ("ddim(eta=0.5)", 10, "quadratic")),
        ("dpmpp(order=3, lower_order_final=false):8@karras(rho=5)",
         ("dpmpp(order=3, lower_order_final=false)", 8, "karras(rho=5)")),
        ("a(path='b:1@c'):2@d(path='e:3')", ("a(path='b:1@c')", 2, "d(path='e:3')")),
    ],
)  # fmt: skip
def test_runs(text: str, run: tuple[str, int, str | None]) -> None:
    assert parse_run(text) == run


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
NAMES = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True).map(
    lambda name: f"{name}_"
)  # which no keyword ends with


@settings(max_examples=40)
@given(name=NAMES, options=st.dictionaries(NAMES, VALUES, max_size=4))
def test_what_is_written_is_read_back(name: str, options: dict[str, Any]) -> None:
    assert parse_call(f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})") == (name, options)


# --- what it refuses ---

REFUSED = [
    *("", " ", "5", "None", "'ddim'", "(ddim)", "ddim # the best", "ddim eta=1", "a.b", "a[0]", "a()()", "a, b"),
    *("a(1)", "a(eta)", "a(*x)", "a(**x)", "a(x=1, x=2)", "a(x=)", "a(x=1", "a(x=1))", "a(x:=1)", "a(x=1)b"),
    *("a(x=f())", "a(x=y.z)", "a(x=1+1)", "a(x=+1)", "a(x=--1)", "a(x=-y)", "a(x=-True)"),
    *("a(x=not y)", "a(x=1 if y else 2)", "a(x={})", "a(x={1})", "a(x=b'1')", "a(x=1j)", "a(x=...)", "a(x=f'{y}')"),
    *("a(x=[y for y in z])", "a(x=(*y,))", "a(x=1e999)", f"a(x={10**400})", f"a(x=-{10**400})"),
    *("a(x=lambda: 1)", "a(x=y[0])", "a(x=y<z)", "a(x='\\d')", "a(x=1\0)"),
    *("a(x='\ud800", "lambda", "a(lambda=1)", "a(x=await y)", "__import__('os').system('true')"),
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_other_texts_are_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse_call(text)
    expected = f"{text!r} must be written name(option=value, ...), with numbers, names and 'quoted text' as values"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "text", ["", "ddim", "ddim:", ":5", "ddim:5@", "ddim:x", "ddim:-1", "ddim:5.0", "ddim:9" + "9" * 9]
)
def test_other_texts_are_no_runs(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^a run is written sampler\[\(option=value, ...\)\]:calls\[@spacing\], got '"
    ):
        parse_run(text)


ANY = st.text(max_size=40) | st.lists(
    st.sampled_from(
        [*"()[]{},=:@'\"\\#.-+*\n\t\0", "ddim", "eta", "0.5", "10", "lambda", "if", "f'", "\ud800", "ﬁ", "1e999", "**"]
    ),
    max_size=20,
).map("".join)


@given(text=ANY | ANY.map(lambda inner: f"ddim(eta={inner})") | ANY.map(lambda inner: f"ddim:{inner}@karras"))
@example("(" * 1000)
@example("-" * 1000)
@example("ddim(eta=" + "[" * 450 + "]" * 450 + ")")
@example("ddim(eta=" + "(" * 90 + ")" * 90 + ")")
@example("ddim" + "()" * 400)
@example("ddim(eta=" + "not " * 200 + "1)")
@example("ddim(eta=" + "lambda:" * 130 + "1)")
@example("ddim(eta=" + "1+" * 400 + "1)")
@example("9" * 5000)
@example("a" * 10**6)
def test_any_text_is_read_or_one_line_of_error(text: str) -> None:
    for read in (parse_call, parse_run, sampler_of, spacing_of):
        message = "one line"
        try:
            read(text)
        except ValueError as error:
            message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 12 * LONGEST


def test_nothing_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "made"
    make = f"__import__('os').mkdir('{path}')"
    for text in (make, f"dict(x={make})", f"dict(x=[{make}])"):
        for read in (parse_call, sampler_of, spacing_of):
            with pytest.raises(ValueError, match="must be written"):
                read(text)
        assert not path.exists()
        eval(text)
        assert path.exists()
        path.rmdir()


# --- tables ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unpc", r"sampler must be one of ddpm, ddim, .* got 'unpc': did you mean 'unipc'\?$"),
        ("DDIM", r"got 'DDIM': did you mean 'ddim'\?$"),
        ("midpoint", r"got 'midpoint'$"),
        ("ddim(Eta=1)", r"sampler 'ddim' has no option 'Eta'; its options: eta: did you mean 'eta'\?$"),
        ("dpmpp(ordr=1)", r"'dpmpp' has no option 'ordr'; its options: order, lower.*: did you mean 'order'\?$"),
        ("heun(x=1)", r"sampler 'heun' has no option 'x'; its options: none$"),
        ("ddpm(variance=smal)", r"variance of DDPM must be one of large, small, got 'smal': did you mean 'small'\?$"),
        ("euler", r"there is no sampler 'euler': take ddim\(eta=0\), which is the same$"),
        ("euler_ancestral", r"there is no sampler 'euler_ancestral': take ddim\(eta=1\), which is the same$"),
    ],
)
def test_an_unknown_name_or_option_is_answered_with_the_nearest(text: str, message: str, linear) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(text, linear, calls=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("karas", r"spacing must be one of .*, got 'karas': did you mean 'karras'\?$"),
        ("Quadratic", r"did you mean 'quadratic'\?$"),
        ("karras(roh=5)", r"spacing 'karras' has no option 'roh'; its options: rho: did you mean 'rho'\?$"),
        ("karras(steps=5)", "spacing 'karras' has no option 'steps'; its options: rho$"),
        ("karras(end=0.5)", "spacing 'karras' has no option 'end'; its options: rho$"),
        ("uniform(rho=5)", "spacing 'uniform' has no option 'rho'; its options: none$"),
        ("karras(rho=high)", "rho of spacing 'karras' must be a number, got 'high'$"),
        ("karras(rho=true)", "rho of spacing 'karras' must be a number, got True$"),
        ("karras(7)", r"'karras\(7\)' must be written name\(option=value, ...\)"),
        ("karras(rho=7", r"'karras\(rho=7' must be written name\(option=value, ...\)"),
    ],
)
def test_spacings_are_written_in_the_same_grammar(text: str, message: str, linear: NoiseScheduleVP) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan("ddim", linear, calls=4, spacing=text)


def test_a_table_of_any_kind_is_built_from() -> None:
    table = {"one": DDIM, "two": lambda a, b=1: (a, b)}
    assert build("thing", table, "one", {"eta": 1}) == DDIM(1)
    assert build("thing", table, "two", {"a": 3}) == (3, 1)
    with pytest.raises(ValueError, match=r"thing must be one of one, two, got 'tow': did you mean 'two'\?"):
        build("thing", table, "tow", {})


@pytest.mark.parametrize(
    ("value", "allowed", "fits"),
    [
        ("a", ("a", "b"), True),
        (1, (1, 2), True),
        (True, (1, 2), False),
        (1, (True, False), False),
        (1.0, (1, 2), False),
        (None, (None, 1), True),
        ([1], (1, 2), False),
        ("A", ("a", "b"), False),
    ],
)
def test_a_choice_is_of_the_same_kind(value: Any, allowed: tuple[Any, ...], fits: bool) -> None:
    if fits:
        assert choose("x", value, allowed) is value
    else:
        with pytest.raises(ValueError, match=r"x must be one of .*, got"):
            choose("x", value, allowed)


# --- samplers ---


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_an_object_or_a_text(name: str, linear: NoiseScheduleVP) -> None:
    sampler = sampler_of(name)
    assert type(sampler) is SAMPLERS[name] and sampler_of(sampler) is sampler
    assert make_plan(name, linear, calls=6, spacing="leading") == make_plan(
        SAMPLERS[name](), linear, calls=6, spacing="leading"
    )


def test_a_text_is_a_sampler_wherever_one_is_taken(linear: NoiseScheduleVP) -> None:
    from time_tuner.diffusers import TimeTunerScheduler

    text, sampler = "dpmpp(order=3, lower_order_final=false)", SAMPLERS["dpmpp"](order=3, lower_order_final=False)
    tuner, config = (
        TimeTuner(lambda x, t, tau: x, linear),
        {"_class_name": "DDIMScheduler", "beta_start": 1e-4, "beta_end": 0.02},
    )
    config |= {"beta_schedule": "linear", "num_train_timesteps": 1000}
    for one in (sampler, text):
        made = TimeTunerScheduler.from_config(config, sampler=one, calls=4, spacing="trailing")
        for got in (
            make_plan(one, linear, 4).sampler,
            parse_plan(f"{text}:4", linear).sampler,
            tuner.plan(4, sampler=one).sampler,
            tuner.step_fn(one).sampler,
            made.plan.sampler,
        ):
            assert got == sampler
    assert tuner.plan(4, sampler="dpmpp", order=3, lower_order_final=False).sampler == sampler
    # A plan brings its sampler's options where the call names none.
    plan = tuner.plan(4, sampler=text)
    assert tuner.plan(t_ratios=plan, sampler="dpmpp") is plan
    for other in ({"sampler": "dpmpp(order=2)"}, {"sampler": "dpmpp", "order": 2}, {"sampler": SAMPLERS["dpmpp"]()}):
        with pytest.raises(ValueError, match=r"t_ratios is a plan of DPMSolverPP\(order=3, .* DPMSolverPP\(order=2"):
            tuner.plan(t_ratios=plan, **other)


def test_options_replace_those_of_the_sampler() -> None:
    assert sampler_of("ddim(eta=0.5)") == sampler_of("ddim", eta=0.5) == sampler_of(DDIM(), eta=0.5) == DDIM(0.5)
    assert sampler_of("ddim(eta=0.5)", eta=0.2) == DDIM(0.2)
    with pytest.raises(ValueError, match="DDIM has no option 'order'; its options: eta"):
        sampler_of(DDIM(), order=2)


@pytest.mark.parametrize("sampler", [None, 5, DDIM, {"name": "ddim"}, b"ddim"])
def test_anything_else_is_no_sampler(sampler: Any, linear: NoiseScheduleVP) -> None:
    with pytest.raises(ValueError, match=r"sampler must be a sampler or a text such as 'ddim\(eta=0.5\)', got"):
        make_plan(sampler, linear, calls=4)

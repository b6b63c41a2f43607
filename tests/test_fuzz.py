"""Files from strangers: every file that is read loads to a valid value, or is refused in one line that names it.

The suite has a short version; `make fuzz` mutates 100,000 plan files.
"""

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import (
    EXAMPLES,
    HOSTILE,
    KINDS,
    byte_changes,
    changes,
    mutated,
    mutated_bytes,
    read_or_refused,
    text_of,
)
from safetensors.torch import save

from time_tuner import NoiseScheduleFlow, NoiseScheduleVE, NoiseScheduleVP, Plan, make_plan, schedule_from
from time_tuner._spec import parse_call, parse_run
from time_tuner.data import load_data
from time_tuner.metrics import Moments
from time_tuner.plans.sharing import ENTRY, FILE
from time_tuner.samplers import SAMPLERS
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners.checkpoint import FORMAT, Checkpoint
from time_tuner.tuners.joint import teacher
from time_tuner.tuners.units import Units

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
AT_ONCE = 200  # plans of one example of the full version

SCHEDULES = (
    NoiseScheduleVP(betas=[0.05 * (n + 1) for n in range(12)]),
    NoiseScheduleVP("linear"),
    NoiseScheduleVP("cosine"),
    NoiseScheduleVE(),
    NoiseScheduleFlow(3.0),
)


def of_few_calls(name: str, schedule: NoiseSchedule) -> Plan:
    """A plan of 3 calls, or of the next number that the sampler can make."""
    for calls in (3, 4, 5, 6):
        try:
            return make_plan(name, schedule, calls)
        except ValueError:
            continue
    return make_plan(name, schedule, 12)


def plans() -> list[Any]:
    """The values of plan files: every sampler on every schedule, corrections, guidance, several plans; a third of them
    with rows, which few mutations fit."""
    found = list[Any]()
    for name in SAMPLERS:
        for schedule in SCHEDULES:
            plan = of_few_calls(name, schedule)
            found.append(plan)
            if not plan.stochastic:
                found.append(plan.with_corrections(0.1 * seeded(len(plan), len(plan)).tril(-1)))
    reuse = torch.zeros(4, 4, dtype=torch.float64)
    reuse[2:, :2] = 0.3
    found.append(make_plan("dpmpp", SCHEDULES[0], 4).with_guidance(2, reuse))
    values = [plan.with_provenance(distance={"tuned": 0.1}, made_for={"shape": [1]}).to_dict() for plan in found]
    for i, one in enumerate(values):
        if i % 3:
            del one["rows"]
    several = [make_plan("ddim", SCHEDULES[4], calls).to_dict() for calls in (1, 2, 3)]
    return json.loads(json.dumps([*values, several]))


PLANS = plans()
TEXTS = [json.dumps(one) for one in PLANS]


def check_plans(content: bytes, path: Path, read: Callable[[], list[Plan]]) -> bool:
    """Whether the content of a plan file is loaded; what is loaded is a plan that runs, and survives being saved."""
    path.write_bytes(content)
    found = read_or_refused(read, path.name)
    for plan in found or ():
        weights = [number for row in plan.rows for number in row.next_state.numbers]
        assert torch.tensor(weights).isfinite().all()
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    return found is not None


def random_content(draw: random.Random) -> bytes:
    """A mutated plan file: of its values, or of its bytes."""
    text = draw.choice(TEXTS)
    if draw.random() < 0.3:
        kinds = ("set", "flip", "cut", "insert", "drop")
        some = [(draw.randrange(2**20), draw.choice(kinds), draw.randrange(256)) for _ in range(draw.randint(1, 4))]
        return mutated_bytes(text.encode(), some)
    count = draw.choice((1, 1, 1, 2, 3))
    return text_of(mutated(text, [
        (draw.randrange(2**20), draw.choice(KINDS), draw.randrange(len(HOSTILE)), draw.uniform(-3, 3))
        for _ in range(count)
    ]))  # fmt: skip


@FEW
@given(value=st.sampled_from(PLANS), made=changes)
def test_a_plan_file_of_mutated_values_loads_or_is_refused(value: Any, made: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    check_plans(text_of(mutated(value, made)), path, lambda: Plan.load_several(path))


@FEW
@given(value=st.sampled_from(PLANS), made=byte_changes)
def test_a_plan_file_of_mutated_bytes_loads_or_is_refused(value: Any, made: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    check_plans(mutated_bytes(json.dumps(value).encode(), made), path, lambda: Plan.load_several(path))


@pytest.mark.skipif(not EXAMPLES, reason="the full version is run by make fuzz")
@settings(
    max_examples=-(-EXAMPLES // AT_ONCE) or 1,
    derandomize=False,  # other files each time
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**63))
def test_many_mutated_plan_files_load_or_are_refused(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw, path = random.Random(seed), tmp_path_factory.getbasetemp() / "plan.json"
    for _ in range(AT_ONCE):
        content = random_content(draw)
        try:
            loaded = check_plans(content, path, lambda: Plan.load_several(path))
        except BaseException:
            print(f"failed on {content[:20000]!r}")
            raise
        COUNTS["loaded" if loaded else "refused"] += 1


COUNTS = {"loaded": 0, "refused": 0}


@pytest.fixture(scope="module", autouse=True)
def counted() -> Any:
    """Print how many files of the full version were loaded and refused."""
    yield
    if EXAMPLES:
        print(f"\n{sum(COUNTS.values()):,} mutated plan files: {COUNTS}")


def test_mutations_of_plans_that_load_and_that_are_refused_are_both_made(tmp_path: Path) -> None:
    path, draw = tmp_path / "plan.json", random.Random(0)
    loaded = [check_plans(random_content(draw), path, lambda: Plan.load_several(path)) for _ in range(150)]
    assert 3 <= sum(loaded) <= 100


@FEW
@given(value=st.sampled_from(PLANS), made=changes, bytes_made=st.one_of(st.just([]), byte_changes))
def test_plans_in_the_metadata_of_weights_load_or_are_refused(
    value: Any, made: Any, bytes_made: Any, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    content = save({"weight": torch.zeros(2)}, {ENTRY: json.dumps(mutated(value, made))})
    check_plans(mutated_bytes(content, bytes_made), path, lambda: Plan.load_several(path))


@FEW
@given(value=st.sampled_from(PLANS), made=changes)
def test_a_shared_folder_loads_or_is_refused(value: Any, made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(text_of(mutated(value, made)))
    read_or_refused(lambda: Plan.from_hub(folder, calls=3), "shared")


@FEW
@given(value=st.sampled_from(PLANS), made=changes)
def test_the_node_for_comfyui_loads_or_refuses(value: Any, made: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text_of(mutated(value, made)))
    for plan in read_or_refused(lambda: COMFY.read_plans(path), "plan.json") or ():
        assert len(plan.sigmas) == len(plan) + 1 and len(plan.levels()) == len(plan)


def _comfy() -> Any:
    file = Path(__file__).parents[1] / "integrations" / "comfyui" / "plan_file.py"
    spec = importlib.util.spec_from_file_location("comfy_plan_file", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


COMFY = _comfy()

# --- tensors ---

MADE = {"teacher": "T", "first": "0", "shape": "(2,)", "times": "[]"}


@FEW
@given(made=byte_changes)
def test_a_teacher_file_loads_or_is_refused(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(mutated_bytes(save({"states": torch.ones(3, 1, 2)}, MADE), made))
    found = read_or_refused(lambda: teacher._read(path, MADE, (2,), ()), "teacher.safetensors")
    assert found is None or (found.shape[1:] == (1, 2) and found.isfinite().all())


@FEW
@given(made=byte_changes)
def test_a_file_of_moments_loads_or_is_refused(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "moments.safetensors"
    Moments.of(seeded(5, 3)).save(path, features="pixels")
    path.write_bytes(mutated_bytes(path.read_bytes(), made))
    found = read_or_refused(lambda: Moments.load(path, features="pixels"), "moments.safetensors")
    assert found is None or (found.count > 0 and found.scatter.shape == (len(found.mean),) * 2)


@pytest.mark.parametrize("size", [10**6, 10**12, 2**62])
def test_a_header_that_declares_more_than_the_file_has_is_refused(size: int, tmp_path: Path) -> None:
    header = {"states": {"dtype": "F32", "shape": [size, 1, 2], "data_offsets": [0, 8 * size]}, "__metadata__": MADE}
    text = json.dumps(header).encode()
    path = tmp_path / "teacher.safetensors"
    for declared in (len(text), 10**6, 2**40, 2**63):
        path.write_bytes(declared.to_bytes(8, "little") + text + bytes(64))
        assert read_or_refused(lambda: teacher._read(path, MADE, (2,), ()), "teacher.safetensors") is None
        assert read_or_refused(lambda: Plan.load(path), "teacher.safetensors") is None


@FEW
@given(made=byte_changes)
def test_a_unit_that_cannot_be_read_is_made_again(made: Any, tmp_path: Path) -> None:
    units = Units(tmp_path / "units", {"model": [1.0]})
    units.tensor("one", (2,), lambda: torch.ones(3, 2))
    (path,) = units.folder.glob("unit-*")
    path.write_bytes(mutated_bytes(path.read_bytes(), made))
    found = units.tensor("one", (2,), lambda: torch.zeros(3, 2))
    assert found.shape[1:] == (2,)
    path.unlink()


# --- checkpoints ---

ENTRIES = {
    "format": FORMAT, "inputs": {"model": [1.0, 2.0], "options": {"last": False}, "seed": 0}, "budget": "20 calls",
    "seconds": 1.5, "costs": {"tuning": {"calls": 3, "evaluations": 12}}, "ranking": {"ddim": 0.5},
    "state": {"values": {"0": [[1.0, 0.5]]}}, "plan": PLANS[0],
}  # fmt: skip


@FEW
@given(made=changes)
def test_a_checkpoint_loads_or_is_refused(made: Any, tmp_path: Path) -> None:
    from time_tuner.tuners.base import TuningRun

    path = tmp_path / "plan.partial"
    path.write_bytes(text_of(mutated(ENTRIES, made)))
    run = read_or_refused(lambda: TuningRun(checkpoint=Checkpoint(path, ENTRIES["inputs"])), "plan.partial")
    if run is not None:
        run.resume()
        assert run.seconds >= 0 and run.cost_log.total.calls >= 0


# --- configurations, arrays, texts ---

CONFIGS = (
    {"_class_name": "DDIMScheduler", "num_train_timesteps": 20, "beta_start": 1e-4, "beta_end": 0.02,
     "beta_schedule": "linear", "clip_sample": False, "prediction_type": "epsilon", "trained_betas": None},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
    {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 30},
    {"shift": 2.0, "num_train_timesteps": 1000}, {"trained_betas": [0.1, 0.2, 0.3]},
)  # fmt: skip


def as_mapping(value: Any) -> Any:
    """The value of a JSON file, in which lone surrogates are replaced."""
    return json.loads(json.dumps(value).replace("\\ud8", "x"))


@settings(FEW, max_examples=FEW.max_examples // 2)
@given(value=st.sampled_from(CONFIGS), made=changes)
def test_a_configuration_is_read_or_refused(value: Any, made: Any) -> None:
    pytest.importorskip("diffusers")
    schedule = read_or_refused(lambda: schedule_from(as_mapping(mutated(value, made))), "")
    assert schedule is None or bool(schedule.at(schedule.T).sigma > 0)


@FEW
@given(made=byte_changes, compressed=st.booleans())
def test_arrays_are_read_or_refused(made: Any, compressed: bool, tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, other=np.zeros(2), x=np.ones((4, 3), np.float32))
    path.write_bytes(mutated_bytes(path.read_bytes(), made))
    found = read_or_refused(lambda: load_data(path, (3,)), "data.npz")
    assert found is None or found.shape[1:] == (3,)


@FEW
@given(made=byte_changes)
def test_a_picture_is_read_or_refused(made: Any, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "pictures" / "one.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (4, 4), 7).save(path)
    path.write_bytes(mutated_bytes(path.read_bytes(), made))
    found = read_or_refused(lambda: load_data(path.parent, (1, 4, 4)), "pictures")
    assert found is None or found.shape == (1, 1, 4, 4)


@FEW
@given(made=byte_changes, text=st.sampled_from(("ddim(eta=0.5)", "joint(parts=['tau'], pairs=12):3@karras(rho=7)")))
def test_a_text_is_parsed_or_refused(made: Any, text: str) -> None:
    mutated_text = mutated_bytes(text.encode(), made).decode("utf-8", "replace")
    for parse in (parse_call, parse_run):
        read_or_refused(lambda parse=parse: parse(mutated_text), "")


def test_an_array_that_is_much_larger_than_its_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr("time_tuner.data.SMALL", 1000)
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((10_000, 3)))
    with pytest.raises(ValueError, match=r"data\.npz.*would have \d+ bytes, more than"):
        load_data(tmp_path / "data.npz", (3,))

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from time_tuner import NoiseScheduleVP, exact, make_plan, plots
from time_tuner.plots import Strip


def pictures(n: int, channels: int = 1, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rendered(figure: object) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_holds_the_pixels_it_was_given(channels: int) -> None:
    images = pictures(5, channels, 4, 6)
    sheet = np.asarray(plots.sample_sheet(images, columns=3))
    larger = sheet.shape[0] // (2 * 6 - 2)
    assert sheet.shape[:2] == ((2 * 6 - 2) * larger, (3 * 8 - 2) * larger)
    small = sheet[::larger, ::larger].reshape(2 * 6 - 2, 3 * 8 - 2, channels)
    expected = ((images + 1) / 2 * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(small[:4, :6], expected[0])
    assert np.array_equal(small[6:, 8:14], expected[4])
    assert (small[6:, 16:] == 255).all()  # no sixth picture


def test_values_out_of_range_are_clipped() -> None:
    sheet = np.asarray(plots.sample_sheet(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)))
    assert set(np.unique(sheet)) == {0, 255}


def test_too_many_pictures_for_a_sheet_are_refused() -> None:
    plots.check_drawable(10_000, (1, 28, 28))
    with pytest.raises(ValueError, match="draw fewer"):
        plots.check_drawable(10_000, (3, 512, 512))
    with pytest.raises(ValueError, match=r"\.npz"):
        plots.check_drawable(1, (4, 7, 7))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2,)])
def test_numbers_and_points_are_drawable_however_many(shape: tuple[int, ...]) -> None:
    plots.check_drawable(10**6, shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_comparison_shows_every_row(channels: int) -> None:
    bright, dark = torch.ones(3, channels, 8, 8), -torch.ones(3, channels, 8, 8)
    figure = plots.image_grid([Strip("a", bright), Strip("b", dark, "note")], "Title", "more")
    black = (rendered(figure) < 10).all(2).sum()
    cell = (8 * round(plots.CELL / 8)) ** 2
    assert 0.8 * 3 * cell < black < 2 * 3 * cell
    assert [axes.get_ylabel() for axes in figure.axes] == ["a", "b\nnote"]
    taller = rendered(plots.image_grid([Strip(name, dark) for name in "abc"]))
    assert (taller < 10).all(2).sum() > 2.5 * black


@pytest.mark.parametrize("caption", ["reference, 100 calls", "unipc(order=3, corrector=False):5@kl_optimal(std=1)"])
def test_no_caption_is_cut_off(caption: str, tmp_path: Path) -> None:
    names = (caption, "ddim:5", "unipc:5", "plan.json", "ddim:20")
    figure = plots.image_grid([Strip(name, torch.zeros(10, 1, 28, 28), "distance 6.45") for name in names], "Title")
    plots.save(figure, tmp_path / "rows.png")
    with Image.open(tmp_path / "rows.png") as saved:
        edge = np.asarray(saved.convert("L"))
    assert all((side == 255).all() for side in (edge[0], edge[-1], edge[:, 0], edge[:, -1]))


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        plots.image_grid([])
    with pytest.raises(ValueError, match="'b'"):
        plots.image_grid([Strip("a", pictures(3)), Strip("b", pictures(2))])
    with pytest.raises(ValueError, match="shape"):
        plots.image_grid([Strip("a", pictures(3, 2))])


def test_the_density_of_an_exact_model_is_one_in_all(discrete: NoiseScheduleVP) -> None:
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    for model in (exact.Gaussian(5.0, 2.0), exact.Mixture([-3.0, 4.0], 0.5, [1, 3])):
        density = plots.target_density(model.eps(discrete))(x)
        assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-6)
        samples = model.sample(20_000)
        assert float(torch.trapezoid(density * x, x)) == pytest.approx(float(samples.mean()), abs=0.1)
    assert plots.target_density(exact.Gaussian(torch.zeros(2)).eps(discrete)) is None
    assert plots.target_density(lambda x, t, tau: x) is None


def test_a_histogram_has_the_samples_and_the_density() -> None:
    figure = plots.distributions({"few": torch.randn(500, 1)}, lambda x: torch.exp(-(x**2) / 2) / 2.5)
    (axes,) = figure.axes
    assert re.fullmatch(r"mean -?0\.\d\d\nstd [01]\.\d\d", axes.texts[0].get_text())
    area = sum(patch.get_width() * patch.get_height() for patch in axes.patches)
    assert area == pytest.approx(1)
    assert len(axes.lines) == 1
    assert not plots.distributions({"one": torch.zeros(1, 1)}).axes[0].lines


def test_histograms_stand_side_by_side_to_one_scale() -> None:
    wide, narrow = torch.linspace(-4, 4, 200), torch.linspace(-0.1, 0.1, 200)
    one, two = plots.distributions({"wide": wide, "narrow": narrow}).axes
    assert (one.get_title(), two.get_title()) == ("wide", "narrow")
    assert one.get_xlim() == two.get_xlim() and one.get_ylim() == two.get_ylim()
    with pytest.raises(ValueError, match="at least one"):
        plots.distributions({})


def test_points_are_scattered_to_one_scale() -> None:
    wide, narrow = torch.linspace(-4, 4, 200).expand(2, -1).T, torch.zeros(3, 2)
    one, two = plots.distributions({"wide": wide, "narrow": narrow}).axes
    assert np.allclose(one.lines[0].get_xydata(), wide)
    assert one.get_xlim() == two.get_xlim() and one.get_ylim() == two.get_ylim()


def test_corrections_are_a_heat_map_beside_the_times(discrete: NoiseScheduleVP) -> None:
    corrections = torch.arange(16.0, dtype=torch.float64).view(4, 4).tril(-1)
    plan = make_plan("ddim", discrete, 4)
    *_, heat, bar = plots.plot_plan({"untuned": plan, "tuned": plan.with_corrections(corrections)}).axes
    shown = heat.images[0].get_array()
    assert shown.mask.tolist() == (~torch.ones(4, 4, dtype=torch.bool).tril(-1)).tolist()
    assert np.array_equal(shown.filled(0), corrections.numpy())
    assert "tuned" in heat.get_title() and "C_{kj}" in bar.get_ylabel()
    assert heat.get_xlim() == heat.get_ylim()[::-1] == (-0.5, 3.5)
    assert len(plots.plot_plan(plan).axes) == 2


def test_tau_is_drawn_against_t(discrete: NoiseScheduleVP) -> None:
    plan = make_plan("ddim", discrete, 4)
    tuned = plan.with_tau(plan.t[:-1] * torch.tensor([1, 0.9, 1.1, 1]))
    times, ratios = plots.plot_plan({"untuned": plan, "tuned": tuned}).axes
    assert [label.get_text() for label in times.get_legend().get_texts()][1:] == ["untuned", "tuned"]
    assert np.allclose(times.lines[2].get_ydata(), tuned.tau)
    assert np.allclose(ratios.lines[2].get_ydata(), [1, 0.9, 1.1, 1])
    assert rendered(plots.plot_plan(plan)).std() > 1
    with pytest.raises(ValueError, match="at least one plan"):
        plots.plot_plan({})


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_figures_are_saved_in_the_format_of_their_name(
    tmp_path: Path, discrete: NoiseScheduleVP, name: str, start: bytes
) -> None:
    plots.save(plots.plot_plan(make_plan("ddim", discrete, 4)), tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_notebooks_show_figures() -> None:
    figure = plots.image_grid([Strip("digits", pictures(3))])
    shown = Image.open(io.BytesIO(figure._repr_png_()))
    assert shown.format == "PNG" and shown.width > 100


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        plots.save(plots.sample_sheet(pictures(2)), tmp_path / "file" / "a.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_is_white_where_a_row_equals_the_reference_and_darker_the_more_it_differs(channels: int) -> None:
    dark = -torch.ones(2, channels, 8, 8)
    half, whole = torch.zeros_like(dark), torch.ones_like(dark)
    rows = [Strip(name, images, f"note {name}") for name, images in (("same", dark), ("half", half), ("whole", whole))]
    figure = plots.image_grid([*rows, Strip("reference", dark)], "Title", "more", reference=3)
    captions = [axes.get_ylabel() for axes in figure.axes]
    assert captions == ["same", "note same", "half", "note half", "whole", "note whole", "reference"]
    maps = [axes.images[0] for axes in figure.axes[1:6:2]]
    inner = [float(np.asarray(one.get_array())[3, 3]) for one in maps]
    assert inner == [0.0, 0.5, 1.0]
    lightness = [
        float(np.dot(one.cmap(value)[:3], [0.299, 0.587, 0.114])) for one, value in zip(maps, inner, strict=True)
    ]
    assert lightness[0] > 0.999, "white"
    assert lightness[0] - 0.2 > lightness[1] and lightness[1] - 0.2 > lightness[2], "in gray, too"
    for number in (-1, 4):
        with pytest.raises(ValueError, match="reference must be the number of a row"):
            plots.image_grid([Strip("a", dark)], reference=number)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_has_every_frame_and_holds_the_last(tmp_path: Path, suffix: str) -> None:
    frames = [plots.image_grid([Strip("a", torch.full((2, 1, 8, 8), value))]) for value in (-1.0, 0.0, 1.0)]
    path = tmp_path / f"moving{suffix}"
    plots.save_animation(frames, path, seconds=0.5)
    with Image.open(path) as moving:
        assert moving.n_frames == 3
        durations, middles = [], []
        for k in range(3):
            moving.seek(k)
            moving.load()
            durations.append(moving.info["duration"])
            middles.append(int((np.asarray(moving.convert("L")) < 10).sum()))
    assert durations == [500, 500, 1500]
    assert middles[0] > middles[1], "black pictures, then gray ones"
    with pytest.raises(ValueError, match="suffix of an animation"):
        plots.save_animation(frames, tmp_path / "moving.mp4")
    with pytest.raises(ValueError, match="at least one"):
        plots.save_animation([], path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]

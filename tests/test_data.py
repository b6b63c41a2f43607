import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from time_tuner._files import replacing
from time_tuner.data import check_writable, load_data, save_arrays

GRAY = (1, 4, 6)


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(shape)


def test_a_folder_of_pictures_is_read_in_order_with_subfolders(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.PNG")
    Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).save(tmp_path / "more" / "c.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    loaded = load_data(tmp_path, GRAY)
    assert loaded.dtype == torch.float32
    assert loaded.shape == (3, *GRAY)
    assert loaded.flatten(1).mean(1).tolist() == pytest.approx([-1, 1, 1], abs=0.02)


def test_pictures_of_one_size_and_the_models_ratio_are_resized_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, value in enumerate((0, 100, 255)):
        Image.fromarray(np.full((8, 12), value, np.uint8)).save(tmp_path / f"{i}.png")
    with caplog.at_level(logging.INFO, "time_tuner"):
        loaded = load_data(tmp_path, GRAY, most=2)
    assert loaded.shape == (2, *GRAY)
    assert "2 of 3 pictures" in caplog.text and "resized from 12 x 8" in caplog.text


@pytest.mark.parametrize("other", [(8, 12), (9, 9), (6, 4)])
def test_pictures_of_several_sizes_are_refused_by_name(tmp_path: Path, other: tuple[int, int]) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros(other, np.uint8)).save(tmp_path / "comparison.png")
    with pytest.raises(ValueError, match=rf"one size.*6 x 4.*comparison\.png' is {other[1]} x {other[0]}"):
        load_data(tmp_path, GRAY)


def test_pixels_and_channels_stay_where_they_are(tmp_path: Path) -> None:
    pixels = ramp(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_data(tmp_path, (3, 4, 6))
    expected = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(loaded[0], expected)


def test_sixteen_bit_images_keep_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535], [32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert load_data(tmp_path, (1, 2, 2)).flatten().tolist() == pytest.approx([-1, 1, 0, 1], abs=0.01)


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((1, 4, 6), (5, 1, 4, 6)), ((1, 4, 6), (5, 4, 6)), ((3, 4, 6), (5, 4, 6, 3)), ((1,), (5,)), ((1,), (5, 1))],
)
def test_an_npz_is_found_by_the_shape_of_what_it_holds(
    tmp_path: Path, shape: tuple[int, ...], stored: tuple[int, ...]
) -> None:
    values = np.linspace(-1, 1, int(np.prod(stored))).reshape(stored)
    np.savez(tmp_path / "x.npz", other=np.zeros((5, 2, 2)), wanted=values)
    loaded = load_data(tmp_path / "x.npz", shape)
    expected = torch.from_numpy(values).float()
    if stored[-1] == 3:
        expected = expected.permute(0, 3, 1, 2)
    assert torch.equal(loaded, expected.reshape(5, *shape))


def test_bytes_are_scaled_to_plus_minus_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.array([[[0, 255]]], np.uint8))
    assert load_data(tmp_path / "x.npz", (1, 1, 2)).flatten().tolist() == [-1, 1]


def test_what_is_taken_is_spread_over_what_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.arange(100.0))
    assert load_data(tmp_path / "x.npz", (1,), most=4).flatten().tolist() == [0, 25, 50, 75]


@pytest.mark.parametrize("shape", [GRAY, (3, 4, 6), (4, 7, 7), (2,)])
@pytest.mark.parametrize("largest", [1.0, 30.0])
def test_saved_samples_are_data_whatever_their_range(tmp_path: Path, shape: tuple[int, ...], largest: float) -> None:
    samples = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    samples *= largest / samples.abs().max()
    save_arrays({"samples": samples, "pictures": torch.zeros(3, 1, 28, 28)}, tmp_path / "new" / "s.npz")
    assert torch.equal(load_data(tmp_path / "new" / "s.npz", shape), samples)


def write_pickle(path: Path) -> None:
    np.savez(path, np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("write", "shape", "message"),
    [
        (lambda path: None, GRAY, "does not exist"),
        (lambda path: path.write_bytes(b"no archive"), GRAY, r"x\.npz"),
        (lambda path: path.write_bytes(b""), GRAY, r"x\.npz"),
        (write_pickle, GRAY, "allow_pickle"),
        (lambda path: np.savez(path, np.zeros((0, 4, 6))), GRAY, r"no array of shape \(n, 1, 4, 6\)"),
        (lambda path: np.savez(path, np.zeros((2, 4, 7))), GRAY, r"only arr_0 \(2, 4, 7\)"),
        (lambda path: np.savez(path, np.zeros((2, 4, 6), np.int64)), GRAY, "uint8"),
        (lambda path: np.savez(path, np.full((2, 4, 6), 255.0)), GRAY, r"in \[-1, 1\]"),
        (lambda path: path.mkdir(), GRAY, "holds no pictures"),
        (lambda path: path.mkdir(), (1,), "no pictures"),
        (lambda path: [path.mkdir(), (path / "a.png").write_bytes(b"no image")], GRAY, r"a\.png"),
    ],
)
def test_unusable_data_is_refused_by_name(tmp_path: Path, write: object, shape: tuple[int, ...], message: str) -> None:
    write(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path / "x.npz", shape)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"folder of pictures or an \.npz file"):
        load_data(tmp_path / "x.csv", GRAY)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written_is_refused_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "x.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "x.png", tmp_path / "file" / "deeper" / "x.png"):
        with pytest.raises(ValueError, match="name"):
            check_writable(path)

import numpy as np
import pytest

from trackstar.storage.errors import InputError
from trackstar.tasks.mnist import data as mnist_data
from trackstar.tasks.mnist.data import ImagesRequest, load_images, read_images, write_images
from trackstar.tasks.runtime.stage import build


def write_npz(path, **changes):
    generator = np.random.default_rng(0)
    arrays = {"X": generator.integers(0, 256, (300, 5, 4), dtype=np.uint8), "y": np.sort(np.arange(300) % 10)}
    np.savez(path, **(arrays | changes))
    return str(path)


def test_the_bundled_digits_become_brightness_between_zero_and_one(tmp_path):
    artifact = build(write_images.body, ImagesRequest(index=str(tmp_path), data="digits", num_images=500))
    brightness, labels = read_images(artifact, str(tmp_path))
    assert brightness.shape == (500, 8, 8)
    assert (brightness.min(), brightness.max()) == (0, 1)
    assert set(labels) == set(range(10))


def test_a_file_sorted_by_class_comes_out_shuffled_and_each_image_keeps_its_label(tmp_path):
    path = write_npz(tmp_path / "a.npz", X=np.repeat(np.sort(np.arange(300) % 10) + 1, 4).reshape(300, 2, 2))
    artifact = build(write_images.body, ImagesRequest(index=str(tmp_path), data=path, num_images=10_000))
    brightness, labels = read_images(artifact, str(tmp_path))
    assert len(set(labels[:30])) > 5
    np.testing.assert_allclose(brightness[:, 0, 0] * 10, labels + 1, rtol=1e-6)  # float32


def test_other_bytes_in_the_file_are_other_images(tmp_path):
    request = ImagesRequest(index=str(tmp_path), data=write_npz(tmp_path / "a.npz"), num_images=300)
    before = request.cache_key
    write_npz(tmp_path / "a.npz", X=np.ones((300, 5, 4), np.uint8))
    assert request.cache_key != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.ones((300, 20))}, r"expected X \[n h w\]"),
        ({"y": np.arange(299)}, r"expected X \[n h w\]"),
        ({"y": np.arange(300) % 9}, "expected every digit"),
        ({"X": np.zeros((300, 5, 4))}, "only black"),
        ({"X": np.full((300, 5, 4), np.nan)}, "outside"),
        ({"X": np.ones((20, 5, 4)), "y": np.arange(20) % 10}, "at least 200"),
        ({"y": np.array([object()] * 300)}, "cannot be read"),
    ],
)
def test_a_file_that_is_no_set_of_digits_is_refused_with_what_was_expected(tmp_path, changes, message):
    request = ImagesRequest(index=str(tmp_path), data=write_npz(tmp_path / "a.npz", **changes), num_images=300)
    with pytest.raises(InputError, match=message):
        build(write_images.body, request)


def test_a_file_without_the_arrays_and_a_missing_file_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    (tmp_path / "b.npz").write_text("no archive")
    for name in ("a.npz", "b.npz", "absent.npz"):
        with pytest.raises(InputError, match=name):
            load_images(str(tmp_path / name))


def test_without_a_network_mnist_says_what_to_do_instead(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(mnist_data, "fetch_openml", unreachable)
    with pytest.raises(InputError, match="pass --data digits"):
        load_images("mnist")

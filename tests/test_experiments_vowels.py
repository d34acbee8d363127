"""The shipped data are the published ones."""

import numpy as np
import pytest

from experiments import vowels
from experiments.data.convert_japanese_vowels import read_ts

FIRST_FRAME = [1.860936, -0.207383, 0.261557, -0.214562, -0.171253, -0.118167]
TEST_UTTERANCES = [31, 35, 88, 44, 29, 24, 40, 50, 29]


def test_sizes_are_the_published_ones():
    train, test = vowels.load()
    assert train.frames.shape == (270, 26, 12)
    assert test.frames.shape == (370, 29, 12)
    assert train.lengths.min() == test.lengths.min() == 7
    assert np.bincount(train.speakers).tolist() == [30] * 9
    assert np.bincount(test.speakers).tolist() == TEST_UTTERANCES


def test_numbers_are_the_published_ones():
    with np.load(vowels.FILE) as arrays:
        actual = arrays["train_frames"][0, :6]
    np.testing.assert_array_equal(actual, np.float32(FIRST_FRAME))


def test_training_frames_are_normalised_and_padding_is_zero():
    train, _ = vowels.load()
    inside = np.arange(train.frames.shape[1]) < train.lengths[:, None]
    frames = train.frames[inside].astype(np.float64)
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(axis=0), 1, rtol=1e-5)
    assert (train.frames[~inside] == 0).all()


def test_split_holds_out_the_same_number_of_every_speaker():
    speakers = vowels.load()[0].speakers
    fit, valid = vowels.split(speakers, 6, (0, 1))
    assert np.bincount(speakers[valid]).tolist() == [6] * 9
    assert sorted([*fit, *valid]) == list(range(270))
    other = vowels.split(speakers, 6, (0, 2))[1]
    assert not np.array_equal(valid, other)


def test_ts_reader(tmp_path):
    path = tmp_path / "x.ts"
    path.write_text("@problemName x\n@data\n1,2,3:4,5,6:1\n7:8:9\n")
    utterances, speakers = read_ts(path)
    np.testing.assert_array_equal(utterances[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(utterances[1], [[7, 8]])
    assert speakers.tolist() == [0, 8]


@pytest.mark.parametrize("name", ["train", "test"])
def test_lengths_and_frames_agree(name):
    with np.load(vowels.FILE) as arrays:
        lengths = arrays[f"{name}_lengths"].astype(int)
        assert lengths.sum() == len(arrays[f"{name}_frames"])

"""Texts become the tokens that the papers count, and no token is lost or doubled."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.config import ConfigError
from experiments.language.config import Task, Train
from experiments.language.corpus import (
    load,
    longest,
    training_rows,
    whole_rows,
    windows,
)

PTB = os.environ.get("PTB")  # a folder of the Penn Treebank, which is not shipped
LINES = {
    "train": " the cat <unk> N \n the cat sat \n a cat \n",
    "valid": " the dog sat \n",
    "test": " a cat \n",
}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, LINES)


def write(folder, texts):
    """Writes the texts as they are, whatever the platform's newline."""
    for split, text in texts.items():
        (folder / f"ptb.{split}.txt").write_bytes(text.encode())
    return folder


def tokens(corpus, split):
    return [corpus.vocabulary[number] for number in getattr(corpus, split)]


def test_words_are_numbered_by_how_often_they_come(folder):
    corpus = load(Task("words", str(folder)))
    assert corpus.vocabulary == ("<eos>", "cat", "the", "<unk>", "N", "a", "sat")
    assert corpus.train.tolist() == [2, 1, 3, 4, 0, 2, 1, 6, 0, 5, 1, 0]


def test_a_word_outside_the_vocabulary_is_unknown(folder):
    corpus = load(Task("words", str(folder)))
    assert tokens(corpus, "valid") == ["the", "<unk>", "sat", "<eos>"]


def test_spaces_around_every_line_are_not_part_of_it(folder):
    """As in the Penn Treebank."""
    (folder / "ptb.valid.txt").write_text(" the cat \n")
    corpus = load(Task("characters", str(folder)))
    assert tokens(corpus, "test") == [*"a cat", "<eos>"]
    assert tokens(corpus, "train")[:12] == [*"the cat <unk"]
    (folder / "ptb.valid.txt").write_text("   the cat  \n")
    corpus = load(Task("characters", str(folder)))
    assert tokens(corpus, "valid") == [*"  the cat ", "<eos>"]


# Of all that str.splitlines ends a line at, or str.split takes for a space.
SEPARATORS = "\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029\xa0\u2003\u3000\t"
CODE = "def f(x):\n    return  a_b\t \n\n   # ends here "


def characters(tmp_path, text):
    """The tokens of a text of characters, in three files that are the same."""
    write(tmp_path, dict.fromkeys(LINES, text))
    corpus = load(Task("characters", str(tmp_path)))
    assert tokens(corpus, "train") == tokens(corpus, "test")
    return tokens(corpus, "valid")


@pytest.mark.parametrize("text", [CODE, f"a{SEPARATORS}b", " a \nb ", "\ufeffa\ufeff"])
def test_characters_are_those_of_the_file_and_only_newlines_end_lines(tmp_path, text):
    expected = [*text.removeprefix("\ufeff"), "\n"]
    found = characters(tmp_path, text)
    assert found == ["<eos>" if c == "\n" else c for c in expected]
    assert characters(tmp_path, text + "\n") == found


def test_a_newline_of_windows_is_a_newline(tmp_path):
    assert characters(tmp_path, "a\r\n\r\nb\r\n") == [
        *"a",
        "<eos>",
        "<eos>",
        "b",
        "<eos>",
    ]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_only_newlines_end_lines_of_words(tmp_path, separator):
    write(tmp_path, dict.fromkeys(LINES, f"a{separator}b\n\na\n"))
    corpus = load(Task("words", str(tmp_path)))
    assert tokens(corpus, "train") == ["a", "b", "<eos>", "<eos>", "a", "<eos>"]


@pytest.mark.parametrize("split", LINES)
def test_a_word_that_ends_lines_is_refused(folder, split):
    (folder / f"ptb.{split}.txt").write_text("the cat\nthe <eos> cat\n")
    with pytest.raises(ConfigError, match=rf"ptb.{split}.txt:2: the word '<eos>' stan"):
        load(Task("words", str(folder)))
    characters(folder, "a <eos> b")  # five characters, of which none ends a line


def test_the_fingerprint_is_of_the_tokens_and_of_where_the_parts_end(tmp_path):
    texts = [
        {"train": "a b\n", "valid": "a a\n", "test": "b\n"},
        {"train": "a c\n", "valid": "a a\n", "test": "c\n"},  # the same ids
        {"train": "a b\n", "valid": "a\n", "test": "a\nb\n"},
        {"train": "a b\n", "valid": "a b\n", "test": "b\n"},
    ]
    corpora = [load(Task("words", str(write(tmp_path, each)))) for each in texts]
    assert corpora[0].train.tolist() == corpora[1].train.tolist()
    assert len({corpus.fingerprint for corpus in corpora}) == 4
    again = corpora[0]._replace(test=corpora[0].test.astype(np.int64))
    assert again.fingerprint == corpora[0].fingerprint == "77e769009c3c9987"


def test_a_vocabulary_survives_json(tmp_path):
    write(tmp_path, dict.fromkeys(LINES, 'é " \\ \u2028\U0001f600'))
    vocabulary = load(Task("characters", str(tmp_path))).vocabulary
    assert tuple(json.loads(json.dumps(vocabulary))) == vocabulary


@pytest.mark.parametrize(
    ("split", "text", "message"),
    [
        ("valid", None, r"must be a folder with three .* named after valid: none"),
        ("test", " \n", r"ptb.test.txt: must be a text, got only whitespace"),
        ("train", b"\xff", r"ptb.train.txt: must be UTF-8 text"),
    ],
)
def test_files_that_are_no_corpus_are_refused(folder, split, text, message):
    path = folder / f"ptb.{split}.txt"
    path.unlink() if text is None else path.write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    with pytest.raises(ConfigError, match=message):
        load(Task("words", str(folder)))


@pytest.mark.parametrize("data", ["", "no/such/folder"])
def test_a_missing_folder_is_named_with_what_belongs_there(data):
    with pytest.raises(ConfigError, match=r"task.data: must be a folder .*ptb\.train"):
        load(Task("words", data))


def test_a_character_that_training_lacks_is_named(folder):
    with pytest.raises(ConfigError, match="valid text has 'd', which is not in the tr"):
        load(Task("characters", str(folder)))


def test_two_files_of_a_split_are_refused(folder):
    (folder / "other.test.txt").write_text("a\n")
    with pytest.raises(ConfigError, match=r"named after test: other.test.txt, ptb"):
        load(Task("words", str(folder)))


@pytest.mark.skipif(not PTB, reason="PTB names no folder of the Penn Treebank")
@pytest.mark.parametrize(
    ("name", "size", "counts", "start"),
    [
        ("words", 10_000, (929_589, 73_760, 82_430), "aer banknote berlitz calloway"),
        ("characters", 50, (5_017_482, 393_042, 442_423), "aer banknote berlitz"),
    ],
)
def test_counts_are_the_published_ones(name, size, counts, start):
    corpus = load(Task(name, PTB))
    assert len(corpus.vocabulary) == size
    assert tuple(len(part) for part in corpus[1:]) == counts
    glue = " " if name == "words" else ""
    assert glue.join(tokens(corpus, "train")).startswith(start)
    written = Path(PTB, "ptb.test.txt").read_text(encoding="utf-8")
    text = glue.join(tokens(corpus, "test")).replace("<eos>", "\n")
    assert [n.strip() for n in text.splitlines()] == [
        " ".join(line.split()) for line in written.splitlines()
    ]


def test_each_training_row_continues_the_one_before():
    rows = training_rows(np.arange(11, dtype=np.int32), 3)
    assert rows.inputs.tolist() == [[0, 1], [3, 4], [6, 7]]
    assert rows.targets.tolist() == [[1, 2], [4, 5], [7, 8]]


@pytest.mark.parametrize(("batch", "window"), [(1, 4), (3, 4), (4, 7), (5, 1)])
def test_whole_rows_predict_every_token_but_the_first_once(batch, window):
    text = np.arange(100, 123, dtype=np.int32)
    rows = whole_rows(text, batch, window)
    assert rows.inputs.shape[1] % window == 0
    counted = rows.weights > 0
    assert rows.targets[counted].tolist() == text[1:].tolist()
    np.testing.assert_array_equal(rows.inputs[counted], rows.targets[counted] - 1)


def test_too_many_rows_are_refused():
    with pytest.raises(ConfigError, match=r"train.batch: must leave each row two"):
        training_rows(np.arange(11, dtype=np.int32), 6)


def test_windows_follow_one_another_and_only_full_ones_count():
    found = windows(Train(window=4), 14, (0,))
    assert found.starts.tolist() == [0, 4, 8]
    assert found.lengths.tolist() == [4, 4, 4]


def test_varied_windows_cover_the_rows_and_are_those_of_the_seed():
    train = Train(window=70, vary_window=True)
    found, again, other = (
        windows(train, 5_000, seed) for seed in ((0, 1), (0, 1), (0, 2))
    )
    assert found.starts[0] == 0
    np.testing.assert_array_equal(found.starts[1:], np.cumsum(found.lengths)[:-1])
    assert found.lengths.sum() == 5_000
    assert found.lengths.max() <= longest(train) == 90
    np.testing.assert_array_equal(found.lengths, again.lengths)
    assert found.lengths.tolist() != other.lengths.tolist()


def test_lengths_of_varied_windows_have_the_distribution_of_the_paper():
    """Normal(70, 5) for 95 %, Normal(35, 5) for 5 %, rounded towards zero."""
    lengths = windows(Train(window=70, vary_window=True), 10**6, (3,)).lengths[:-1]
    short = lengths < 52
    count = len(lengths)
    assert abs(short.sum() - 0.05 * count) < 5 * np.sqrt(0.05 * 0.95 * count)
    for part, mean in ((lengths[~short], 69.5), (lengths[short], 34.5)):
        assert abs(part.mean() - mean) < 5 * 5 / np.sqrt(len(part))
        assert part.std() == pytest.approx(5, rel=5 / np.sqrt(2 * len(part)))


def test_shuffled_windows_are_read_once_from_a_random_offset():
    train = Train(window=7, carry=False, shuffle=True)
    offsets, orders = set(), set()
    for epoch in range(60):
        found = windows(train, 50, (0, 0, epoch))
        first = min(found.starts)
        offsets.add(int(first))
        orders.add(tuple(found.starts - first))
        assert sorted(found.starts) == list(range(first, 50 - 6, 7))
        assert set(found.lengths) == {7}
        again = windows(train, 50, (0, 0, epoch))
        np.testing.assert_array_equal(found.starts, again.starts)
    assert offsets == set(range(7))
    assert len(orders) > 50

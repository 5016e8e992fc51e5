"""Translation data: files, vocabularies, both directions."""

import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from dpq_ref.datasets import Buckets, load_translation

STEMS = ("train", "tst2012", "tst2013", "vocab")
SYMBOLS = "<unk>\n<s>\n</s>\n"


def write(folder, **files):
    """Write files given as name=text, where __ stands for a point; those that are not given are small."""
    small = {f"{stem}__{lang}": "a\n" for stem in STEMS for lang in ("en", "vi")}
    for name, text in (small | files).items():
        path = folder / name.replace("__", ".")
        packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(text.encode()))
    return folder


def test_by_hand(tmp_path):
    write(
        tmp_path,
        vocab__en=SYMBOLS + "the\n&apos;s\n",
        vocab__vi="một\nhai\n",
        train__en=" the cat &apos;s\n\nthe <s> &apos;S",
        train__vi="hai  một \nba\nx",
        tst2012__en="cat\r\n",
        tst2012__vi="một\u2028hai\r\n",
    )
    data = load_translation(tmp_path)
    assert data.source_vocabulary == ("<unk>", "<s>", "</s>", "the", "&apos;s")
    assert data.target_vocabulary == ("<unk>", "<s>", "</s>", "một", "hai")
    assert data.train.source.tokens.tolist() == [3, 0, 4, 3, 1, 0]
    assert data.train.source.offsets.tolist() == [0, 3, 3, 6]
    assert data.train.target.tokens.tolist() == [4, 3, 0, 0]
    assert data.train.references == ("hai  một ", "ba", "x")
    assert data.validation.references == ("một\u2028hai",)
    assert data.validation.target.tokens.tolist() == [3, 4]
    assert data.source_counts.tolist() == [2, 1, 0, 2, 1]
    assert data.provenance["pairs"] == {"train": 3, "validation": 1, "test": 1}
    assert data.provenance["unknown"] == {"train": [2, 2], "validation": [1, 0], "test": [1, 1]}
    assert data.name == tmp_path.name

    back = load_translation(tmp_path, "vi", "en")
    assert back.source_vocabulary == data.target_vocabulary
    assert back.train.target.tokens.tolist() == data.train.source.tokens.tolist()
    assert back.train.references[0] == " the cat &apos;s"
    assert back.source_counts.tolist() == [2, 0, 0, 1, 1]
    assert back.sha256 != data.sha256 == load_translation(str(tmp_path)).sha256


def test_packing(tmp_path):
    plain = load_translation(write(tmp_path, vocab__en="a\nb\n", train__en="b a\n", train__vi="a\n"))
    for number, file in enumerate(sorted(tmp_path.iterdir())):
        packing, pack = [(".gz", gzip.compress), (".xz", lzma.compress)][number % 2]
        file.with_name(file.name + packing).write_bytes(pack(file.read_bytes()))
        file.unlink()
    packed = load_translation(tmp_path)
    assert packed.sha256 == plain.sha256
    assert set(packed.provenance["sha256"]) == {file.name for file in tmp_path.iterdir()}


def test_missing_and_several_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        load_translation(tmp_path / "nowhere")
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file vocab\.de, plain, \.gz or \.xz"):
        load_translation(tmp_path, "de", "en")
    write(tmp_path, tst2012__vi__xz="a\n")
    with pytest.raises(ValueError, match=r"which file: tst2012\.vi, tst2012\.vi\.xz\?"):
        load_translation(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train__vi": "a\nb\n"}, r"train\.en has 1 lines, train\.vi has 2; both take the same number"),
        ({"tst2013__en": ""}, r"tst2013\.en has 0 lines, tst2013\.vi has 1"),
        ({"vocab__en": "a\n\nb\n"}, r"vocab\.en, line 2: no word"),
        ({"vocab__en": SYMBOLS + "a\nb\na\n"}, r"vocab\.en: 'a' comes 2 times"),
        (
            {"vocab__vi": "<s>\n</s>\n<unk>\n"},
            r"vocab\.vi: '<unk>' comes 2 times; takes each word once",
        ),
    ],
)
def test_bad_files(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load_translation(write(tmp_path, **files))


def test_sha256_says_equal_data(tmp_path):
    digests = {load_translation(write(tmp_path)).sha256}
    for file in ("train__en", "tst2012__vi", "tst2013__en", "vocab__vi"):
        digests.add(load_translation(write(tmp_path, **{file: "b\n"})).sha256)
    # Both words are unknown, but the references differ.
    digests.add(load_translation(write(tmp_path, tst2012__vi="c\n")).sha256)
    assert len(digests) == 6


@pytest.mark.skipif("DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA names no folder of data")
def test_iwslt15():
    data = load_translation(Path(os.environ["DPQ_REF_DATA"], "iwslt15-en-vi"))
    assert (len(data.source_vocabulary), len(data.target_vocabulary)) == (17_191, 7_709)
    splits = (data.train, data.validation, data.test)
    assert [len(s) for s in splits] == [133_166, 1_553, 1_268]
    assert [len(s.source.tokens) for s in splits] == [2_706_253, 27_983, 26_728]
    assert [len(s.target.tokens) for s in splits] == [3_311_433, 34_297, 33_682]
    assert (data.train.source.lengths.max(), data.train.target.lengths.max()) == (628, 850)
    unknown = np.array(data.provenance["unknown"]["train"]) / [2_706_253, 3_311_433]
    np.testing.assert_allclose(1 - unknown, [0.977, 0.991], atol=5e-4)
    assert data.source_counts[3:].min() >= 5  # the vocabulary is every type that comes five times
    buckets = Buckets(data.train, 128)
    assert buckets.batch(0).inputs.shape[1] <= 51

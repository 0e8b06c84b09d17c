import json

import pytest
from upath import UPath

from trackstar.storage.errors import CorruptionError, InputError, MissingError
from trackstar.storage.index_file import index_bytes, read_index_file

VALUE = {"engine": {"seed": 0, "damping": 0.1}, "shards": [{"name": "shards/é", "digest": "00", "facts": {}}]}


@pytest.fixture
def index(tmp_path):
    (tmp_path / "index.json").write_bytes(index_bytes(VALUE))
    return UPath(tmp_path)


def test_an_index_file_says_what_was_written_and_is_json_with_a_format(index):
    assert read_index_file(index) == VALUE
    assert json.loads((index / "index.json").read_bytes())["format"] == 2


def test_every_flipped_bit_and_every_cut_of_an_index_file_is_found(index):
    path = index / "index.json"
    content = path.read_bytes()
    flips = (
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(len(content))
        for bit in range(8)
    )
    cuts = (content[:size] for size in range(len(content)))
    for damaged in (*flips, *cuts):
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=r"index.json .*; run `trackstar index` again"):
            read_index_file(index)


def test_an_index_of_the_time_before_formats_gets_one_sentence(index):
    (index / "index.json").write_text(json.dumps(VALUE))
    with pytest.raises(InputError, match=r"format 1, written by an earlier version .* reads format 2; build it again"):
        read_index_file(index)


def test_an_index_of_a_format_to_come_gets_one_sentence(index, monkeypatch):
    monkeypatch.setattr("trackstar.storage.index_file.FORMAT", 1)
    with pytest.raises(InputError, match=r"format 2, written by another version .* reads format 1"):
        read_index_file(index)


def test_where_there_is_no_index_file_there_is_no_index(tmp_path):
    with pytest.raises(MissingError, match="holds no finished index"):
        read_index_file(UPath(tmp_path))

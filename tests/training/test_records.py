"""Records of JSONL, parquet and datasets, and errors that name the place."""

import json
import sys

import pytest

from hybridize.core.errors import MachineError, RunError
from hybridize.core.stored_text import StoredText
from hybridize.training.records import read_records
from tests.training.text_files import one_pass, open_rows, write

CHATS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": letter}]}
    for letter in "bcd"
]


def read(path):
    return list(read_records(StoredText.find(str(path))))


def test_empty_lines_are_passed_over_and_the_last_line_needs_no_end(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}')
    assert read(path) == [
        (f"data {path}, line 1", {"text": "a"}),
        (f"data {path}, line 3", {"text": "b"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON (Expecting value at column 9). Cor"),
        (b'{"text": "a"}\n{"text": "b', "line 2 is not JSON"),
        (b'["a"]\n', 'line 1 is ["a"], which is no object. Write it like {"text"'),
        (b'{"text": "\xff"}\n', "line 1 is not UTF-8 text. Save the file as UTF-8."),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        read(path)
    assert str(caught.value).startswith(f"data {path}, {message}")


def test_a_file_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"none\.jsonl does not exist, seen from .*\. Check the"):
        open_rows(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(RunError, match=r"empty\.jsonl has no record"):
        open_rows(tmp_path / "empty.jsonl")


def test_a_package_that_is_missing_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(MachineError, match=r'needs the package pyarrow.*"hybridize\[data\]"'):
        read(tmp_path / "x.parquet")


class TestWithDatasets:
    """All that needs the extra `data`."""

    @pytest.fixture(autouse=True)
    def datasets(self, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()
        return datasets

    @pytest.fixture
    def jsonl(self, tmp_path):
        return write(tmp_path / "chats.jsonl", CHATS)

    def test_parquet_holds_the_rows_of_the_same_jsonl(self, datasets, jsonl, tmp_path):
        parquet = tmp_path / "chats.parquet"
        datasets.Dataset.from_list(CHATS).to_parquet(parquet)
        assert one_pass(open_rows(parquet)) == one_pass(open_rows(jsonl))
        assert read(parquet)[2][0] == f"data {parquet}, row 3"

    def test_a_saved_dataset_holds_them_too(self, datasets, jsonl, tmp_path):
        rows = datasets.Dataset.from_list(CHATS)
        rows.save_to_disk(tmp_path / "one")
        assert one_pass(open_rows(tmp_path / "one")) == one_pass(open_rows(jsonl))
        datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "splits")
        with pytest.raises(RunError, match="it has the splits test, not train"):
            read(tmp_path / "splits")
        source = StoredText(kind="datasets", name=str(tmp_path / "splits"), split="test")
        place, _ = next(iter(read_records(source)))
        assert place.endswith("splits, split test, row 1")

    def test_a_folder_of_files_is_a_dataset(self, tmp_path, monkeypatch, datasets):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "folder").mkdir()
        write(tmp_path / "folder" / "train.jsonl", [{"text": "a b"}, {"text": "c"}])
        assert [record for _, record in read(tmp_path / "folder")] == [
            {"text": "a b"},
            {"text": "c"},
        ]

    def test_what_is_no_parquet_is_said(self, tmp_path):
        path = tmp_path / "bad.parquet"
        path.write_text(json.dumps(CHATS))
        with pytest.raises(
            RunError, match=r"cannot be read as parquet after row 0 .*Check the file"
        ):
            read(path)

    def test_a_name_that_is_not_on_the_hub_is_said(self, tmp_path):
        with pytest.raises(RunError, match="nobody/nothing: no dataset can be read on the hub"):
            read("nobody/nothing")

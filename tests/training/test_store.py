"""Tokens are kept once, found again while they hold, and made anew in words when they do not."""

import json
import os
import pickle

import numpy as np
import pytest
from tokenizers import normalizers

from hybridize.core.errors import MachineError, RunError
from hybridize.core.stored_text import StoredText
from hybridize.training.store import TokenStore
from tests.training.chats import byte_tokenizer
from tests.training.text_files import open_rows, write
from tests.training.tiny import WordTokenizer

RECORDS = [{"text": "a b c"}, {"text": ""}, {"text": "d"}, {"text": "a b c"}]


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "texts.jsonl", RECORDS)


def open_store(path, tokenizer=None, cache=None):
    return TokenStore.open(StoredText.find(str(path)), tokenizer or WordTokenizer(), cache)


def test_a_store_holds_tokens_masks_and_the_bounds_of_documents(path, tmp_path):
    store = open_store(path, cache=tmp_path / "cache")
    assert isinstance(store.tokens_T, np.memmap) and store.tokens_T.dtype == np.uint16
    assert store.starts_D.tolist() == [0, 5, 8, 13]
    assert store.counted_T.tolist() == [False, *[True] * 4, False, *[True] * 2, False, *[True] * 4]
    counts = store.counts
    assert (counts.records, counts.documents, counts.empty, counts.duplicates) == (4, 3, 1, 1)
    assert (counts.tokens, counts.counted) == (13, 10)
    about = json.loads((store.folder / "store.json").read_text())
    assert len(about["checksum"]) == len(about["tokenizer"]) == 64


def test_text_without_any_token_is_left_out(tmp_path):
    class Bare(WordTokenizer):
        eos_token_id = None

        def __call__(self, text, **_):
            return super().__call__(text, add_special_tokens=False)

    path = write(tmp_path / "blank.jsonl", [{"text": "  "}, {"text": "a b"}])
    store = open_store(path, Bare())
    assert (store.counts.documents, store.counts.empty, store.counts.tokens) == (1, 1, 2)


def test_a_store_is_found_again_without_tokenising(path, tmp_path):
    first = open_store(path, cache=tmp_path / "cache")
    again = WordTokenizer()
    second = open_store(path, again, tmp_path / "cache")
    assert again.calls == 0 and second.about == first.about


def test_a_changed_file_is_tokenised_again_and_said(path, tmp_path, caplog):
    one = open_rows(path, cache=tmp_path / "cache")
    with path.open("a") as file:
        file.write('{"text": "z z z"}\n')
    other = open_rows(path, cache=tmp_path / "cache")
    assert f"data {path} changed since it was tokenised; doing it again" in caplog.text
    assert other.store.counts.documents == 4 and other.identity != one.identity
    assert one.row(0).input_ids_T.shape == (32,)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_another_tokenizer_template_or_key_has_a_store_of_its_own(path, tmp_path):
    other = WordTokenizer()
    other.chat_template = "another"
    for tokenizer in (WordTokenizer(), other):
        open_store(path, tokenizer, tmp_path / "cache")
    open_rows(path, keys={"text": "text"}, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_tokenizers_of_one_vocabulary_and_other_rules_are_told_apart(path, tmp_path):
    one, other = byte_tokenizer(), byte_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    for tokenizer in (one, other, one):
        open_store(path, tokenizer, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    one.backend_tokenizer.enable_padding()
    open_store(path, one, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_store_is_made_again(path, tmp_path, caplog):
    store = open_store(path, cache=tmp_path / "cache")
    (store.folder / "tokens.bin").write_bytes(b"12")
    again = open_store(path, cache=tmp_path / "cache")
    assert "are damaged; tokenising again" in caplog.text
    assert again.tokens_T.tolist() == open_store(path).tokens_T.tolist()


def test_a_failure_in_the_middle_leaves_nothing_behind(path, tmp_path):
    with path.open("a") as file:
        file.write('{"text": 3}\n')
    with pytest.raises(RunError, match="line 5: 'text' is 3"):
        open_store(path, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_process_left_is_removed_in_time(path, tmp_path):
    one = open_store(path, cache=tmp_path / "cache").folder
    one.rename(one.with_name(f".{one.name}.old"))
    old, young = (one.with_name(f".{one.name}.{word}") for word in ("old", "young"))
    young.mkdir()
    os.utime(old, (0, 0))
    open_store(path, cache=tmp_path / "cache")
    assert young.exists() and not old.exists()


def test_a_full_disk_is_said_with_what_to_do(path, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybridize.training.store._fill", full)
    with pytest.raises(MachineError, match=r"No space left on device\)\. Make room, or set data"):
        open_store(path, cache=tmp_path / "cache")


def test_a_token_that_the_vocabulary_does_not_have_is_refused(path):
    class Wrong(WordTokenizer):
        def __call__(self, text, **options):
            return {"input_ids": [*super().__call__(text, **options)["input_ids"], 1000]}

    with pytest.raises(RunError, match="token 1000, but the vocabulary of the tokenizer ends at"):
        open_store(path, Wrong())


def test_another_process_opens_the_folder(path, tmp_path):
    rows = open_rows(path, cache=tmp_path / "cache")
    sent = pickle.dumps(rows.store)
    assert len(sent) < 3000
    assert pickle.loads(sent).tokens_T.tolist() == rows.store.tokens_T.tolist()


def test_a_store_without_a_cache_goes_with_its_object(path):
    store = open_store(path)
    folder = store.folder
    assert folder.exists()
    del store
    assert not folder.exists()

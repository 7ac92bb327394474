"""Small files of text and what their rows hold, for tests of stored text."""

import json
from collections import Counter

from hybridize.core.stored_text import StoredText
from hybridize.tasks.words import VOCABULARY
from hybridize.training.text_rows import TextRows, TextSettings
from tests.training.tiny import WordTokenizer


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def open_rows(path, tokenizer=None, *, length=32, seed=1, keys=None, cache=None, **settings):
    return TextRows(
        StoredText.find(str(path), keys),
        tokenizer or WordTokenizer(),
        sequence_length=length,
        seed=seed,
        settings=TextSettings(**settings),
        cache=cache,
    )


def text_of(row, mask=None):
    keep_T = row.segments_T > 0 if mask is None else mask
    return " ".join(VOCABULARY[index] for index in row.input_ids_T[keep_T])


def documents_of(source, rows):
    found = Counter()
    for index in rows:
        row = source.row(index)
        for number in range(1, int(row.segments_T.max()) + 1):
            found[text_of(row, row.segments_T == number)] += 1
    return found


def one_pass(source):
    return documents_of(source, range(source.rows_per_pass))

"""Model folders nobody vouches for: every damage is one sentence, and nothing outside is opened."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybridize.core.errors import ModelError
from hybridize.core.model_files import (
    DTYPE_BYTES,
    list_tensors,
    read_config,
    read_header,
    read_json_object,
)

FAST, DEEP = 300, 30_000
"""Inputs a fuzzing test tries, by default and with -m slow."""
TENSORS = {"a": ("F32", [2, 3]), "b": ("BF16", [4]), "c": ("F32", [])}


def header_of(tensors: dict[str, tuple[str, list[int]]]) -> tuple[bytes, int]:
    """Return the header of tensors one behind the other, and the bytes they take."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BYTES[dtype]
        for length in shape:
            size *= length
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return json.dumps(entries).encode(), end


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int]]] | None = None) -> Path:
    header, size = header_of(TENSORS if tensors is None else tensors)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return path


def write_header(path: Path, header: Any, size: int = 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def write_index(folder: Path, weight_map: Any) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_tensors_are_listed_with_their_place(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "model.safetensors")
    found = list_tensors(tmp_path)
    assert {name: (place.dtype, place.shape) for name, place in found.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "c": ("F32", ()),
    }
    assert found["c"].stop == path.stat().st_size and found["a"].stop == found["b"].start


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} | changes}


HEADERS = {
    "no-object": ([1], "its header is not an object"),
    "no-json": (b"{'a'", "its header is not JSON"),
    "deep": (b"[" * 100_000, "its header is not JSON"),
    "no-text": (b"\xff\xfe{}", "its header is not JSON"),
    "huge-shape": (entry(shape=[2**62, 4]), "has 64 bytes"),
    "overflowing-shape": (entry(shape=[2**40, 2**40]), "has 64 bytes"),
    "negative-shape": (entry(shape=[-16]), "no shape or no place"),
    "past-the-end": (entry(shape=[2**40], data_offsets=[0, 2**42]), "tells of"),
    "before-the-start": (entry(data_offsets=[-64, 0]), "no shape or no place"),
    "backwards": (entry(data_offsets=[64, 0]), "no shape or no place"),
    "hole": (entry(shape=[8], data_offsets=[32, 64]), "does not begin where"),
    "rest": (entry(shape=[8], data_offsets=[0, 32]), "tells of"),
    "overlap": (entry() | {"b": entry()["a"]}, "does not begin where"),
    "type": (entry(dtype="F3"), "the unknown type 'F3'"),
    "no-type": (entry(dtype=["F32"]), "the unknown type"),
    "no-entry": ({"a": 3}, "the unknown type"),
    "booleans": (entry(shape=[True] * 16), "no shape or no place"),
    "fractions": (entry(shape=[16.0]), "no shape or no place"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_its_file_is_refused(name: str, tmp_path: Path) -> None:
    header, message = HEADERS[name]
    path = write_header(tmp_path / "model.safetensors", header)
    with pytest.raises(ModelError, match=rf"model\.safetensors is truncated .*{message}") as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [65, 2**32, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + bytes(64))
    with pytest.raises(ModelError, match=f"a header of {length} bytes in a file of 72"):
        read_header(path)


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_a_file_cut_anywhere_is_truncated(kept: int, tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        list_tensors(tmp_path)


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "sub/x.safetensors", "/etc/x.safetensors", "..\\x.safetensors"]
)
def test_an_index_leads_to_no_file_outside(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "out.safetensors", folder / "sub" / "x.safetensors"):
        write_tensors(path)
    with pytest.raises(ModelError, match="which is no file name"):
        list_tensors(write_index(folder, {"a": name}))


@pytest.mark.parametrize("file", ["model.safetensors", "part.safetensors"])
def test_a_link_leads_to_no_file_outside(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / file).symlink_to(write_tensors(tmp_path / "out.safetensors"))
    write_index(folder, dict.fromkeys(TENSORS, file))
    with pytest.raises(ModelError, match=f"{file} is a link out of the folder"):
        list_tensors(folder)
    (folder / file).unlink()
    write_tensors(folder / "inside.safetensors")
    (folder / file).symlink_to("inside.safetensors")
    if file == "model.safetensors":
        assert list_tensors(folder)


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    for path in (folder, blobs):
        path.mkdir(parents=True)
    write_tensors(blobs / "beef")
    (folder / "model.safetensors").symlink_to("../../blobs/beef")
    assert set(list_tensors(folder)) == set(TENSORS)
    (folder / "model.safetensors").unlink()
    write_tensors(tmp_path / "out")
    (folder / "model.safetensors").symlink_to("../../../out")
    with pytest.raises(ModelError, match="link out of the folder"):
        list_tensors(folder)


INDICES = {
    "list": (["a"], "has no weight_map"),
    "empty": ({}, "has no weight_map"),
    "number": ({"a": 3}, "is in 3, which is no safetensors file"),
    "pickle": ({"a": "pytorch_model.bin"}, "is no safetensors file. Convert"),
    "absent": ({"a": "x.safetensors"}, "x.safetensors is missing"),
    "missing": ({"d": "one.safetensors"}, "a is in no file, but it is in one"),
    "extra": (dict.fromkeys("abcd", "one.safetensors"), "d is in one.safetensors, but .*none"),
    "swapped": (
        {**dict.fromkeys("abc", "one.safetensors"), "e": "one.safetensors", "f": "two.safetensors"},
        "e is in one.safetensors, but it is in two",
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_disagrees_with_the_files_is_refused(name: str, tmp_path: Path) -> None:
    weight_map, message = INDICES[name]
    write_tensors(tmp_path / "one.safetensors")
    write_tensors(tmp_path / "two.safetensors", {"e": ("F32", [1]), "f": ("F32", [1])})
    with pytest.raises(ModelError, match=message) as caught:
        list_tensors(write_index(tmp_path, weight_map))
    assert "\n" not in str(caught.value)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tensors(tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(ModelError, match=r"a is in one\.safetensors and in two\.safetensors"):
        list_tensors(tmp_path)


CONFIGS = {
    "list": ("[1]", "not JSON of an object, but a list"),
    "cut": ('{"a": 1', "is not JSON"),
    "deep": ('{"a":' * 100_000, "is not JSON"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    "latin": (b'{"a": "\xe9"}', "is not JSON"),
    "empty": ("", "is not JSON"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_no_object_is_refused(name: str, tmp_path: Path) -> None:
    text, message = CONFIGS[name]
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


def test_what_is_no_plain_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config\.json is not a file"):
        read_config(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelError, match=r"model\.safetensors is not a file"):
        list_tensors(tmp_path)
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tmp_path / "s"))
        with pytest.raises(ModelError, match="is not a file"):
            read_header(tmp_path / "s")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**40)  # a sparse file: no room is taken
    with pytest.raises(ModelError, match="more than a description of a model needs"):
        read_json_object(large)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
COUNT = st.integers(-2, 70) | st.integers() | JSON
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPE_BYTES]) | JSON,
        "shape": st.lists(COUNT, max_size=3) | JSON,
        "data_offsets": st.lists(COUNT, min_size=2, max_size=2) | JSON,
    },
)
HEADER = st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=3) | JSON
FILE_NAME = st.sampled_from(["one.safetensors", "two.safetensors", "../one.safetensors"]) | st.text(
    max_size=300
).map(lambda text: f"{text}.safetensors")
INDEX = st.fixed_dictionaries(
    {}, optional={"weight_map": st.dictionaries(st.text(max_size=3), FILE_NAME | JSON) | JSON}
)


def check_header(path: Path, header: Any, size: int) -> None:
    try:
        tensors = read_header(write_header(path, header, size))
    except ModelError as error:
        assert str(error).count("\n") == 0
        return
    assert sum(place.stop - place.start for place in tensors.values()) == size


def check_index(folder: Path, value: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))
    try:
        tensors = list_tensors(folder)
    except ModelError:
        return
    assert {place.file.parent for place in tensors.values()} == {folder}


@settings(max_examples=FAST, deadline=None)
@given(header=HEADER | st.binary(max_size=60), size=st.integers(0, 70))
def test_any_header_is_read_or_refused(tmp_path_factory: Any, header: Any, size: int) -> None:
    check_header(tmp_path_factory.getbasetemp() / "any.safetensors", header, size)


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_tensors(folder / "one.safetensors")
    write_tensors(folder / "two.safetensors", {"e": ("F32", [1])})
    return folder


@settings(max_examples=FAST, deadline=None)
@given(value=INDEX | JSON)
@example({"weight_map": {"a": "\0.safetensors"}})
@example({"weight_map": {"a": "\ud800.safetensors"}})
@example({"weight_map": {"a": "x" * 400 + ".safetensors"}})
def test_any_index_is_read_or_refused(two_files: Path, value: Any) -> None:
    check_index(two_files, value)


@pytest.mark.slow
@settings(max_examples=DEEP, deadline=None)
@given(header=HEADER | st.binary(max_size=60), size=st.integers(0, 70), value=INDEX | JSON)
def test_deep_any_header_and_index_is_read_or_refused(
    two_files: Path, header: Any, size: int, value: Any
) -> None:
    check_header(two_files / "any.safetensors", header, size)
    check_index(two_files, value)

"""safetensors files beside the library: the same arrays, and what it refuses is refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as library_load
from safetensors.numpy import save_file as library_save

from npgpt.interop.safetensors_file import load_file, open_file, save_file

TYPES = [
    np.float64,
    np.float32,
    np.float16,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.uint16,
    np.bool_,
]


def test_arrays_of_every_type_and_shape_are_the_librarys(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        f"{np.dtype(kind).name} {n}": np.asarray(generator.normal(size=shape) * 9).astype(kind)
        for kind in TYPES
        for n, shape in enumerate([(), (0, 3), (1,), (3, 5), (2, 1, 7)])
    }
    library_save(arrays, tmp_path / "a.safetensors", {"by": "é"})
    ours, theirs = load_file(tmp_path / "a.safetensors"), library_load(tmp_path / "a.safetensors")
    assert ours.keys() == theirs.keys() == arrays.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].flags.writeable
        np.testing.assert_array_equal(ours[name], array)
    assert open_file(tmp_path / "a.safetensors")[1] == {"by": "é"}
    floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    save_file(floats, tmp_path / "b.safetensors", {"by": "us"})
    for name, array in library_load(tmp_path / "b.safetensors").items():
        np.testing.assert_array_equal(array, floats[name])


def test_a_file_may_go_while_its_tensors_are_read(tmp_path):
    save_file({"a": np.arange(4, dtype=np.float32)}, tmp_path / "a.safetensors")
    tensors, _metadata = open_file(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    assert tensors["a"].read().tolist() == [0, 1, 2, 3]


def written(path, header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


def tensor(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


FOUR = bytes(4)
FAULTY = {
    "nothing": (b"", b"", None),
    "no object": ([], b"", None),
    "no JSON": (b"{", b"", None),
    "no UTF-8": (b'{"\xff": 1}', b"", None),
    "a header beyond the file": ({}, b"", 1 << 40),
    "an entry that is no object": ({"a": 1}, FOUR, None),
    "an entry without offsets": ({"a": {"dtype": "F32", "shape": [1]}}, FOUR, None),
    "three offsets": ({"a": tensor(0, 4) | {"data_offsets": [0, 4, 4]}}, FOUR, None),
    "a shape that is no list": ({"a": tensor(0, 4) | {"shape": {}}}, FOUR, None),
    "a negative size": ({"a": tensor(0, 4, (-1,))}, FOUR, None),
    "a fraction": ({"a": tensor(0, 4, (1.5,))}, FOUR, None),
    "a size that is too large": ({"a": tensor(0, 4, (1 << 70,))}, FOUR, None),
    "bytes that are not the shape's": ({"a": tensor(0, 4, (2,))}, FOUR, None),
    "a hole": ({"a": tensor(4, 8)}, FOUR * 2, None),
    "an overlap": ({"a": tensor(0, 4), "b": tensor(0, 4)}, FOUR, None),
    "an end before the beginning": ({"a": tensor(4, 0)}, FOUR, None),
    "bytes left over": ({"a": tensor(0, 4)}, FOUR * 2, None),
    "bytes that are missing": ({"a": tensor(0, 4)}, b"", None),
    "metadata that is no table of strings": ({"__metadata__": {"a": 1}}, b"", None),
}


@pytest.mark.parametrize("name", FAULTY)
def test_what_the_library_refuses_is_refused(name, tmp_path):
    path = written(tmp_path / "a.safetensors", *FAULTY[name])
    with pytest.raises(SafetensorError), safe_open(path, framework="np"):
        pass
    with pytest.raises(ValueError, match=r"a\.safetensors must be a safetensors file, got"):
        open_file(path)


def test_a_type_that_numpy_lacks_is_refused_when_it_is_read(tmp_path):
    path = written(tmp_path / "a.safetensors", {"a": tensor(0, 4, (4,), "F8_E4M3")}, FOUR)
    tensors, _metadata = open_file(path)
    assert tensors["a"].dtype == "F8_E4M3" and tensors["a"].shape == (4,)
    with pytest.raises(ValueError, match=r"a: must be of type F64, .* got F8_E4M3"):
        tensors["a"].read()


@given(st.data())
def test_whatever_is_read_the_library_reads_the_same(tmp_path_factory, data):
    """A valid file with a stretch of it replaced."""
    path = tmp_path_factory.mktemp("s") / "a.safetensors"
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.arange(4, dtype=np.int16).reshape(2, 2)}
    library_save(arrays, path, {"k": "v"})
    valid = path.read_bytes()
    begin = data.draw(st.integers(0, len(valid)))
    end = data.draw(st.integers(begin, min(len(valid), begin + 12)))
    other = st.sampled_from([b"-1", b"9" * 30, b"null", b"[]", b"{}", b"NaN", b'"F16"', b"1e3"]) | st.binary(
        max_size=6
    )
    path.write_bytes(valid[:begin] + data.draw(other) + valid[end:])
    try:
        ours = load_file(path)
    except ValueError:
        return
    theirs = library_load(path)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)

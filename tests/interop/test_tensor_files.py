"""safetensors files: read and written to the bit, and nothing that could lead elsewhere is
believed.
"""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from xlstm_jax.errors import UserError
from xlstm_jax.interop.tensor_files import (
    FILE,
    INDEX,
    Tensor,
    read_file,
    read_folder,
    write_file,
    write_folder,
)

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float32(7.5).reshape(()),
    "c": np.zeros((0, 4), np.float32),
    "d": np.array([np.nan, np.inf, -0.0, 1e-40], np.float32),
}


def tensors(arrays=ARRAYS) -> list[Tensor]:
    return [Tensor(name, array.shape, lambda array=array: array) for name, array in arrays.items()]


def raw_file(path, header, content=b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


@pytest.mark.parametrize("bytes_per_file", [1, 40, 10**9])
def test_what_is_written_is_read_to_the_bit(tmp_path, bytes_per_file):
    total = write_folder(tmp_path, tensors(), np.float32, bytes_per_file)
    assert total == sum(array.nbytes for array in ARRAYS.values())
    assert (tmp_path / INDEX).exists() == (bytes_per_file < 10**9) != (tmp_path / FILE).exists()
    read = read_folder(tmp_path)
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_bfloat16(tmp_path):
    write_file(tmp_path / FILE, tensors(), ml_dtypes.bfloat16)
    read = read_file(tmp_path / FILE)
    assert read["a"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read["a"].astype(np.float32), ARRAYS["a"])


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "content"),
    [
        ({"a": entry([2], 0, 8)}, b"1234567"),  # cut off
        ({"a": entry([2], 0, 8)}, b"123456789"),  # too long
        ({"a": entry([3], 0, 8)}, b"12345678"),  # shape and bytes differ
        ({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"123456"),  # overlap
        ({"a": entry([1], 4, 8)}, b"12345678"),  # a gap
        ({"a": entry([-2], 0, 8)}, b"12345678"),
        ({"a": entry([2], 0, 8, "O")}, b"12345678"),  # no such type: Python objects least of all
        ({"a": {"dtype": "F32"}}, b""),
        (b"[1, 2]", b""),
        (b"{no json", b""),
        (b'{"a":' * 100_000, b""),  # deeper than Python recurses
        (b'{"a": ' + b"9" * 5000 + b"}", b""),
    ],
)
def test_damaged_files_are_refused(tmp_path, header, content):
    raw_file(tmp_path / FILE, header, content)
    with pytest.raises(UserError, match="no good safetensors file"):
        read_file(tmp_path / FILE)


@pytest.mark.parametrize(
    "content", [b"", b"123", struct.pack("<Q", 10**12) + b"{}", struct.pack("<Q", 0)]
)
def test_files_that_are_none_are_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="length makes no sense"):
        read_file(tmp_path / FILE)


@pytest.mark.parametrize(
    "file", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", 7]
)
def test_an_index_that_leads_outside_is_refused(tmp_path, file):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(UserError, match="not in its own folder"):
        read_folder(tmp_path)


def test_an_index_and_its_files_must_agree(tmp_path):
    write_folder(tmp_path, tensors(), np.float32, 1)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["lost"] = index["weight_map"]["a"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="'lost'"):
        read_folder(tmp_path)
    index["weight_map"]["lost"] = "gone.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="'gone.safetensors', which is missing"):
        read_folder(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(UserError, match="no index"):
        read_folder(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(UserError, match="'pytorch_model.bin' is a pickle"):
        read_folder(tmp_path)

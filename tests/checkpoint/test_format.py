"""State comes back as it was, and nothing but data can be in it."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from everstep.checkpoint.format import Damaged, Layout, Spec, from_json, pieces, read_tensors, to_json
from everstep.checkpoint.save import Staging
from everstep.errors import ConfigurationError
from tests.checkpoint.conftest import same

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


def through_bytes(tree: Any) -> Any:
    data, tensors = to_json(tree, "shared")
    staging = Staging()
    staging.fill(tensors)
    stored = b"".join(staging.file(tree=json.dumps(data, allow_nan=False)).pieces())
    read, metadata = read_tensors([stored[:3], stored[3:100], stored[100:]])
    return from_json(json.loads(metadata["tree"]), read)


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63, -(2**5000), 1.5, -0.0, 1e-323, math.nan, math.inf, -math.inf, "", "ü\0\n",
        b"", b"\0\xff", [], {}, (), [1, [2, (3, None)]], {0: "int", "0": "str", None: "none", 1.5: 2, (1, "a"): b"x"},
        {"$tensor": "a user's own key"}, {"$tensor": 1, "b": 2}, {"a/b": {"c": 1}, "a": {"b/c": 2}}, {"": {"": 1}},
    ],
    ids=repr,
)  # fmt: skip
def test_plain_values_come_back_exactly(value: Any) -> None:
    assert same(through_bytes(value), value)


def test_booleans_stay_apart_from_numbers_as_keys() -> None:
    assert list(through_bytes({2: "a", True: "b"})) == [2, True]
    assert type(next(iter(through_bytes({True: 0})))) is bool


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
def test_tensors_of_all_types_come_back_exactly(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    tree = {}
    for dtype in DTYPES:
        count = math.prod(shape) * dtype.itemsize
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
        tree[str(dtype)] = raw.view(dtype).view(shape)
    assert same(through_bytes(tree), tree)


def test_views_parameters_and_arrays() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tree = {
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "scalar": np.float32(0.1),
        "generator": np.random.RandomState(3).get_state(),
    }
    back = through_bytes(tree)
    assert back["transposed"].equal(base.t())
    assert back["strided"].equal(base[::2, 1::3])
    assert type(back["parameter"]) is torch.Tensor
    assert back["array"].dtype == np.uint32
    assert (back["array"] == tree["array"]).all()
    assert back["scalar"] == np.float32(0.1)
    assert type(back["scalar"]) is np.float32
    again = np.random.RandomState()
    again.set_state(back["generator"])
    assert again.rand() == np.random.RandomState(3).rand()


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    weight = torch.randn(3, 3)
    data, tensors = to_json({"embedding": weight, "head": weight, "part": weight[0]}, "shared")
    assert list(tensors) == ["shared/embedding", "shared/part"]
    back = from_json(data, tensors)
    assert back["head"] is back["embedding"]


def test_names_that_would_collide_do_not() -> None:
    tree = {1: torch.ones(1), "1": torch.zeros(1), "a": {"b": torch.ones(2)}, "a/b": torch.zeros(2)}
    assert same(through_bytes(tree), tree)


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, print, torch.strided, torch.ones(2).to_sparse(), np.array(["text"]), np.array([object()])],
)
def test_what_is_no_data_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"shared/callbacks/mine\b.* cannot be saved"):
        to_json({"callbacks": {"mine": value}}, "shared")


def test_files_are_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(7, dtype=torch.int64), "c": torch.randn(5).bfloat16()}
    staging = Staging()
    staging.fill(tensors)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(staging.file(tree="{}").pieces()))
    theirs = safetensors.torch.load_file(path)
    assert all(theirs[name].equal(tensor) for name, tensor in tensors.items())
    safetensors.torch.save_file(tensors, path)
    ours, _ = read_tensors([path.read_bytes()])
    assert all(ours[name].equal(tensor) for name, tensor in tensors.items())


def test_staging_is_kept_and_not_copied() -> None:
    staging = Staging()
    staging.fill({"a": torch.zeros(1000)})
    before = staging._body.data_ptr()
    staging.fill({"a": torch.ones(1000)})
    assert staging._body.data_ptr() == before
    addresses = {np.frombuffer(piece, dtype=np.uint8).ctypes.data for piece in pieces(staging._body)}
    assert addresses == {before}


def test_wide_types_lie_aligned() -> None:
    specs = {str(n): Spec(dtype, (3,)) for n, dtype in enumerate(DTYPES)}
    layout = Layout.of(specs)
    assert all(layout.offsets[name] % layout.specs[name].dtype.itemsize == 0 for name in specs)


def _file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x04\x95", b"\xff" * 100, _file(b"{"), _file([1]), _file({"a": 1}), _file({"a": {"dtype": "F32"}}),
        _file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234567"),
        _file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"123456789"),
        _file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        _file({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, b"1234"),
        _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
        _file({"a": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"),
        _file({"__metadata__": {"dtypes": '{"a": "load"}'}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"1"),  # noqa: E501
    ],
    ids=range(14),
)  # fmt: skip
def test_garbage_is_damage_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Damaged):
        read_tensors(io.BytesIO(data))


@pytest.mark.parametrize(
    "data",
    [
        {"$tensor": "absent"},
        {"$eval": "1"},
        {"$int": "zz"},
        {"$bytes": "?"},
        {"$dict": [1]},
        {"$tuple": 3},
        {"$dict": [[[], 1]]},
    ],
    ids=repr,
)
def test_trees_that_are_none_are_damage(data: Any) -> None:
    with pytest.raises(Damaged):
        from_json(data, {})

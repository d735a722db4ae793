"""How a state becomes bytes: a tree as JSON, its tensors as safetensors. Nothing here can execute what it reads.

A tree is made of dicts, lists, tuples, None, booleans, whole numbers of any size, floats (NaN and infinities too),
strings, bytes, tensors, their types and devices, and numpy arrays. As JSON it looks like itself; what JSON cannot say
is an object with one key that begins with `$`: {"$tensor": name}, {"$tuple": […]}, {"$dict": [[key, value], …]} for
keys that are no strings.

index.json               Index: the tree that all ranks share, and where the pieces of its tensors are
shard-<rank>.safetensors the pieces that this rank wrote
rank-<rank>.safetensors  state of that rank alone; its tree is in the file's metadata
"""

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from everstep.checkpoint.storage import CHUNK_BYTES
from everstep.errors import ConfigurationError
from everstep_protocol.checkpoints import FORMAT_VERSION


class Damaged(Exception):
    """Stored bytes are not what they claim to be. The message says which and how."""


# Trees.


def to_json(tree: Any, root: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The tree as JSON data, and its tensors by name: their path in the tree, below `root`.

    Raises:
        ConfigurationError: it holds something that is not data.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[Any, str] = {}

    def add(path: str, tensor: torch.Tensor) -> str:
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ConfigurationError(f"{path}: a {tensor.layout} tensor cannot be saved; save it as dense tensors")
        # The same tensor under two names (tied weights) is stored once and comes back as one.
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if type(tensor) in _PLAIN else None
        if same is not None and tensor.numel() and same in seen:
            return seen[same]
        name, copies = path, 1
        while name in tensors:
            copies += 1
            name = f"{path}~{copies}"
        tensors[name] = tensor.detach()
        seen[same] = name
        return name

    def walk(value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | str):
            return str(value) if isinstance(value, str) else value
        if isinstance(value, torch.Tensor):
            return {"$tensor": add(path, value)}
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.kind not in "biufc":
                raise ConfigurationError(f"{path}: a numpy array of {value.dtype} cannot be saved; only numbers can")
            kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
            return {kind: add(path, torch.from_numpy(np.array(value)))}
        if isinstance(value, int):
            return int(value) if value.bit_length() <= 1024 else {"$int": hex(value)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, torch.dtype):
            return {"$dtype": dtype_name(value)}
        if isinstance(value, torch.device):
            return {"$device": str(value)}
        if isinstance(value, bytes | bytearray):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, Mapping):
            items = [(key, walk(item, f"{path}/{_part(key)}")) for key, item in value.items()]
            if all(type(key) is str and not key.startswith("$") for key, _ in items):
                return dict(items)
            return {"$dict": [[walk(key, f"{path}, a key"), item] for key, item in items]}
        if isinstance(value, list):
            return [walk(item, f"{path}/{number}") for number, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"$tuple": [walk(item, f"{path}/{number}") for number, item in enumerate(value)]}
        raise ConfigurationError(
            f"{path}: a {type(value).__module__}.{type(value).__qualname__} cannot be saved in a checkpoint; "
            f"state is made of tensors, arrays, numbers, strings, bytes, None, and dicts, lists and tuples of them"
        )

    return walk(tree, root), tensors


def from_json(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The tree again.

    Raises:
        Damaged: this was not written by `to_json`.
    """

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) != 1 or not (tag := next(iter(value))).startswith("$"):
            return {key: walk(item) for key, item in value.items()}
        return readers[tag](value[tag])

    def keyed(pairs: Any) -> dict[Any, Any]:
        return {walk(key): walk(item) for key, item in pairs}

    readers: dict[str, Callable[[Any], Any]] = {
        "$tensor": lambda name: tensors[name],
        "$array": lambda name: tensors[name].numpy(),
        "$scalar": lambda name: tensors[name].numpy()[()],
        "$int": lambda text: int(text, 16),
        "$float": float,
        "$dtype": dtype_of,
        "$device": torch.device,
        "$bytes": lambda text: base64.b64decode(text, validate=True),
        "$tuple": lambda items: tuple(walk(item) for item in items),
        "$dict": keyed,
    }
    try:
        return walk(data)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise Damaged(f"not a state of this format ({type(error).__name__}: {error})") from None


def _part(key: Any) -> str:
    return (key if isinstance(key, str) else repr(key)).replace("~", "~0").replace("/", "~1")


_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)

# Tensors in a file.

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise Damaged(f"no tensor type {name!r} in this version of torch")
    return dtype


@dataclass(frozen=True)
class Spec:
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in a file's body. Wide types come first, so that each is aligned to its own size."""

    specs: dict[str, Spec]  # in the order of the file
    offsets: dict[str, int]
    size: int  # of the body, bytes

    @classmethod
    def of(cls, specs: Mapping[str, Spec]) -> "Layout":
        ordered = dict(sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize))
        offsets, end = {}, 0
        for name, spec in ordered.items():
            offsets[name] = end
            end += spec.nbytes
        return cls(ordered, offsets, end)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """What a safetensors file begins with. Types that safetensors lacks are bytes there, with one more axis."""
        entries: dict[str, Any] = {"__metadata__": {"dtypes": self._types(), **metadata}}
        for name, spec in self.specs.items():
            start = self.offsets[name]
            known = spec.dtype in _NAMES
            entries[name] = {
                "dtype": _NAMES[spec.dtype] if known else "U8",
                "shape": [*spec.shape] if known else [*spec.shape, spec.dtype.itemsize],
                "data_offsets": [start, start + spec.nbytes],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        return len(text).to_bytes(8, "little") + text

    def _types(self) -> str:
        return json.dumps({n: dtype_name(s.dtype) for n, s in self.specs.items() if s.dtype not in _NAMES})

    def views(self, body: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors inside a body of `size` bytes."""
        return {
            name: body[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)
            for (name, spec), start in zip(self.specs.items(), self.offsets.values(), strict=True)
        }


def pieces(body: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a one-dimensional uint8 tensor, without a copy."""
    view: memoryview = body.numpy().data
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def read_tensors(stream: Iterable[memoryview | bytes]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, each tensor in memory of its own, filled as the bytes come in.

    Raises:
        Damaged: it is not such a file, or is shorter or longer than it says.
    """
    reader = _Reader(stream)
    length = int.from_bytes(reader.exactly(8), "little")
    if not 2 <= length <= 100_000_000:
        raise Damaged("not a safetensors file")
    try:
        header = json.loads(reader.exactly(length))
        metadata = header.pop("__metadata__", {})
        odd = json.loads(metadata.get("dtypes", "{}"))
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        tensors, end = {}, 0
        for name, about in entries:
            start, stop = about["data_offsets"]
            spec = Spec(_DTYPES[about["dtype"]], tuple(about["shape"]))
            if name in odd:
                spec = Spec(dtype_of(odd[name]), spec.shape[:-1])
            if start != end or stop - start != spec.nbytes:
                raise Damaged(f"tensor {name!r} does not fit its place in the file")
            end = stop
            memory = torch.empty(spec.nbytes, dtype=torch.uint8)
            reader.into(memory.numpy().data)
            tensors[name] = memory.view(spec.dtype).view(spec.shape)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise Damaged(f"not a safetensors file ({type(error).__name__}: {error})") from None
    if reader.more():
        raise Damaged("longer than its header says")
    return tensors, metadata


class _Reader:
    def __init__(self, stream: Iterable[memoryview | bytes]) -> None:
        self._stream = iter(stream)
        self._rest = memoryview(b"")

    def into(self, target: memoryview) -> None:
        while target:
            if not self._rest and not self.more():
                raise Damaged("truncated")
            count = min(len(target), len(self._rest))
            target[:count] = self._rest[:count]
            target, self._rest = target[count:], self._rest[count:]

    def exactly(self, count: int) -> bytes:
        if count > CHUNK_BYTES * 16:
            raise Damaged("not a safetensors file")
        data = bytearray(count)
        self.into(memoryview(data))
        return bytes(data)

    def more(self) -> bool:
        while not self._rest:
            piece = next(self._stream, None)
            if piece is None:
                return False
            self._rest = memoryview(piece).cast("B")
        return True


# The index.


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and where it is stored."""

    file: str
    key: str
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    spec: Spec
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Index:
    """The shared state of a checkpoint."""

    tree: Any  # JSON
    tensors: dict[str, StoredTensor]

    def dumps(self) -> bytes:
        tensors = {
            name: {
                "dtype": dtype_name(stored.spec.dtype),
                "shape": stored.spec.shape,
                "pieces": [[p.file, p.key, p.offsets, p.lengths] for p in stored.pieces],
            }
            for name, stored in self.tensors.items()
        }
        data = {"format": FORMAT_VERSION, "tree": self.tree, "tensors": tensors}
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def loads(cls, text: bytes) -> "Index":
        """
        Raises:
            Damaged: this is no index.
        """
        try:
            data = json.loads(text)
            tensors = {
                name: StoredTensor(
                    Spec(dtype_of(about["dtype"]), tuple(about["shape"])),
                    tuple(Piece(file, key, tuple(start), tuple(size)) for file, key, start, size in about["pieces"]),
                )
                for name, about in data["tensors"].items()
            }
            return cls(data["tree"], tensors)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"not an index ({type(error).__name__}: {error})") from None

    def assemble(self, files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Whole tensors from the contents of the files.

        Raises:
            Damaged: a piece is missing, of another shape, or the pieces do not cover a tensor.
        """
        whole = {}
        for name, stored in self.tensors.items():
            parts = []
            for piece in stored.pieces:
                part = files.get(piece.file, {}).get(piece.key)
                if part is None or part.shape != piece.lengths or part.dtype != stored.spec.dtype:
                    raise Damaged(f"tensor {name!r}: its part {piece.key!r} in {piece.file} is not what the index says")
                parts.append((piece, part))
            if len(parts) == 1 and parts[0][1].shape == stored.spec.shape:
                whole[name] = parts[0][1]
                continue
            if sum(part.numel() for _, part in parts) != int(np.prod(stored.spec.shape, dtype=np.int64)):
                raise Damaged(f"tensor {name!r}: its parts do not cover it")
            target = torch.empty(stored.spec.shape, dtype=stored.spec.dtype)
            for piece, part in parts:
                box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.lengths, strict=True))
                if target[box].shape != part.shape:
                    raise Damaged(f"tensor {name!r}: a part lies outside of it")
                target[box] = part
            whole[name] = target
        return whole

"""Several loaders read as one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

Mode = Literal["min_size", "max_size", "max_size_cycle", "sequential"]


class CombinedLoader:
    """Iterates over a tree (dict, list, tuple) of loaders and yields (batch, batch_idx, dataloader_idx).

    Modes: "min_size" ends with the shortest loader. "max_size" ends with the longest, those that have ended give None.
    "max_size_cycle" ends with the longest, the others start again. In these a batch is a tree of the same shape and
    dataloader_idx is 0. "sequential" reads one loader after the other: a batch is of one loader, batch_idx starts again
    with each.
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        """
        Raises:
            ValueError: the mode is unknown.
        """
        if mode not in ("min_size", "max_size", "max_size_cycle", "sequential"):
            raise ValueError(
                f'mode {mode!r} is unknown: it has to be "min_size", "max_size", "max_size_cycle" or "sequential"'
            )
        self.iterables, self.mode = iterables, mode
        self.limits: list[int | None] | None = None  # batches of each loader at most, in the order of `flattened`

    @property
    def flattened(self) -> list[Any]:
        """The loaders, in the order in which the tree holds them."""
        return list(leaves(self.iterables))

    def map(self, function: Callable[[Any], Any]) -> "CombinedLoader":
        """The same combination of what the function makes of each loader."""
        return CombinedLoader(mapped(self.iterables, function), self.mode)

    def __len__(self) -> int:
        """Batches in an epoch.

        Raises:
            TypeError: a loader that matters does not say.
        """
        sizes = [len(loader) for loader in self.flattened]
        if self.limits is not None:
            sizes = [
                size if limit is None else min(size, limit) for size, limit in zip(sizes, self.limits, strict=True)
            ]
        if self.mode == "sequential":
            return sum(sizes)
        return min(sizes) if self.mode == "min_size" else max(sizes)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loaders, and their samplers, that have such a method."""
        for loader in self.flattened:
            for part in (loader, getattr(loader, "sampler", None)):
                if part is not None and hasattr(part, "set_epoch"):
                    part.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        loaders = self.flattened
        limits: list[int | None] = self.limits if self.limits is not None else [None] * len(loaders)
        if self.mode == "sequential":
            for number, (loader, limit) in enumerate(zip(loaders, limits, strict=True)):
                for index, batch in enumerate(loader):
                    if index == limit:
                        break
                    yield batch, index, number
            return
        yield from ((batch, index, 0) for index, batch in enumerate(self._together(loaders, limits)))

    def _together(self, loaders: list[Any], limits: list[int | None]) -> Iterator[Any]:
        readers = [_Reader(loader, limit) for loader, limit in zip(loaders, limits, strict=True)]
        while True:
            parts = [reader.read(again=self.mode == "max_size_cycle") for reader in readers]
            ended = [reader.ended for reader in readers]
            if any(ended) if self.mode == "min_size" else all(ended):
                return
            yield filled(self.iterables, parts)


class _Reader:
    """One of several loaders that are read together."""

    def __init__(self, loader: Any, limit: int | None) -> None:
        self.loader, self.limit = loader, limit
        self.ended = False  # once, at least
        self._iterator, self._read = iter(loader), 0

    def read(self, again: bool) -> Any:
        """The next batch; None after the last one, unless the loader is to start again."""
        batch = self._next()
        if batch is _END:
            self.ended = True
            if again:
                self._iterator, self._read = iter(self.loader), 0
                batch = self._next()
        return None if batch is _END else batch

    def _next(self) -> Any:
        if self._read == self.limit:
            return _END
        self._read += 1
        return next(self._iterator, _END)


_END = object()


def leaves(tree: Any) -> Iterator[Any]:
    """What is not a dict, list or tuple, in order."""
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        yield tree
        return
    for part in tree:
        yield from leaves(part)


def filled(tree: Any, parts: Iterable[Any]) -> Any:
    """A tree of the same shape with the parts for leaves, in order."""
    remaining = iter(parts)
    return mapped(tree, lambda _: next(remaining))


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """A tree of the same shape with each leaf replaced."""
    if isinstance(tree, Mapping):
        return {key: mapped(part, function) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(part, function) for part in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(part, function) for part in tree)
    return function(tree)

"""The progress bar by tqdm."""

from typing import Any, TextIO

from everstep.callbacks.progress import Bar, ProgressBar, shown_values
from everstep.errors import ConfigurationError


class TQDMProgressBar(ProgressBar):
    """Needs tqdm.

    Args:
        refresh_rate: redraw after so many batches at the earliest; 0: no bar. And at most once in `refresh_seconds`.
        process_position: lines to leave free above it, for other bars.
        leave: an evaluation's bar stays too.
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        process_position: int = 0,
        leave: bool = False,
        refresh_seconds: float = 0.2,
        stream: TextIO | None = None,
    ) -> None:
        try:
            import tqdm  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(f"TQDMProgressBar needs tqdm ({error}): pip install tqdm") from None
        super().__init__(refresh_seconds, stream)
        self.refresh_rate, self.process_position, self.leave = refresh_rate, process_position, leave

    @property
    def shown(self) -> bool:
        return bool(self.refresh_rate)

    def opened(self, bar: Bar) -> None:
        from tqdm.auto import tqdm

        nested = self._training is not None
        bar.handle = tqdm(
            desc=bar.what, total=bar.total, position=2 * self.process_position + nested, leave=self.leave or not nested,
            disable=not self.refresh_rate, dynamic_ncols=True, file=self._stream,
        )  # fmt: skip

    def draw(self, bar: Bar, values: dict[str, Any]) -> None:
        if self.refresh_rate and bar.done - bar.handle.n >= self.refresh_rate:
            self._show(bar, values)

    def closed(self, bar: Bar, values: dict[str, Any]) -> None:
        self._show(bar, values)
        bar.handle.close()

    def _show(self, bar: Bar, values: dict[str, Any]) -> None:
        bar.handle.set_postfix(shown_values(values), refresh=False)
        bar.handle.n = bar.done
        bar.handle.refresh()

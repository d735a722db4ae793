"""The progress bar by rich."""

from typing import Any, TextIO

from everstep.callbacks.progress import Bar, ProgressBar, shown_values
from everstep.errors import ConfigurationError


def need_rich(who: str) -> None:
    """
    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"{who} needs rich ({error}): pip install rich") from None


class RichProgressBar(ProgressBar):
    """Needs rich.

    Args:
        refresh_rate: redraw after so many batches at the earliest; 0: no bar. And at most once in `refresh_seconds`.
        leave: each epoch's bar stays.
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        leave: bool = False,
        refresh_seconds: float = 0.2,
        stream: TextIO | None = None,
    ) -> None:
        need_rich("RichProgressBar")
        super().__init__(refresh_seconds, stream)
        self.refresh_rate, self.leave = refresh_rate, leave
        self._display: Any = None  # as long as a bar is open

    @property
    def shown(self) -> bool:
        return bool(self.refresh_rate)

    def opened(self, bar: Bar) -> None:
        if not self.refresh_rate:
            return
        if self._display is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._display = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"), console=Console(file=self._stream), auto_refresh=False,
                transient=not self.leave,
            )  # fmt: skip
            self._display.start()
        bar.handle = self._display.add_task(bar.what, total=bar.total, values="")

    def draw(self, bar: Bar, values: dict[str, Any]) -> None:
        if self._display is None:
            return
        task = self._display._tasks[bar.handle]
        if bar.done - task.completed >= self.refresh_rate:
            self._show(bar, values)

    def closed(self, bar: Bar, values: dict[str, Any]) -> None:
        if self._display is None:
            return
        self._show(bar, values)
        inside = bar is self._evaluation and self._training is not None
        if inside:
            self._display.remove_task(bar.handle)
        else:
            self._display.stop()
            self._display = None

    def _show(self, bar: Bar, values: dict[str, Any]) -> None:
        text = f"{bar.per_second:.1f} it/s " + " ".join(
            f"{name} {value}" for name, value in shown_values(values).items()
        )
        self._display.update(bar.handle, completed=bar.done, values=text, refresh=True)

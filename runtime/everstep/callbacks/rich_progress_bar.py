"""The progress bar by rich."""

from dataclasses import dataclass
from typing import Any, TextIO

from everstep.callbacks.progress import Bar, ProgressBar
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


@dataclass(frozen=True)
class RichProgressBarTheme:
    """Rich's styles of the bar's parts, such as "green", "bold #6206E0", "" for none.

    Args:
        progress_bar, progress_bar_finished, progress_bar_pulse: the bar while it grows, when it is complete, and of an
            unknown length.
        batch_progress: "10/50". time: that is left. processing_speed: batches a second. metrics: what was logged.
        metrics_text_delimiter: between two of them. metrics_format: of a number, as of format().
    """

    description: Any = ""
    progress_bar: Any = "#6206E0"
    progress_bar_finished: Any = "#6206E0"
    progress_bar_pulse: Any = "#6206E0"
    batch_progress: Any = ""
    time: Any = "dim"
    processing_speed: Any = "dim underline"
    metrics: Any = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".4g"


_THEME = RichProgressBarTheme()


class RichProgressBar(ProgressBar):
    """Needs rich.

    Args:
        refresh_rate: redraw after so many batches at the earliest; 0: no bar. And at most once in `refresh_seconds`.
        leave: each epoch's bar stays. theme: how its parts look. console_kwargs: arguments of rich's Console.
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        leave: bool = False,
        theme: RichProgressBarTheme = _THEME,
        console_kwargs: dict[str, Any] | None = None,
        refresh_seconds: float = 0.2,
        stream: TextIO | None = None,
    ) -> None:
        need_rich("RichProgressBar")
        super().__init__(refresh_seconds, stream)
        self.refresh_rate, self.leave, self.theme = refresh_rate, leave, theme
        self._console_kwargs = console_kwargs or {}
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
            from rich.theme import Theme

            theme = self.theme
            console = Console(**{"file": self._stream, **self._console_kwargs})
            # The names under which rich's own columns look their styles up.
            console.push_theme(Theme({"progress.download": theme.batch_progress, "progress.remaining": theme.time}))
            self._display = Progress(
                TextColumn("{task.description}", theme.description),
                BarColumn(
                    complete_style=theme.progress_bar, finished_style=theme.progress_bar_finished,
                    pulse_style=theme.progress_bar_pulse,
                ),
                MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[speed]}", theme.processing_speed),
                TextColumn("{task.fields[values]}", theme.metrics, markup=False),
                console=console, auto_refresh=False, transient=not self.leave,
            )  # fmt: skip
            self._display.start()
        bar.handle = self._display.add_task(bar.what, total=bar.total, speed="", values="")

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
        shown = self.theme.metrics_text_delimiter.join(f"{name} {self._text(value)}" for name, value in values.items())
        self._display.update(
            bar.handle, completed=bar.done, speed=f"{bar.per_second:.1f} it/s", values=shown, refresh=True
        )

    def _text(self, value: Any) -> str:
        return format(value, self.theme.metrics_format) if isinstance(value, int | float) else str(value)

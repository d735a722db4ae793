"""The table of layers by rich."""

from everstep.callbacks.model_summary import ModelSummary
from everstep.callbacks.rich_progress_bar import need_rich
from everstep.utilities.model_summary import ModelSummary as Summary


class RichModelSummary(ModelSummary):
    """As ModelSummary. Needs rich."""

    def __init__(self, max_depth: int = 1) -> None:
        need_rich("RichModelSummary")
        super().__init__(max_depth)

    def show(self, summary: Summary) -> None:
        """Print it as a table of rich's."""
        from rich.console import Console
        from rich.table import Table

        header, rows = summary.table()
        table = Table(header_style="bold magenta")
        for name in header:
            table.add_column(name or " ", justify="right" if name in ("Params", "In sizes", "Out sizes") else "left")
        for row in rows:
            table.add_row(*row)
        grid = Table.grid(padding=(0, 2))
        for value, what in summary.totals():
            grid.add_row(f"[bold]{what}[/]", value)
        console = Console()
        console.print(table)
        console.print(grid)

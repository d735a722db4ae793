"""What the screen shows: a table on a terminal, lines elsewhere."""

import io
import os
import pty
import re
from datetime import UTC, datetime, timedelta

import pytest

from everstep_operator.api.trainingrun import GoodputStatus, Nodes, Phase, ProgressStatus, Restarts, Status, TrainingRun
from everstep_operator.commands.table import Lines, LiveTable, screen

T0 = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def run(step: int = 0, loss: float | None = None, total: int = 1000, **status: object) -> TrainingRun:
    progress = ProgressStatus(step=step, max_steps=total, percent=100 * step // total, loss=loss) if step else None
    values = {"phase": Phase.RUNNING, "nodes": Nodes(desired=3, ready=3), "progress": progress, **status}
    return TrainingRun.model_validate(
        {"metadata": {"name": "digits"}, "spec": {"trainer": {"command": ["x"]}}}
    ).model_copy(update={"status": Status(**values)})  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*moments: tuple[float, TrainingRun]) -> list[str]:
    """The lines without their clock."""
    out = io.StringIO()
    lines = Lines(out)
    for seconds, status in moments:
        lines.show(status, T0 + timedelta(seconds=seconds))
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in out.getvalue().splitlines()]


def test_a_line_has_what_is_known() -> None:
    assert shown((0, run())) == ["Running     nodes 3/3  restarts 0"]
    full = run(120, 0.43214, restarts=Restarts(total=2), goodput=GoodputStatus(ratio=0.81))
    assert shown((0, full)) == ["Running     nodes 3/3  step 120/1000  loss 0.4321  restarts 2  goodput 81%"]


def test_progress_alone_is_a_line_every_five_per_cent_or_half_a_minute() -> None:
    lines = shown((0, run(10)), (1, run(11)), (2, run(59)), (3, run(60)), (20, run(61)), (33, run(62)), (34, run(62)))
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["10", "60", "62"]


def test_every_other_change_is_a_line() -> None:
    lines = shown(
        (0, run(10)), (0, run(11, phase=Phase.RESTARTING)), (0, run(12, phase=Phase.RESTARTING, nodes=Nodes(desired=3)))
    )
    assert len(lines) == 3


def test_nothing_changed_nothing_shown() -> None:
    assert len(shown((0, run(10)), (100, run(10)))) == 1


@pytest.mark.parametrize(
    ("out", "environment", "kind"),
    [
        (Terminal(), {"TERM": "xterm"}, LiveTable),
        (io.StringIO(), {"TERM": "xterm"}, Lines),
        (Terminal(), {"TERM": "xterm", "CI": "true"}, Lines),
        (Terminal(), {"TERM": "dumb"}, Lines),
        (Terminal(), {}, Lines),
    ],
)
def test_which_screen(out: io.StringIO, environment: dict[str, str], kind: type[Lines]) -> None:
    made = screen(out, environment)
    assert type(made) is kind
    made.close()


def test_the_table_on_a_terminal() -> None:
    out = Terminal()
    table = LiveTable(out)
    table.show(run(120, 0.4321), T0)
    table.say("resumed from step [100]")
    table.show(run(130, 0.4, restarts=Restarts(total=1)), T0)
    table.close()
    table.say("done")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    for title in ("Phase", "Nodes", "Step", "Loss", "Restarts", "Checkpoint", "Goodput", "default/digits"):
        assert title in text
    assert "130/1000" in text
    assert "resumed from step [100]" in text
    assert re.search(r"\d\d:\d\d:\d\d  done\n$", text)


@pytest.mark.parametrize("kind", [Lines, LiveTable])
def test_a_terminal_that_has_gone_is_no_error(kind: type[Lines]) -> None:
    main, other = pty.openpty()
    with open(other, "w") as out:
        lines = kind(out)
        os.close(main)
        lines.say("nobody reads this")
        lines.show(run(10), T0)
        lines.raw("nor this")
        lines.close()
        lines.say("nor that")

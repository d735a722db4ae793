"""The workers of one round on this node: started together, watched together, ended together."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from everstep.board import Board
from everstep.launch.environment import worker_environment
from everstep.launch.failures import from_status, left_record, oom_kills, root_cause
from everstep.launch.output import Output
from everstep.launch.processes import Spawner, kill
from everstep_protocol.messages import RankState, Round, Stage, Workers
from everstep_protocol.reasons import EXIT_STOPPED, Failure


@dataclass
class Worker:
    pid: int
    rank: int
    failure_file: Path
    status: int | None = None  # wait status, once it has ended
    killed: bool = False  # by us: how it ended says nothing

    @property
    def exit_code(self) -> int | None:
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)


class Group:
    """Workers and their board. Which end they come to is judged here; what follows from it is the agent's business."""

    def __init__(
        self,
        round: Round,
        *,
        node: int,
        nproc: int,
        folder: Path,
        spawner: Spawner,
        output: Output,
        base: Mapping[str, str],
        run_id: str,
        max_restarts: int,
    ) -> None:
        """Start all workers of `round`.

        Raises:
            OSError: a process, file or pipe could not be made; those already started are left to the caller's killing.
        """
        self.round = round
        self.node = node
        self.committed = False  # a stop: EXIT_STOPPED means that all is saved
        self.failures: list[Failure] = []  # earliest first
        self.workers: list[Worker] = []
        self._oom_kills = oom_kills()
        self._output = output
        self.board = Board.create(folder / f"board.{round.generation}", nproc)
        for local_rank in range(nproc):
            rank = round.rank_offset + local_rank
            record = folder / f"failure.{round.generation}.{local_rank}"
            environment = worker_environment(
                base,
                round,
                local_rank=local_rank,
                nproc=nproc,
                run_id=run_id,
                max_restarts=max_restarts,
                board=self.board.path,
                failure_file=record,
            )
            streams = output.open(rank, local_rank, nproc, round.generation)
            try:
                pid = spawner.start(environment, *streams)
            finally:
                for descriptor in set(streams) - {None}:
                    os.close(descriptor)  # type: ignore[arg-type]
            self.workers.append(Worker(pid, rank, record))

    def ended(self, pid: int, status: int) -> bool:
        """Take note of a child's end. Returns whether it was one of these workers."""
        for worker in self.workers:
            if worker.pid == pid and worker.status is None:
                worker.status = status
                return True
        return False

    @property
    def _good(self) -> set[int | None]:
        """Exit codes that are no failure; None: still running."""
        return {None, 0, EXIT_STOPPED} if self.committed else {None, 0}

    @property
    def state(self) -> Workers:
        codes = {worker.exit_code for worker in self.workers}
        if self.failures or codes - self._good:
            return Workers.FAILED
        if None in codes:
            return Workers.RUNNING
        return Workers.STOPPED if EXIT_STOPPED in codes else Workers.SUCCEEDED

    def note_failures(self) -> bool:
        """Read what dead and dying workers say. Returns whether anything new was learned.

        A worker that we killed may have left a record before: it had failed first and was still cleaning up while a
        peer already died of its silence.
        """
        known = {failure.rank for failure in self.failures}
        for local_rank, worker in enumerate(self.workers):
            if worker.rank in known:
                continue
            record = left_record(worker.failure_file)
            if record is None and worker.exit_code not in self._good and not worker.killed:
                assert worker.status is not None
                record = from_status(worker.status, oom_kills() > self._oom_kills)
            if record is not None:
                generation, step = self.round.generation, self.board.step(local_rank)
                lines = self._output.last_lines(worker.rank, self.round.generation)
                record = replace(record, node=self.node, rank=worker.rank, pid=worker.pid, last_lines=lines)
                self.failures.append(replace(record, generation=generation, step=step))
                self._output.append(worker.rank, self.round.generation, record.traceback)
        return len(self.failures) > len(known)

    def kill(self) -> None:
        """SIGKILL to every worker that still lives; what is below them is for processes.kill_descendants."""
        for worker in self.workers:
            if worker.status is None:
                worker.killed = True
                kill(worker.pid)

    def close(self) -> None:
        """Nobody lives any more: give the files back."""
        self.board.close()
        self.board.path.unlink(missing_ok=True)
        for worker in self.workers:
            worker.failure_file.unlink(missing_ok=True)

    @property
    def alive(self) -> bool:
        return any(worker.status is None for worker in self.workers)

    @property
    def failure(self) -> Failure | None:
        return root_cause(self.failures)

    @property
    def ranks(self) -> tuple[RankState, ...]:
        return tuple(
            RankState(worker.rank, worker.pid, self.board.step(local), self.board.stage(local))
            for local, worker in enumerate(self.workers)
        )

    @property
    def busy(self) -> bool:
        """A rank is where it may take long without a step: saving, or evaluating."""
        stages = {rank.stage for rank, worker in zip(self.ranks, self.workers, strict=True) if worker.status is None}
        return bool(stages & {Stage.SAVING, Stage.EVALUATING})

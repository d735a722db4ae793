"""A world without processes: launchers, ranks in lockstep, a clock that is a number. The coordinator in it is real."""

import itertools
import json
from dataclasses import dataclass, field, replace
from typing import Any

from everstep_operator.coordinator.run import Run
from everstep_protocol import codec
from everstep_protocol.messages import (
    LOST_SECONDS,
    Action,
    AgentState,
    CheckpointInfo,
    Directive,
    GrantRequest,
    Intent,
    Limit,
    LimitAck,
    Progress,
    RankState,
    Report,
    Round,
    RunState,
    Stage,
    StopCause,
    Workers,
)
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason

EPOCH = 1_700_000_000.0
UNLIMITED = 10**9

KILLED = Failure(Reason.KILLED, "killed by SIGKILL", signal=9)
ECHO = Failure(Reason.COMMUNICATION, "connection closed by peer", exit_code=1)
BUG = Failure(
    Reason.USER_EXCEPTION, "ValueError: no", exit_code=1, where="train.py:12", traceback="Traceback …\nValueError: no"
)


def intent(nodes: int = 3, **changes: Any) -> Intent:
    values: dict[str, Any] = {"nodes": nodes, "min_nodes": nodes, "max_restarts": 5, "run_uid": "uid"}
    return Intent(**{**values, **changes})


@dataclass
class Launcher:
    """What a launcher and its ranks do, as far as the coordinator can see it."""

    name: str
    node: int
    port: int
    nproc: int = 1
    pod: str = ""
    round: Round | None = None
    workers: Workers = Workers.NONE
    generation: int = 0
    steps: list[int] = field(default_factory=list)
    limit: Limit | None = None
    ack: LimitAck | None = None
    failure: Failure | None = None
    stop: StopCause | None = None
    directive: Directive | None = None
    memory: dict[str, Any] | None = None
    exit_code: int | None = None
    reachable: bool = True
    last_talk: float = -1e9
    shown: list[Failure] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def ranks(self) -> list[int]:
        assert self.round is not None
        return [self.round.rank_offset + local for local in range(self.nproc)]


class World:
    """Three nodes that train `total` steps, unless something happens."""

    def __init__(self, wish: Intent | None = None, *, total: int = 40, nproc: int = 1, start: bool = True) -> None:
        self.wish = wish or intent()
        self.now = 100.0
        self.total = total
        self.nproc = nproc
        self.saved: list[CheckpointInfo] = []
        self.resumed: dict[int, int] = {}  # step that a generation began with
        self.entered: dict[tuple[int, int], int] = {}  # (generation, rank) -> step
        self.formed: dict[int, tuple[int, str, int]] = {}  # generation -> world size and master
        self.failed: list[Failure] = []  # each generation's, as the coordinators told
        self._names = itertools.count(1)
        self._told_generation = 0
        self._told_restarts = self.wish.restarts_used
        self.bug: tuple[int, int] | None = None  # (node, step): raises there, each time
        self.run = Run(self.wish, self.now, epoch=EPOCH)
        self.launchers: list[Launcher] = []
        if start:
            for node in range(self.wish.nodes):
                self.join(node)

    # What may happen.

    def join(self, node: int, pod: str = "") -> Launcher:
        number = next(self._names)
        launcher = Launcher(f"agent-{number}", node, port=20_000 + number, nproc=self.nproc, pod=pod or f"pod-{node}")
        self.launchers.append(launcher)
        return launcher

    def fail(self, launcher: Launcher, failure: Failure) -> None:
        """A rank of this launcher dies, and the launcher kills the others."""
        if launcher.alive and launcher.workers is Workers.RUNNING:
            step = max(launcher.steps)
            launcher.workers = Workers.FAILED
            rank = launcher.ranks()[0]
            launcher.failure = replace(
                failure, step=step, rank=rank, node=launcher.node, generation=launcher.generation
            )

    def lose(self, launcher: Launcher) -> None:
        """The node is gone, launcher and ranks."""
        launcher.exit_code = 137

    def replace_coordinator(self) -> None:
        wish = replace(
            self.wish,
            first_generation=max(self._told_generation + 1, self.wish.first_generation),
            restarts_used=self._told_restarts,
        )
        self.run = Run(wish, self.now, epoch=EPOCH)

    def talk(self, launcher: Launcher) -> Directive | None:
        """One sync, there and back through JSON."""
        if not launcher.alive or not launcher.reachable:
            return None
        state = codec.loads(AgentState, codec.dumps(self._state(launcher)))
        answer = codec.loads(Directive, codec.dumps(self.run.sync(state, self.now)))
        launcher.last_talk = self.now
        self.run.answered(launcher.name, answer)
        if answer.memory:
            launcher.memory = json.loads(json.dumps(answer.memory))
        if answer.print_failure is not None:
            launcher.shown.append(answer.print_failure)
        launcher.directive = answer
        self._obey(launcher, answer)
        self._look()
        return answer

    def train(self, launcher: Launcher) -> None:
        """Every rank of this launcher goes on as far as the others let it: at most one step."""
        if not launcher.alive or launcher.workers is not Workers.RUNNING:
            return
        assert launcher.round is not None
        generation, world_size = launcher.generation, launcher.round.world_size
        slowest = min(self.entered.get((generation, rank), -1) for rank in range(world_size))
        done = stopped = 0
        for local, step in enumerate(launcher.steps):
            if step > slowest:
                continue  # the all-reduce of this step waits for the others
            if step == self.total:
                done += 1
            elif launcher.limit is not None and step + 1 > launcher.limit.step:
                stopped += launcher.limit.committed
            else:
                launcher.steps[local] = step + 1
                self.entered[generation, launcher.ranks()[local]] = step + 1
                if step and step % 5 == 0 and launcher.ranks()[local] == 0:
                    self._save(generation, step, world_size)
        if self.bug is not None and launcher.node == self.bug[0] and max(launcher.steps) >= self.bug[1]:
            self.fail(launcher, BUG)
        elif done == launcher.nproc:
            launcher.workers = Workers.SUCCEEDED
        elif stopped == launcher.nproc:
            self._save(generation, launcher.steps[0], world_size)
            launcher.workers = Workers.STOPPED

    def pass_time(self, seconds: float = 0.1) -> None:
        """Everybody who can, trains and talks; the clock goes on."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.1)
            self.run.tick(self.now)
            for launcher in list(self.launchers):
                self.train(launcher)
                self.talk(launcher)

    def until(self, *states: RunState, seconds: float = 400.0) -> Report:
        end = self.now + seconds
        while self.report.state not in states:
            assert self.now < end, f"{self.report.state} instead of {states}: {self.report.message}"
            self.pass_time()
        return self.report

    def until_step(self, step: int, seconds: float = 100.0) -> None:
        end = self.now + seconds
        while not self.crew or min(min(launcher.steps) for launcher in self.crew) < step:
            assert self.now < end, f"no step {step}: {self.report.state} {self.report.message}"
            self.pass_time()

    def next_round(self, seconds: float = 100.0) -> None:
        """Until a later generation runs, or none will."""
        generation, end = self.report.generation, self.now + seconds
        while self.report.generation == generation and self.report.state is not RunState.FAILED:
            assert self.now < end, f"no restart: {self.report.state} {self.report.message}"
            self.pass_time()

    # What one sees.

    @property
    def report(self) -> Report:
        return self.run.report(self.now)

    @property
    def crew(self) -> list[Launcher]:
        """Launchers whose workers train in the current generation."""
        return [
            launcher
            for launcher in self.launchers
            if launcher.alive and launcher.workers is Workers.RUNNING and launcher.generation == self.report.generation
        ]

    def at(self, node: int) -> Launcher:
        return next(launcher for launcher in reversed(self.launchers) if launcher.node == node)

    # The launchers' side.

    def _state(self, launcher: Launcher) -> AgentState:
        round = launcher.round
        holds_rank_0 = round is not None and round.rank_offset == 0 and launcher.generation > 0
        resumed = self.resumed.get(launcher.generation, 0)
        from_checkpoint = next((saved for saved in self.saved if saved.step == resumed), None)
        return AgentState(
            agent=launcher.name,
            node=launcher.node,
            address=f"10.0.0.{launcher.node}",
            port=launcher.port,
            nproc=launcher.nproc,
            pod=launcher.pod,
            generation=launcher.generation,
            workers=launcher.workers,
            ranks=tuple(
                RankState(rank, 1000 + rank, step, Stage.TRAINING)
                for rank, step in zip(launcher.ranks(), launcher.steps, strict=True)
            )
            if round is not None and launcher.workers is not Workers.NONE
            else (),
            failure=launcher.failure,
            progress=Progress(self._finished(launcher), self.total, loss=1.5) if holds_rank_0 else None,
            last_checkpoint=self.saved[-1] if holds_rank_0 and self.saved else None,
            resumed_from=from_checkpoint if holds_rank_0 else None,
            ack=launcher.ack,
            stop=launcher.stop,
            seen=launcher.directive.version if launcher.directive else 0,
            memory=launcher.memory if launcher.directive and launcher.directive.want_memory else None,
        )

    def _finished(self, launcher: Launcher) -> int:
        step = launcher.steps[0] if launcher.steps else 0
        return step if launcher.workers is Workers.SUCCEEDED else max(0, step - 1)

    def _obey(self, launcher: Launcher, directive: Directive) -> None:
        if directive.action is Action.EXIT:
            launcher.exit_code = directive.exit_code
        elif directive.action is Action.WAIT:
            launcher.workers = Workers.NONE
        elif directive.round is not None:
            if directive.round.generation > launcher.generation:
                self._start(launcher, directive.round)
            if directive.round.generation == launcher.generation and launcher.workers is Workers.RUNNING:
                self._keep(launcher, directive.limit)

    def _start(self, launcher: Launcher, round: Round) -> None:
        generation = round.generation
        shape = (round.world_size, round.master_address, round.master_port)
        if generation not in self.formed:
            assert all(generation > earlier for earlier in self.formed), "a generation came back"
            self.formed[generation] = shape
            self.resumed[generation] = self.saved[-1].step if self.saved else 0
        assert self.formed[generation] == shape, "one generation, two rounds"
        launcher.round, launcher.generation = round, generation
        launcher.workers, launcher.failure, launcher.ack, launcher.limit = Workers.RUNNING, None, None, None
        launcher.port += 100
        launcher.steps = [self.resumed[generation]] * launcher.nproc
        for rank in launcher.ranks():
            self.entered[generation, rank] = self.resumed[generation]

    def _keep(self, launcher: Launcher, limit: Limit | None) -> None:
        if limit is None:
            assert not (launcher.limit and launcher.limit.committed), "a committed step was taken back"
            launcher.limit = None
            return
        if launcher.limit is not None and launcher.limit.committed:
            assert limit == launcher.limit, "a committed step was changed"
        if launcher.ack is None or launcher.ack.proposal != limit.proposal:
            furthest = max(launcher.steps)
            launcher.ack = LimitAck(limit.proposal, furthest <= limit.step, furthest)
        if limit.committed:
            ranks = range(launcher.round.world_size) if launcher.round else ()
            assert all(self.entered.get((launcher.generation, rank), 0) <= limit.step for rank in ranks), (
                "a step was committed that a rank has passed"
            )
        launcher.limit = limit

    def _save(self, generation: int, step: int, world_size: int) -> None:
        if self.run.grant(GrantRequest(generation, step)).granted and not (self.saved and self.saved[-1].step >= step):
            self.saved.append(CheckpointInfo(step, f"s3://b/{generation}-{step}", world_size, generation, EPOCH))

    # What must hold at every moment.

    def _look(self) -> None:
        report = self.report
        self._told_generation = max(self._told_generation, report.generation)
        self._told_restarts = max(self._told_restarts, report.restarts)
        assert report.restarts <= self.wish.max_restarts
        for failure in report.failures:
            told = [earlier for earlier in self.failed if earlier.generation == failure.generation]
            if not told:
                self.failed.append(replace(failure, traceback=""))
        generations = [failure.generation for failure in report.failures]
        assert len(generations) == len(set(generations)), "a generation failed twice"
        goodput = report.goodput
        parts = goodput.productive + goodput.waiting + goodput.startup + sum(goodput.lost.values())
        assert abs(parts - goodput.wall) < 1e-6
        running = {
            launcher.generation
            for launcher in self.launchers
            if launcher.alive
            and launcher.workers is Workers.RUNNING
            and self.now - launcher.last_talk < LOST_SECONDS
            and self.at(launcher.node) is launcher
        }
        assert len(running) <= 1, f"generations {running} run at the same time"


def stopped_at(world: World) -> set[int]:
    """The steps at which launchers that saved and left stand."""
    return {step for launcher in world.launchers if launcher.exit_code == EXIT_STOPPED for step in launcher.steps}

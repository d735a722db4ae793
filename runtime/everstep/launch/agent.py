"""The launcher's loop: tell the coordinator everything, do what it answers, watch the workers meanwhile.

One thread decides. Signals, dead children and answers of the coordinator wake it through one pipe; nothing is polled.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
import uuid
from typing import Any, TypeVar

from everstep.launch.coordinators import Coordinator
from everstep.launch.cut_off import Standstill, Witness
from everstep.launch.failures import last_words, sentence
from everstep.launch.group import Group
from everstep.launch.link import Client, Link, LinkError, Refused
from everstep.launch.output import Output
from everstep.launch.places import PortReservation, WorkFolder
from everstep.launch.processes import Spawner, become_subreaper, kill_descendants, reap
from everstep.launch.settings import Settings
from everstep_protocol import codec
from everstep_protocol.messages import (
    Action,
    AgentState,
    CheckpointInfo,
    Directive,
    Limit,
    LimitAck,
    Progress,
    Round,
    StopCause,
    Workers,
)
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason

#: Own exit statuses for a stop that everything was saved for, by what asked this launcher to stop.
_STOPPED_BY = {StopCause.INTERRUPT: 130, StopCause.PREEMPTION: 143}
#: Kept of the grace for the launcher's own last words, before the pod is killed from outside.
_LAST_WORDS_SECONDS = 2.0
#: How long a launcher that wants to leave waits for processes that the kernel is slow to end.
_DYING_SECONDS = 20.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Agent:
    """One node's launcher. `run` returns its exit status."""

    def __init__(self, settings: Settings, coordinator: Coordinator, spawner: Spawner, output: Output) -> None:
        """Raises OSError (no port, no folder for shared memory), ValueError (the coordinator's address)."""
        self.settings = settings
        self.coordinator = coordinator
        self.spawner = spawner
        self.output = output
        self.folder = WorkFolder()
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.node = settings.node
        self._awake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.link = Link(Client(coordinator.url, coordinator.token), lambda: _poke(self._wake))

        # What the coordinator wants, and what we tell it.
        self.directive: Directive | None = None
        self.generation = 0
        self.workers = Workers.NONE
        self.failure: Failure | None = None  # of `generation`, on this node
        self.stop: StopCause | None = None
        self.ack: LimitAck | None = None
        self.memory: dict[str, Any] | None = None
        self._note: dict[str, Any] = {}
        self._port = PortReservation()
        self._round_port: PortReservation | None = None  # kept until the round is over

        # The workers and their end.
        self.group: Group | None = None
        self._limit: Limit | None = None
        self._kill_since: float | None = None  # SIGKILL is out, and something may still be alive
        self._discard = False  # once they are dead, forget the group
        self._save_by: float | None = None  # ranks that should save and leave are killed then
        self._places: object = None  # steps and stages when that was last put off
        self._standstill = Standstill(time.monotonic())
        self._witness = Witness(settings.witness)
        self._hard_deadline = False  # somebody else kills us then: it cannot be put off

        # The conversation.
        self._urgent = True  # something to say now
        self._next_offer = 0.0
        self._unanswered = 0
        self._silent_since: float | None = None
        self._heard = time.monotonic()  # the last answer
        self._idle_since = time.monotonic()  # since when no worker runs
        self._complained = False

        # The end.
        self.status: int | None = None  # decided: leave with it as soon as nothing lives
        self.cause: Failure | None = None  # the run's root cause, as the coordinator named it
        self._shown: set[tuple[int, int]] = set()
        self._shown_traceback = ""

    def run(self) -> int:
        """Until the coordinator says so, a second Ctrl-C does, or there is nobody to talk to and nothing to do."""
        become_subreaper()
        handlers = _catch_signals(self._wake)
        try:
            self.coordinator.start()
            self._witness.ask()
            while self.status is None or self._kill_since is not None:
                self._talk()
                select.select([self._awake], [], [], self._patience())
                for number in _drain(self._awake):
                    self._signal(number)
                self._children()
                self._listen()
                self._deadlines()
                self._bury()
            return self._leave(self.status)
        finally:
            self.coordinator.close()
            kill_descendants()
            self.link.close()
            self.folder.close()
            _restore_signals(handlers)

    # The conversation.

    def _patience(self) -> float:
        """Seconds until something is due by the clock; everything else wakes us."""
        now = time.monotonic()
        due = [now + 60.0]
        if self._kill_since is not None:
            due.append(now + min(max(0.002, now - self._kill_since), 0.25))  # a dying GPU process takes seconds
        if self.status is None and self.link.idle:
            due.append(self._next_offer)
        if self._save_by is not None or self._silent_since is not None:
            due.append(now + 0.5)
        return max(0.0, min(due) - now)

    def _talk(self) -> None:
        due = self.link.idle and time.monotonic() >= self._next_offer
        if self.status is None and (self._urgent or due):
            self._urgent = False
            self.link.offer(self.state())

    def state(self) -> AgentState:
        """Everything that the coordinator may want to know."""
        group, directive = self.group, self.directive
        if group is not None and group.round.rank_offset == 0:
            self._note = group.board.note(0) or self._note
        return AgentState(
            agent=self.name,
            node=self.node,
            address=self.settings.address,
            port=self._port.number,
            nproc=self.settings.nproc,
            pod=self.settings.pod,
            generation=self.generation,
            workers=self.workers,
            ranks=group.ranks if group else (),
            failure=self.failure,
            progress=_read(Progress, self._note.get("progress")),
            last_checkpoint=_read(CheckpointInfo, self._note.get("last_checkpoint")),
            resumed_from=_read(CheckpointInfo, self._note.get("resumed_from")),
            not_durable_since=since if isinstance(since := self._note.get("not_durable_since"), float) else None,
            not_durable_why=str(self._note.get("not_durable_why") or ""),
            ack=self.ack,
            stop=self.stop,
            seen=directive.version if directive else 0,
            memory=self.memory if directive and directive.want_memory else None,
        )

    def _listen(self) -> None:
        while (answer := self.link.take()) is not None:
            if isinstance(answer, LinkError):
                self._no_answer(answer)
                continue
            if self._complained:
                say(f"the coordinator {self.coordinator.url} answers again")
            self._silent_since, self._unanswered, self._complained, self._next_offer = None, 0, False, 0.0
            self._heard = time.monotonic()
            self._urgent |= answer.want_memory and not (self.directive and self.directive.want_memory)
            self.memory = answer.memory or self.memory
            if answer.print_failure is not None:
                self._show(answer.print_failure)
            if self.status is None:
                self.directive = answer
                self._obey()

    def _no_answer(self, error: LinkError) -> None:
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        self._unanswered += 1
        self._next_offer = now + min(0.025 * 2 ** min(self._unanswered, 7), 2.0)
        training = self.workers is Workers.RUNNING
        if isinstance(error, Refused) and not training and self.status is None:
            self._fail(Reason.CONFIGURATION, str(error))
        elif now - self._silent_since > 3.0 and not self._complained:
            self._complained = True
            say(f"{error}; {'training goes on' if training else 'trying again'}")

    # What the coordinator wants. Level-triggered: obeying twice changes nothing.

    def _obey(self) -> None:
        directive = self.directive
        if directive is None or self.status is not None:
            return
        if directive.action is Action.EXIT:
            status = directive.exit_code
            if status == EXIT_STOPPED and self.stop is not None:
                status = _STOPPED_BY[self.stop]
            self._decide(status)
            if directive.message and status:
                say(directive.message)
        elif directive.action is Action.WAIT:
            self._clear()
        elif directive.round is not None:
            if directive.round.generation > self.generation:
                self._start(directive.round)
            if directive.round.generation == self.generation:
                self._keep(directive.limit)

    def _start(self, round: Round) -> None:
        """Have the workers of `round`. Those of an earlier one go first; we come back when they are gone."""
        self._clear()
        if self._kill_since is not None:
            return
        self.generation = round.generation
        if self.node < 0:
            self.node = round.node_rank
        self.failure, self.ack, self._limit, self._note = None, None, None, {}
        self._round_port, self._port = self._port, PortReservation()
        self._standstill = Standstill(time.monotonic())
        self._urgent = True
        try:
            self.group = Group(
                round,
                node=self.node,
                nproc=self.settings.nproc,
                folder=self.folder.path,
                spawner=self.spawner,
                output=self.output,
                base=self.settings.environment,
                run_id=self.settings.run_id,
                max_restarts=self.settings.max_restarts,
            )
            self.workers = Workers.RUNNING
        except OSError as error:
            message = f"cannot start the workers: {error}"
            self.failure = Failure(Reason.UNKNOWN, message, node=self.node, generation=self.generation)
            self.workers = Workers.FAILED
            self._kill()

    def _keep(self, limit: Limit | None) -> None:
        """Put the agreed step on the board, and answer whether all ranks of this node can still keep it."""
        group = self.group
        if group is None or self.workers is not Workers.RUNNING or limit == self._limit:
            return
        self._limit = limit
        if limit is None:
            group.board.lift()
            self.ack = None
            return
        if self.ack is None or self.ack.proposal != limit.proposal:
            accepted, furthest = group.board.propose(limit.proposal, limit.step)
            self.ack = LimitAck(limit.proposal, accepted, furthest)
            self._urgent = True
        if limit.committed and self.ack.accepted:
            self._commit(group)

    def _commit(self, group: Group) -> None:
        group.committed = True
        group.board.commit()
        if self._save_by is None:
            self._save_by = time.monotonic() + self.settings.grace_seconds

    # What happens to the workers.

    def _children(self) -> None:
        group = self.group
        for pid, status in reap().items():
            if group is None or not group.ended(pid, status):
                self.coordinator.child_ended(pid)
        if group is None or self._discard:
            return
        state = group.state
        if state is Workers.FAILED:
            if group.note_failures():
                self.failure, self._urgent = group.failure, True
            if self.workers is not state:
                self._kill()
        if state is not self.workers:
            self.workers, self._urgent = state, True
            self._idle_since = time.monotonic()
            if state is not Workers.FAILED:
                self._kill()  # what they have left behind

    def _clear(self) -> None:
        """Have no workers: kill those there are, then forget them."""
        if self.workers is not Workers.NONE or self.group is not None:
            self._discard = True
            self._kill()

    def _kill(self) -> None:
        """SIGKILL to the workers and to all that they have started, wherever it hides."""
        if self.group is not None:
            self.group.kill()
        if self._kill_since is None:
            self._kill_since = time.monotonic()
        self._bury()

    def _bury(self) -> None:
        """Go on killing until nothing is left; then, if that was the wish, forget the group and obey anew."""
        if self._kill_since is None:
            return
        own = self.coordinator.pid
        left = kill_descendants(spared=() if own is None else (own,))
        for pid, status in reap().items():
            if self.group is None or not self.group.ended(pid, status):
                self.coordinator.child_ended(pid)
        if left or (self.group is not None and self.group.alive):
            if self.status is None or time.monotonic() - self._kill_since < _DYING_SECONDS:
                return
            say("some processes do not die even of SIGKILL; leaving without them")
        self._kill_since = None
        if self.group is not None and self.group.note_failures():
            self.failure, self._urgent = self.group.failure, True
        if not self._discard:
            return
        self._discard, self._round_port = False, None
        if not self._hard_deadline:
            self._save_by = None
        if self.group is not None:
            self.state()  # the last note
            self.group.close()
        self.group, self.workers, self._urgent = None, Workers.NONE, True
        self._idle_since = time.monotonic()
        self._obey()

    # Signals and clocks.

    def _signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGHUP) and not self._hard_deadline:
            self.stop, self._urgent, self._hard_deadline = self.stop or StopCause.PREEMPTION, True, True
            grace = max(self.settings.grace_seconds - _LAST_WORDS_SECONDS, self.settings.grace_seconds / 2)
            self._save_by = time.monotonic() + grace
            say(f"asked to stop: saving at an agreed step, at most {grace:.0f} s")
        elif number == signal.SIGINT and self.stop is StopCause.INTERRUPT:
            say("interrupted again: leaving at once")
            self._decide(_STOPPED_BY[StopCause.INTERRUPT])
        elif number == signal.SIGINT:
            self.stop, self._urgent = StopCause.INTERRUPT, True
            say("interrupted: saving at an agreed step; Ctrl-C again leaves at once")

    def _deadlines(self) -> None:
        now = time.monotonic()
        if self.status is not None:
            return
        if self.group is not None:
            self._standstill.see(self.group.ranks, now)
        if self._save_by is not None and self.workers is Workers.RUNNING and self.group is not None:
            # Ranks that save, evaluate or move are on their way; only a pod's own end cannot wait for them.
            if not self._hard_deadline and (self.group.busy or self.group.ranks != self._places):
                self._places = self.group.ranks
                self._save_by = now + self.settings.grace_seconds
            elif now > self._save_by:
                self._fail(Reason.PREEMPTED, f"did not save and leave within {self.settings.grace_seconds:.0f} s")
                return
        elif self._hard_deadline and self._save_by is not None and now > self._save_by:
            self._decide(1 if self.workers is Workers.FAILED else _STOPPED_BY[StopCause.PREEMPTION])
            return
        if self._silent_since is None:
            return
        if self.workers is Workers.RUNNING:
            if self.stop is not None and now - self._silent_since > 1.0:
                self._agree_alone()
            elif self._is_cut_off(now):
                say("cut off from the coordinator and from all other nodes: ending the workers")
                self._clear()
            return
        outcome = {Workers.SUCCEEDED: 0, Workers.STOPPED: EXIT_STOPPED}.get(self.workers)
        if self.stop is not None and self.workers is not Workers.FAILED:
            self._decide(outcome if outcome == 0 else _STOPPED_BY[self.stop])
        elif now - max(self._silent_since, self._idle_since) > self.settings.give_up_seconds:
            if outcome is not None:
                self._decide(outcome)
            else:
                waited = f"{self.settings.give_up_seconds:.0f} s"
                self._fail(Reason.NODE_LOST, f"no answer from the coordinator {self.coordinator.url} for {waited}")

    def _is_cut_off(self, now: float) -> bool:
        group = self.group
        if group is None:
            return False
        if group.round.nodes == 1:  # its ranks wait for nobody, and would train on beside their replacement
            self._witness.ask()
            return self._witness.is_missed(self._heard, now)
        return not group.busy and self._standstill.is_cut_off(self._heard, now)

    def _agree_alone(self) -> None:
        """The coordinator is gone and we are to stop: on a single node nobody else has to agree."""
        group = self.group
        if group is None or group.round.nodes > 1 or group.committed or self.stop is None:
            return
        margin = 1
        while (furthest := group.board.furthest()) > 0:
            accepted, _ = group.board.propose(0, furthest + margin)
            if accepted:
                self._commit(group)
                return
            margin *= 2
        self._decide(_STOPPED_BY[self.stop])  # no step has begun: nothing to save

    # The end.

    def _decide(self, status: int) -> None:
        self.status = status
        self._clear()

    def _fail(self, reason: Reason, message: str) -> None:
        """Our own decision to give up."""
        self.failure = Failure(reason, message, node=self.node, generation=self.generation)
        say(sentence(self.failure))
        self._decide(1)

    def _show(self, failure: Failure) -> None:
        """This launcher holds the run's root cause: tell people, and the traceback of one bug only once."""
        self.cause = failure
        key = (failure.generation, failure.rank)
        if key in self._shown:
            return
        self._shown.add(key)
        say(sentence(failure))
        if failure.traceback and failure.fingerprint != self._shown_traceback:
            self._shown_traceback = failure.fingerprint
            self.output.drain(0.5)
            with contextlib.suppress(OSError):
                print(failure.traceback.rstrip(), file=sys.stderr, flush=True)

    def _leave(self, status: int | None) -> int:
        assert status is not None
        if self.directive is None or self.directive.action is not Action.EXIT:
            self._say_goodbye()
        self.output.drain(1.0)
        path = self.settings.termination_file
        if path is not None and status != 0:
            words = self.cause or self.failure
            if words is None:
                stopped = status in (EXIT_STOPPED, *_STOPPED_BY.values())
                message = self.directive.message if self.directive else ""
                reason = Reason.PREEMPTED if stopped else Reason.UNKNOWN
                words = Failure(reason, message or "stopped", node=self.node, generation=self.generation)
            try:
                path.write_bytes(last_words(words))
            except OSError as error:
                say(f"cannot write the last words to {path}: {error}")
        return status

    def _say_goodbye(self) -> None:
        """We leave on our own account: tell the coordinator if it listens, it would notice only after a while."""
        self.link.offer(self.state())
        until = time.monotonic() + 0.5
        while not self.link.idle and self.link.take() is None and (left := until - time.monotonic()) > 0:
            select.select([self._awake], [], [], left)
            _drain(self._awake)


Message = TypeVar("Message")


def _read(kind: type[Message], data: Any) -> Message | None:
    """A part of a rank's note; whatever else a script has written there is left alone."""
    try:
        return None if data is None else codec.decode(kind, data)
    except codec.BadMessage:
        return None


def say(sentence: str) -> None:
    """To people, on stderr."""
    with contextlib.suppress(OSError):  # nobody reads it: no reason to end a training
        print(f"everstep: {sentence}", file=sys.stderr, flush=True)


def _catch_signals(wake: int) -> dict[int, Any]:
    """Signals become bytes in the pipe. One that was ignored from outside (nohup) stays so."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN or number == signal.SIGCHLD:
            signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    return before


def _restore_signals(handlers: dict[int, Any]) -> None:
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _poke(wake: int) -> None:
    with contextlib.suppress(BlockingIOError):  # full: it will wake up anyway
        os.write(wake, b"\0")


def _drain(awake: int) -> bytes:
    """The signal numbers that came, zeros between them."""
    try:
        return os.read(awake, 65536)
    except BlockingIOError:
        return b""

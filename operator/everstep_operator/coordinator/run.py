"""The state machine of one run. It is told things (`sync`, `set_intent`, `tick`) and the time; it holds no clock.

    WAITING -> STARTING -> RUNNING -> SUCCEEDED
                  ^           |
                  |        failure: all are told to WAIT (kill at once), a moment is given to the reports,
                  |           |     the root cause decides: FAILED, or
               RESTARTING <---+     a pause, then a new round with the next generation
    any of them + a stop: STOPPING (agree on a step, let it be saved) -> STOPPED

Times called `now` are monotonic seconds. Every method may be called at any time, any number of times.
"""

from dataclasses import dataclass, replace

from everstep_operator.coordinator import limit as agreed
from everstep_operator.coordinator import restarts
from everstep_operator.coordinator.goodput import Ledger
from everstep_operator.coordinator.limit import Agreement
from everstep_operator.coordinator.memory import Memory, recall
from everstep_operator.coordinator.restarts import Record, describe
from everstep_operator.coordinator.rounds import Formation, Seat, enough, form
from everstep_operator.coordinator.training import Training
from everstep_protocol import codec
from everstep_protocol.messages import (
    LOST_SECONDS,
    SYNC_SECONDS,
    Action,
    AgentState,
    Directive,
    Grant,
    GrantRequest,
    Intent,
    LimitAck,
    Member,
    Report,
    RunState,
    StopCause,
    Workers,
)
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason
from everstep_protocol.version import PROTOCOL_VERSION

#: With at least min_nodes there, so long are the missing nodes waited for.
JOIN_SECONDS = 30.0
#: After the first report of a failure, so long are the other nodes asked for a better explanation.
SETTLE_SECONDS = 0.5
#: Only who has spoken within this time gets a seat in a new round.
FRESH_SECONDS = 3 * SYNC_SECONDS
#: If no time has passed here for so long (a machine asleep, a process stopped), the silence was ours.
ASLEEP_SECONDS = 3.0
#: A node that was given a round and has no workers after this long has failed.
START_SECONDS = 60.0
#: A launcher that was turned away leaves within seconds, and one that nobody answers gives up: it does not come back.
FORGET_SECONDS = 3600.0

_KEPT_FAILURES = 10
_GONE = (Workers.SUCCEEDED, Workers.STOPPED)  # all workers exited, as they should
_EXIT_CODES = {RunState.SUCCEEDED: 0, RunState.FAILED: 1, RunState.STOPPED: EXIT_STOPPED}


@dataclass
class Peer:
    """An agent that talks to us, or one that a predecessor gave a seat and that we have yet to hear from."""

    agent: str
    node: int
    heard: float
    state: AgentState | None = None
    silent_on_memory: bool = False  # it has talked to a predecessor and has not told us yet what it remembers
    asked: int | None = None  # version of the directive that asked for the memory
    idle_since: float | None = None  # has a seat, and no workers on it
    dismissed: bool = False  # has been told to leave


@dataclass(frozen=True)
class Dismissal:
    """Of a launcher that has to leave, for good."""

    exit_code: int
    why: str
    heard: float  # when the launcher spoke last, or was told


class Run:
    """One run's coordinator, without the network."""

    def __init__(
        self,
        intent: Intent,
        now: float,
        *,
        epoch: float = 0.0,
        join_seconds: float = JOIN_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        """`epoch`: what to add to `now` to get seconds since the epoch.

        Raises:
            codec.BadMessage: the intent contradicts itself.
        """
        _check(intent)
        self.intent = intent
        self._epoch = epoch
        self._began = self._awake_at = now
        self._join_seconds = join_seconds
        self._settle_seconds = settle_seconds
        # Grows over coordinators, so that no agent takes a successor's directive for one it has seen.
        self.version = self._author = int((now + epoch) * 1000) + 1

        self._peers: dict[str, Peer] = {}
        self._turned_away: dict[str, Dismissal] = {}  # by agent
        self._preempted: set[str] = set()  # agents whose pod has to leave
        self._lost: dict[int, str] = {}  # by node: the pod of a launcher that fell silent
        self._learned: tuple[int, float] | None = None  # age of the newest memory taken over
        self._formed = False  # a round of our own: memories of others are history now

        self.generation = 0
        self.formation: Formation | None = None
        self._agreement: Agreement | None = None
        self._proposals = 0
        self.stop: StopCause | None = None
        self.outcome: RunState | None = None
        self._message = ""

        self._record = Record(restarts=intent.restarts_used)
        self.failures: tuple[Failure, ...] = ()
        self._evidence: dict[str, tuple[float, Failure]] = {}  # by agent: when heard, what
        self._settle_until: float | None = None
        self._not_before = now
        self._joining_since: float | None = None
        self._restarting = False
        self._show: tuple[str, int, Failure] | None = None  # agent, version of the directive, root cause

        self._training = Training(Ledger.after(intent.goodput, now + epoch))

    # What is told.

    def sync(self, state: AgentState, now: float) -> Directive:
        """An agent speaks: take in its state, answer with what it shall do."""
        self._meet(state, now)
        peer = self._peers.get(state.agent)
        if peer is not None:
            self._take_in(peer, state, now)
        self._advance(now)
        return self.directive(state.agent)

    def set_intent(self, intent: Intent, now: float) -> None:
        """The operator speaks. `restarts_used` and `goodput` tell what was before this coordinator: once.

        Raises:
            codec.BadMessage: the intent contradicts itself.
        """
        _check(intent)
        if intent != self.intent:
            self.intent = intent
            self._advance(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._advance(now)

    def wake_at(self, now: float) -> float:
        """When `tick` has something to do at the latest if nobody speaks; it is called at least every second."""
        due = [now + 1.0]
        due += [peer.heard + LOST_SECONDS for peer in self._peers.values()]
        due += [peer.idle_since + START_SECONDS for peer in self._peers.values() if peer.idle_since is not None]
        if self._settle_until is not None:
            due.append(self._settle_until)
        if self.formation is None and self.outcome is None:
            due.append(self._not_before)
            if self._joining_since is not None:
                due.append(self._joining_since + self._join_seconds)
        return min(time for time in due if time > now)

    # What is answered.

    def directive(self, agent: str) -> Directive:
        """What this agent shall do now. `version` changes whenever that may have changed."""
        if (dismissal := self._turned_away.get(agent)) is not None:
            return Directive(self.version, Action.EXIT, exit_code=dismissal.exit_code, message=dismissal.why)
        peer = self._peers[agent]
        if peer.silent_on_memory:
            # Go on as you are. No memory of ours: it would overwrite the one that we ask for.
            peer.asked = self.version
            return Directive(self.version, Action.RUN, want_memory=True)
        shown = self._show[2] if self._show is not None and self._show[0] == agent else None
        memory = codec.encode(self._memory())
        if self.outcome is not None:
            code = _EXIT_CODES[self.outcome]
            return Directive(
                self.version,
                Action.EXIT,
                exit_code=code,
                message=self._message,
                print_failure=shown,
                memory=memory,
            )
        seat = self.formation.seat_of(agent) if self.formation is not None else None
        if self.formation is None or seat is None or self._settle_until is not None:
            return Directive(self.version, Action.WAIT, message=self._message, print_failure=shown, memory=memory)
        return Directive(
            self.version,
            Action.RUN,
            round=self.formation.round_of(seat),
            limit=self._agreement.limit if self._agreement is not None else None,
            message=self._message,
            print_failure=shown,
            memory=memory,
        )

    def answered(self, agent: str, directive: Directive) -> None:
        """The directive has been handed to the network: an agent that was told to leave is not waited for."""
        if directive.action is Action.EXIT and agent in self._peers:
            self._peers[agent].dismissed = True

    def knows(self, generation: int) -> bool:
        """False: an agent may still tell that this generation is the running one; ask again."""
        return generation <= self.generation or self._formed

    def grant(self, request: GrantRequest) -> Grant:
        """May this generation publish a checkpoint? Only the one that runs now, and only while it is whole."""
        if self.outcome is not None:
            return Grant(False, f"the run is over ({self.outcome})")
        if self.formation is None or request.generation != self.formation.generation:
            current = self.formation.generation if self.formation is not None else self.generation
            if request.generation == current:
                return Grant(False, f"generation {current} has failed")
            return Grant(False, f"generation {request.generation} is not the one that runs (that is {current})")
        if self._settle_until is not None:
            return Grant(False, f"generation {request.generation} has failed")
        return Grant(True)

    def alone(self) -> bool:
        """No agent is left that has to be told something."""
        return all(peer.dismissed for peer in self._peers.values())

    @property
    def restarts_by_reason(self) -> dict[str, int]:
        """Of restarts whose reason is known; Report.restarts may be more."""
        return dict(self._record.by_reason)

    def report(self, now: float) -> Report:
        peers = sorted(self._peers.values(), key=lambda peer: peer.node)
        return Report(
            protocol=PROTOCOL_VERSION,
            state=self.state,
            generation=self.generation,
            world_size=self.formation.world_size if self.formation is not None else 0,
            restarts=self._record.restarts,
            failures=self.failures,
            message=self._explain(now),
            members=tuple(_member(peer, now) for peer in peers),
            progress=self._training.progress,
            last_checkpoint=self._training.last_checkpoint,
            resumed_from=self._training.resumed_from,
            not_durable_since=self._training.not_durable_since,
            not_durable_why=self._training.not_durable_why,
            stop=self.stop,
            goodput=self._training.ledger.goodput(now + self._epoch),
            intent=self.intent,
            seconds_up=now - self._began,
            lost=tuple(pod for _, pod in sorted(self._lost.items())),
        )

    @property
    def state(self) -> RunState:
        if self.outcome is not None:
            return self.outcome
        if self.stop is not None:
            return RunState.STOPPING
        if self._settle_until is not None or (self.formation is None and self._restarting):
            return RunState.RESTARTING
        if self.formation is None:
            return RunState.WAITING
        return RunState.RUNNING if self._training.stepped else RunState.STARTING

    # Who is there.

    def _meet(self, state: AgentState, now: float) -> None:
        """Know the agent, give it a node index, settle who holds an index that two claim."""
        agent = state.agent
        if agent in self._turned_away:
            self._turned_away[agent] = replace(self._turned_away[agent], heard=now)
        if agent in self._turned_away or agent in self._peers:
            return
        seat = self.formation.seat_of(agent) if self.formation is not None else None
        if self.formation is not None and seat is None and 0 < state.generation < self.generation:
            # It was lost, and the others went on without it.
            self._turn_away(agent, now, f"generation {state.generation} is over, {self.generation} runs without it")
            return
        if self.outcome is RunState.STOPPED and self.intent.stop is None:
            self._revive(now)
        if seat is not None:
            node = seat.node  # a launcher without an index of its own calls itself by its rank, which may be lower
        else:
            node = state.node if state.node >= 0 else self._free_node()
        holder = next((peer for peer in self._peers.values() if peer.node == node), None)
        if holder is not None:
            if 0 < state.generation < self._generation_of(holder):
                self._turn_away(agent, now, f"node {node} belongs to a newer launcher")
                return
            self._turn_away(holder.agent, now, f"node {node} was taken over by a newer launcher")
            self._lose(holder, now, f"the launcher of node {node} was replaced by a new one")
        self._lost.pop(node, None)
        # Whoever has heard a directive before has heard it from a predecessor, and may know what that one knew.
        self._peers[agent] = Peer(agent, node, heard=now, silent_on_memory=state.seen > 0 and not self._formed)

    def _free_node(self) -> int:
        taken = {peer.node for peer in self._peers.values()}
        return next(node for node in range(len(taken) + 1) if node not in taken)

    def _generation_of(self, peer: Peer) -> int:
        if self.formation is not None and self.formation.seat_of(peer.agent):
            return self.formation.generation
        return peer.state.generation if peer.state is not None else 0

    def _turn_away(self, agent: str, now: float, why: str, exit_code: int = 1) -> None:
        self._turned_away[agent] = Dismissal(exit_code, why, now)
        self._touch()

    def _take_in(self, peer: Peer, state: AgentState, now: float) -> None:
        before = peer.state
        peer.state, peer.heard = state, now
        if state.stop is StopCause.PREEMPTION:
            self._preempted.add(peer.agent)
        if peer.silent_on_memory:
            if state.memory is not None:
                self._learn(recall(state.memory), now)
            if state.memory is not None or state.seen == peer.asked or state.seen == 0:
                peer.silent_on_memory = False
                self._touch()
        if self._show is not None and self._show[0] == peer.agent and state.seen >= self._show[1]:
            self._show = None  # it has seen the root cause and told people
        seat = self.formation.seat_of(peer.agent) if self.formation is not None else None
        if seat is not None and not self._has_workers(state):
            peer.idle_since = peer.idle_since if peer.idle_since is not None else now
            vanished = before is not None and self._has_workers(before) and state.generation == before.generation
            if vanished and self._settle_until is None:  # after a failure they are killed, as told
                self._suspect(peer.agent, now, self._unknown(peer.node, "the workers are gone without a word"))
        else:
            peer.idle_since = None
        waiting = seat is None and not peer.silent_on_memory and self.outcome is None
        if waiting and state.stop is StopCause.PREEMPTION:
            # It has nothing to save, and nobody depends on it: it just leaves.
            self._turn_away(peer.agent, now, "stopped before it had a part in the training", EXIT_STOPPED)
            del self._peers[peer.agent]

    def _has_workers(self, state: AgentState) -> bool:
        """The state speaks of workers of the current generation."""
        return state.generation == self.generation and state.workers is not Workers.NONE

    def _current(self, seat: Seat) -> AgentState | None:
        """What this seat's agent says of the current generation; None if it has not said anything of it."""
        peer = self._peers.get(seat.agent)
        if peer is None or peer.state is None or peer.state.generation != self.generation:
            return None
        return peer.state

    def _lose(self, peer: Peer, now: float, why: str) -> None:
        """This agent does not come back, or has no place any more."""
        seated = self.formation is not None and self.formation.seat_of(peer.agent) is not None
        failure = Failure(Reason.NODE_LOST, why, node=peer.node, generation=self.generation)
        if seated:
            self._suspect(peer.agent, now, replace(failure, step=self._training.furthest))
        elif self.state is RunState.RESTARTING and peer.state is not None and self.failures:
            self._explain_echo(failure, peer.state.generation)
        self._peers.pop(peer.agent, None)
        self._touch()

    def _explain_echo(self, failure: Failure, generation: int) -> None:
        """A lost node shows late; the communication errors that it left behind were its echo."""
        last = self.failures[-1]
        if last.reason is Reason.COMMUNICATION and last.generation == generation == self.generation:
            self.failures = (*self.failures[:-1], replace(failure, step=last.step))

    def _drop_silent(self, now: float) -> None:
        for peer in list(self._peers.values()):
            silent = now - peer.heard
            if silent < LOST_SECONDS or (self.outcome is None and self._finished(peer)):
                continue
            if self.outcome is None and peer.state is not None and peer.state.pod:
                self._lost[peer.node] = peer.state.pod
            self._lose(peer, now, f"node {peer.node} has not spoken for {silent:.0f} s")

    def _forget_dismissed(self, now: float) -> None:
        for agent, dismissal in list(self._turned_away.items()):
            if now - dismissal.heard >= FORGET_SECONDS:
                del self._turned_away[agent]

    def _finished(self, peer: Peer) -> bool:
        """All its workers exited as they should: nobody needs it any more, whether it speaks or not."""
        state = peer.state
        return state is not None and state.generation == self.generation and state.workers in _GONE

    # What a predecessor knew.

    def _learn(self, memory: Memory | None, now: float) -> None:
        if memory is None or self._formed or memory.author == self._author or self.outcome is not None:
            return
        if (self._learned is not None and memory.age <= self._learned) or memory.generation < self.generation:
            return
        self._learned = memory.age
        self.version = max(self.version, memory.version)
        self.generation = memory.generation
        self.formation = memory.formation
        self._agreement, self._proposals = memory.agreement, memory.proposals
        self.stop, self.outcome, self._message = memory.stop, memory.outcome, memory.message
        self._record = replace(memory.record, restarts=max(memory.record.restarts, self.intent.restarts_used))
        self.failures = memory.failures
        self._training.recall(memory.ledger)
        self._evidence, self._settle_until = {}, None
        self._restarting = bool(memory.failures)
        for seat in self.formation.seats if self.formation is not None else ():
            if seat.agent in self._peers or seat.agent in self._turned_away:
                continue
            if any(peer.node == seat.node for peer in self._peers.values()):
                self._turn_away(seat.agent, now, f"node {seat.node} was taken over by a newer launcher")
            else:
                self._peers[seat.agent] = Peer(seat.agent, seat.node, heard=now, silent_on_memory=True)
        if memory.failing and self.formation is not None:
            self._settle_until = now + self._settle_seconds
        self._touch()

    def _memory(self) -> Memory:
        return Memory(
            author=self._author,
            version=self.version,
            generation=self.generation,
            formation=self.formation,
            failing=self._settle_until is not None,
            agreement=self._agreement,
            proposals=self._proposals,
            stop=self.stop,
            outcome=self.outcome,
            message=self._message,
            record=self._record,
            failures=tuple(replace(failure, traceback="") for failure in self.failures),
            ledger=self._training.ledger,
        )

    # What follows from it.

    def _advance(self, now: float) -> None:
        asleep, self._awake_at = now - self._awake_at, now
        if asleep > ASLEEP_SECONDS:
            for peer in self._peers.values():
                peer.heard = min(peer.heard + asleep, now)
        self._drop_silent(now)
        self._forget_dismissed(now)
        if self.outcome is not None:
            return
        if any(peer.silent_on_memory for peer in self._peers.values()):
            return  # it may tell of a round that is on, or of a step that is agreed already
        self._heed_stop()
        self._follow_training(now)
        if self.formation is not None:
            self._watch(self.formation, now)
        elif self.stop is not None:
            self._end(RunState.STOPPED, now, f"stopped ({self.stop}): no step was under way, nothing to save")
        else:
            self._form(now)

    def _heed_stop(self) -> None:
        """A stop, once wanted, stays: ranks may be on their way to the agreed step already."""
        if self.stop is not None:
            return
        wishes = [self.intent.stop] + [peer.state.stop for peer in self._peers.values() if peer.state is not None]
        self.stop = next((wish for wish in wishes if wish is not None), None)
        if self.stop is not None:
            self._touch()

    def _follow_training(self, now: float) -> None:
        if self.formation is None or self._settle_until is not None:
            return
        states = [state for seat in self.formation.seats if (state := self._current(seat)) is not None]
        self._training.hear(states, self._proposals, now + self._epoch)

    def _watch(self, formation: Formation, now: float) -> None:
        """A round is on: has it failed, is it over, does it have to stop?"""
        for seat in formation.seats:
            self._look_at(seat, now)
        if self._evidence and self._settle_until is None:
            self._settle_until = now + self._settle_seconds
            self._message = "a rank has failed: stopping the others"
            self._touch()
        if self._settle_until is not None:
            if now >= self._settle_until or all(self._has_stopped(seat) for seat in formation.seats):
                self._decide(formation, now)
            return
        ends = [state.workers if (state := self._current(seat)) is not None else None for seat in formation.seats]
        if all(end is Workers.SUCCEEDED for end in ends):
            self._end(RunState.SUCCEEDED, now, "")
        elif all(end in _GONE for end in ends):
            self._stopped(formation, now, self._saved())
        elif self.stop is not None:
            self._agree(formation, self.stop, now)

    def _look_at(self, seat: Seat, now: float) -> None:
        """Collect what this seat's agent says of a failure."""
        peer, state = self._peers.get(seat.agent), self._current(seat)
        if peer is None:
            if seat.agent not in self._evidence:
                why = f"the launcher of node {seat.node} has left"
                self._suspect(
                    seat.agent, now, Failure(Reason.NODE_LOST, why, node=seat.node, step=self._training.furthest)
                )
        elif state is not None and (state.workers is Workers.FAILED or state.failure is not None):
            failure = state.failure or self._unknown(seat.node, "a worker failed and left no word")
            self._suspect(seat.agent, now, failure)
        elif state is not None and state.workers is Workers.STOPPED and not self._committed:
            self._suspect(seat.agent, now, self._unknown(seat.node, f"exit status {EXIT_STOPPED} without a stop"))
        elif peer.idle_since is not None and now - peer.idle_since >= START_SECONDS:
            self._suspect(seat.agent, now, self._unknown(seat.node, f"no workers after {START_SECONDS:.0f} s"))

    def _suspect(self, agent: str, now: float, failure: Failure) -> None:
        heard = self._evidence[agent][0] if agent in self._evidence else now
        self._evidence[agent] = (heard, replace(failure, generation=self.generation))

    def _unknown(self, node: int, message: str) -> Failure:
        return Failure(Reason.UNKNOWN, message, node=node, step=self._training.furthest, generation=self.generation)

    def _has_stopped(self, seat: Seat) -> bool:
        if seat.agent not in self._peers:
            return True
        state = self._current(seat)
        return state is not None and state.workers is not Workers.RUNNING

    @property
    def _committed(self) -> bool:
        return self._agreement is not None and self._agreement.limit.committed

    def _saved(self) -> str:
        step = self._agreement.limit.step if self._agreement is not None else self._training.furthest
        return f"stopped ({self.stop}) at the agreed step {step}"

    # A pod has to leave, and another one comes in its place.

    def _others_wait(self, formation: Formation) -> bool:
        """This stop is for some of the launchers only: the others wait for those who come in their place."""
        leaving = [seat for seat in formation.seats if seat.agent in self._preempted]
        wanted = self.intent.replaces and self.intent.stop is None and self.stop is StopCause.PREEMPTION
        return wanted and 0 < len(leaving) < len(formation.seats)

    def _stopped(self, formation: Formation, now: float, how: str) -> None:
        if self._others_wait(formation):
            self._part(formation, now, how)
            self._training.wait(now + self._epoch)
        else:
            self._end(RunState.STOPPED, now, how)

    def _part(self, formation: Formation, now: float, why: str) -> None:
        for seat in formation.seats:
            if seat.agent in self._preempted:
                self._turn_away(seat.agent, now, why, EXIT_STOPPED)
                self._peers.pop(seat.agent, None)
        self.stop, self.formation, self._agreement = None, None, None
        self._joining_since, self._message = None, why
        self._touch()

    # A generation fails: once, and never without a decision.

    def _decide(self, formation: Formation, now: float) -> None:
        if not self._evidence:  # a predecessor saw the failure, and nobody can repeat it
            seat = formation.seats[0]
            self._suspect(seat.agent, now, self._unknown(-1, "a rank failed while the coordinator was replaced"))
        failure = restarts.root_cause(self._evidence.values())
        holder = next(agent for agent, (_, told) in self._evidence.items() if told is failure)
        if self._others_wait(formation):
            self._part(formation, now, f"node {failure.node} had to leave before all had saved")
            if holder in self._preempted:  # its time was over: no failure of the run
                self._training.fail(Reason.PREEMPTED, 0, now + self._epoch)
                self._settle_until, self._evidence = None, {}
                self._advance(now)
                return
        step = self._training.reached(failure)
        self._record = restarts.after(self._record, failure, step, self._training.durable_step)
        self.failures = (*self.failures, failure)[-_KEPT_FAILURES:]
        self._training.fail(failure.reason, step, now + self._epoch)
        self.formation, self._settle_until, self._evidence = None, None, {}
        self._agreement = None
        self._restarting = True
        self._joining_since = None
        self._touch()
        self._show = (holder, self.version, failure)
        gave_up = restarts.why_give_up(self._record, failure, step, self.intent)
        if gave_up is not None:
            self._end(RunState.FAILED, now, gave_up)
        elif self.stop is not None:
            lost = f"stopped ({self.stop}) by a failure before the agreed step was saved: {describe(failure)}"
            self._end(RunState.STOPPED, now, lost)
        else:
            self._record = restarts.count(self._record, failure)
            pause = restarts.pause(self._record, self.intent)
            self._not_before = now + pause
            wait = f" in {pause:.1f} s" if pause > 0 else ""
            budget = f"{self._record.restarts} of {self.intent.max_restarts}"
            self._message = f"restart {budget}{wait}: {describe(failure)}"
            self._advance(now)

    def _end(self, outcome: RunState, now: float, message: str) -> None:
        self.outcome, self._message = outcome, message
        self._training.end(now + self._epoch)
        self.formation, self._agreement, self._settle_until = None, None, None
        self._touch()
        if self._show is not None:
            self._show = (self._show[0], self.version, self._show[2])

    def _revive(self, now: float) -> None:
        """After a stop that no operator wanted (a preempted node), new agents take the run up again."""
        for agent in self._peers:
            self._turn_away(agent, now, self._message, EXIT_STOPPED)
        self._peers = {}
        self.outcome, self.stop, self._message = None, None, ""
        self._restarting, self._joining_since, self._show = False, None, None
        self._training.wait(now + self._epoch)
        self._touch()

    # A stop is agreed on.

    def _agree(self, formation: Formation, cause: StopCause, now: float) -> None:
        if self._training.furthest == 0:
            self._stopped(formation, now, f"stopped ({cause}): no step was under way, nothing to save")
            return
        before = self._agreement
        if before is None:
            self._agreement = agreed.propose(cause, self._training.furthest, self._proposals + 1)
        else:
            answers = [self._answer(seat, before) for seat in formation.seats]
            self._agreement = agreed.proceed(before, answers, self._training.furthest)
        if self._agreement is not before:
            self._proposals = self._agreement.limit.proposal
            self._message = f"stopping ({cause}) at step {self._agreement.limit.step}"
            self._touch()

    def _answer(self, seat: Seat, agreement: Agreement) -> LimitAck | None:
        state = self._current(seat)
        if state is not None and state.workers is Workers.SUCCEEDED:
            return LimitAck(agreement.limit.proposal, accepted=True, max_step=0)  # has no step left to enter
        return state.ack if state is not None else None

    # A round is formed.

    def _form(self, now: float) -> None:
        ready = [
            (peer.node, peer.state)
            for peer in self._peers.values()
            if peer.state is not None
            and peer.state.workers not in (Workers.RUNNING, Workers.FAILED)
            and now - peer.heard < FRESH_SECONDS
        ]
        if not ready:
            self._joining_since = None
            return
        if self._joining_since is None:
            self._joining_since = now
        waited = now - self._joining_since
        if now < self._not_before or not enough(len(ready), self.intent, waited, self._join_seconds):
            return
        seen = max(state.generation for _, state in ready)
        self.generation = max(self.generation, seen, self.intent.first_generation - 1) + 1
        self.formation = form(ready, self.generation, self.intent, self._record.restarts)
        self._formed = True
        self._preempted &= self._peers.keys()  # the others have left
        self._restarting, self._message, self._joining_since = False, "", None
        self._training.begin(now + self._epoch)
        for seat in self.formation.seats:
            self._peers[seat.agent].idle_since = now
        self._touch()

    def _explain(self, now: float) -> str:
        """One sentence for people: why it waits, restarts, failed."""
        if self.outcome is not None or self.formation is not None:
            return self._message
        here = sorted(peer.node for peer in self._peers.values() if peer.state is not None)
        missing = [str(node) for node in range(self.intent.nodes) if node not in here]
        if not missing:
            return self._message
        nodes = "node" if len(missing) == 1 else "nodes"
        waiting = f"waiting for {nodes} {', '.join(missing)} ({len(here)} of {self.intent.nodes} are here)"
        return f"{self._message}; {waiting}" if self._message else waiting

    def _touch(self) -> None:
        self.version += 1


def _member(peer: Peer, now: float) -> Member:
    state = peer.state
    return Member(
        node=peer.node,
        agent=peer.agent,
        pod=state.pod if state is not None else "",
        address=state.address if state is not None else "",
        workers=state.workers if state is not None else Workers.NONE,
        generation=state.generation if state is not None else 0,
        ranks=state.ranks if state is not None else (),
        seconds_silent=now - peer.heard,
    )


def _check(intent: Intent) -> None:
    if intent.nodes < 1:
        raise codec.BadMessage(f"Intent.nodes is {intent.nodes}: a run has at least one node")
    if not 1 <= intent.min_nodes <= intent.nodes:
        raise codec.BadMessage(f"Intent.min_nodes is {intent.min_nodes}: it lies between 1 and nodes ({intent.nodes})")
    if intent.step < 1:
        raise codec.BadMessage(f"Intent.step is {intent.step}: sizes grow by at least 1")
    if intent.max_restarts < 0 or intent.restarts_used < 0:
        raise codec.BadMessage("Intent.max_restarts and restarts_used are counts, not less than 0")
    if intent.first_generation < 1:
        raise codec.BadMessage(f"Intent.first_generation is {intent.first_generation}: generations begin with 1")

"""What launcher, runtime, coordinator and operator say to each other, over HTTP and JSON.

    POST /v1/sync    AgentState -> Directive   the launcher's one verb: a heartbeat that carries its whole state and
                                               waits (long poll) until there is a directive it has not seen
    POST /v1/grant   GrantRequest -> Grant     rank 0, before it publishes a checkpoint's marker
    PUT  /v1/intent  Intent -> Report          the operator's wish; level-triggered, the whole of it each time
    GET  /progress   -> Report                 what the operator, the demo and people read
    GET  /metrics    Prometheus text           GET /healthz   "ok"

All but /metrics and /healthz need `Authorization: Bearer <token>`; all carry the header of version.py.
Errors are {"error": "<sentence>"} with status 400 (bad message), 401 (token), 409 (stale), 426 (protocol version).
Everything is level-triggered: each sync carries all that a new coordinator needs to take over from a dead one.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from everstep_protocol.backoff import Backoff
from everstep_protocol.reasons import Failure

SYNC = "/v1/sync"
GRANT = "/v1/grant"
INTENT = "/v1/intent"
PROGRESS = "/progress"
METRICS = "/metrics"
HEALTHZ = "/healthz"

#: A sync with nothing new is answered after this many seconds; the launcher then speaks again.
SYNC_SECONDS = 1.0
#: A member that has not spoken for this long is lost, and with it the generation.
LOST_SECONDS = 10.0


class StopCause(StrEnum):
    """Why a healthy run is asked to save at an agreed step and stop. None of these counts as a restart."""

    INTERRUPT = "Interrupt"  # Ctrl-C
    PREEMPTION = "Preemption"  # SIGTERM to a pod: drain, spot reclaim, eviction
    SUSPEND = "Suspend"
    DEADLINE = "Deadline"
    SCALE = "Scale"
    DELETE = "Delete"


class Workers(StrEnum):
    """State of a launcher's worker processes, all of them together."""

    NONE = "none"  # none exist (not yet started, or killed and reaped)
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # all exited 0
    FAILED = "failed"  # one died; the others of this node are being killed
    STOPPED = "stopped"  # all exited EXIT_STOPPED: saved at the agreed step


class Stage(StrEnum):
    """What a rank is doing, as it tells the board."""

    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    AT_LIMIT = "at-limit"  # waits at the agreed step for the commit
    SAVING = "saving"
    DONE = "done"


@dataclass(frozen=True)
class RankState:
    rank: int  # global
    pid: int
    step: int  # the step it has entered, 1 ..; 0 before the first
    stage: Stage = Stage.STARTING


@dataclass(frozen=True)
class Progress:
    """What rank 0 knows of the training."""

    step: int = 0  # optimizer steps finished in the run
    max_steps: int | None = None
    epoch: int = 0
    loss: float | None = None
    samples_per_second: float | None = None
    steps_per_second: float | None = None  # since this process began to train, pauses included: what the ETA goes by
    stage: str = ""  # fit, validate, test, predict
    metrics: dict[str, float] = field(default_factory=dict)  # the latest logged values
    step_seconds: float | None = None  # the mean of the latest steps
    learning_rate: float | None = None  # of the first parameter group


@dataclass(frozen=True)
class CheckpointInfo:
    step: int
    uri: str
    world_size: int
    generation: int
    time: float  # seconds since the epoch, when the marker was written
    verified: bool = True
    note: str = ""  # why an older one was taken ("step 40: shard 1 truncated; fell back")
    bytes: int | None = None  # of all its files
    seconds: float | None = None  # from the copy of the state until it was published


@dataclass(frozen=True)
class LimitAck:
    """An agent's answer to a proposed limit."""

    proposal: int
    accepted: bool
    max_step: int  # furthest step any of its ranks has entered


@dataclass(frozen=True)
class AgentState:
    """All a launcher knows. Sent whole with each sync."""

    agent: str  # unique to this launcher process
    node: int  # node index; -1: give me any (plain torchrun)
    address: str  # where other nodes reach this one
    port: int  # a port that is free here now, for the store of the next round
    nproc: int  # workers on this node
    pod: str = ""
    generation: int = 0  # of the workers described below; 0: none yet
    workers: Workers = Workers.NONE
    ranks: tuple[RankState, ...] = ()
    failure: Failure | None = None  # root cause on this node, for `generation`
    progress: Progress | None = None  # only where global rank 0 runs
    last_checkpoint: CheckpointInfo | None = None
    resumed_from: CheckpointInfo | None = None
    not_durable_since: float | None = None  # saving has failed since then (seconds since the epoch)
    ack: LimitAck | None = None
    stop: StopCause | None = None  # this node has to go: save and stop, please
    seen: int = 0  # version of the last directive it received
    memory: dict[str, Any] | None = None  # the coordinator's own notes, given back when asked for
    not_durable_why: str = ""  # what is wrong with the store, and what to do


@dataclass(frozen=True)
class Round:
    """Who trains together. `generation` names it; it only ever grows, over restarts of anything."""

    generation: int
    rank_offset: int  # global rank of this node's local rank 0
    world_size: int
    node_rank: int
    nodes: int
    master_address: str
    master_port: int
    restarts: int = 0  # failures before this round, for TORCHELASTIC_RESTART_COUNT


@dataclass(frozen=True)
class Limit:
    """The agreed step: no rank enters a step past `step` before it has acted (saved and stopped)."""

    proposal: int  # number of this proposal, grows
    step: int
    committed: bool
    cause: StopCause


class Action(StrEnum):
    WAIT = "wait"  # have no workers (kill those there are, at once) and keep talking
    RUN = "run"  # have the workers of `round`; without a round: go on as you are
    EXIT = "exit"  # kill what is left and leave with `exit_code`


@dataclass(frozen=True)
class Directive:
    version: int
    action: Action
    round: Round | None = None
    limit: Limit | None = None
    exit_code: int = 0
    message: str = ""
    print_failure: Failure | None = None  # this agent holds the root cause: show its traceback, once
    want_memory: bool = False  # a new coordinator asks: tell me what my predecessor noted
    memory: dict[str, Any] = field(default_factory=dict)  # keep the latest that is not empty


@dataclass(frozen=True)
class Goodput:
    """Seconds of wall time of a run, those of its suspensions left out; the parts add up to `wall`."""

    wall: float = 0.0
    productive: float = 0.0
    waiting: float = 0.0  # for nodes, before a first round
    startup: float = 0.0  # processes, imports, rendezvous, restore: before the first step
    lost: dict[str, float] = field(default_factory=dict)  # by reason: from the failure until that step is reached again

    @property
    def ratio(self) -> float:
        return self.productive / self.wall if self.wall > 0 else 0.0


@dataclass(frozen=True)
class Intent:
    """The operator's wish for the run; the coordinator spends the budget, the operator sets it."""

    nodes: int
    min_nodes: int
    max_restarts: int
    restarts_used: int = 0  # counted before this coordinator began
    first_generation: int = 1  # later than any generation that ever was
    backoff: Backoff = Backoff()
    stop: StopCause | None = None
    run_uid: str = ""
    step: int = 1  # only min_nodes plus a multiple of it train together
    goodput: Goodput = Goodput()  # counted before this coordinator began
    replaces: bool = False  # a launcher that has to leave is replaced: the others save with it, and wait for the next
    retry_start: bool = True  # also a script that raises before a step is done; False where nobody asked for a budget


@dataclass(frozen=True)
class Member:
    node: int
    agent: str
    pod: str
    address: str
    workers: Workers
    generation: int
    ranks: tuple[RankState, ...]
    seconds_silent: float


class RunState(StrEnum):
    WAITING = "waiting"  # for nodes
    STARTING = "starting"  # a round is formed, no step finished in it yet
    RUNNING = "running"
    RESTARTING = "restarting"  # a generation failed; killing, backing off, waiting for members
    STOPPING = "stopping"  # an agreed step is being fixed or reached
    STOPPED = "stopped"  # saved, all workers gone
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class Report:
    """The coordinator's answer to GET /progress."""

    protocol: int
    state: RunState
    generation: int
    world_size: int
    restarts: int  # failed generations that got another try, Intent.restarts_used included: never above the budget
    failures: tuple[Failure, ...] = ()  # the last ten, oldest first; Failure.generation is unique among them
    message: str = ""  # why it waits, restarts, failed
    members: tuple[Member, ...] = ()
    progress: Progress | None = None
    last_checkpoint: CheckpointInfo | None = None
    resumed_from: CheckpointInfo | None = None
    not_durable_since: float | None = None
    stop: StopCause | None = None
    goodput: Goodput = Goodput()
    intent: Intent | None = None
    not_durable_why: str = ""
    seconds_up: float | None = None  # since this coordinator began: who has just begun has not heard everybody yet
    lost: tuple[str, ...] = ()  # pods whose launchers have fallen silent, until their nodes have others


@dataclass(frozen=True)
class GrantRequest:
    """May this generation publish a checkpoint of that step?"""

    generation: int
    step: int


@dataclass(frozen=True)
class Grant:
    granted: bool
    reason: str = ""

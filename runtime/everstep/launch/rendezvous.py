"""`torchrun --rdzv-backend=everstep --rdzv-endpoint=host:port`: torch's own agent, rounds by our coordinator.

torchrun loads this module through the entry-point group `torchrun.handlers`. The token comes from EVERSTEP_TOKEN or
`--rdzv-conf token=…`. What such an agent cannot have: the agreed step (it has no board, so a stop kills its workers),
and its own `--max-restarts` still ends it; the coordinator counts each of them as one node with one worker.
"""

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # public, though torch does not say so
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from everstep.launch.coordinators import address_towards
from everstep.launch.link import Client, LinkError, Refused
from everstep.launch.places import PortReservation
from everstep_protocol import env
from everstep_protocol.messages import Action, AgentState, Directive, Round, Workers
from everstep_protocol.reasons import Failure, Reason

BACKEND = "everstep"
JOIN_SECONDS = 600.0
_RETRY_SECONDS = 0.5
_STORE_SECONDS = 30.0
_FAREWELL_SECONDS = 5.0


def handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What the entry point names: returns the creator that torch registers for the backend."""
    return create


def create(parameters: RendezvousParameters) -> "EverstepRendezvous":
    """A handler for torchrun's parameters.

    Raises:
        ValueError: no host:port as endpoint, or no token.
    """
    host, colon, port = parameters.endpoint.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(
            f"--rdzv-endpoint must be host:port of the coordinator, not {parameters.endpoint!r}; "
            "`everstep coordinator` starts one"
        )
    token = parameters.get("token") or os.environ.get(env.TOKEN)
    if not token:
        raise ValueError(f"the coordinator wants the run's token: set {env.TOKEN}, or --rdzv-conf token=…")
    return EverstepRendezvous(
        Client(f"http://{host}:{port}", token),
        run_id=parameters.run_id,
        address=parameters.local_addr or address_towards(host, int(port)),
        join_seconds=float(parameters.get("join_timeout") or JOIN_SECONDS),
    )


class EverstepRendezvous(RendezvousHandler):
    """One torchrun agent as a member of the coordinator's rounds."""

    def __init__(self, client: Client, *, run_id: str, address: str, join_seconds: float) -> None:
        self._client = client
        self._run_id = run_id
        self._address = address
        self._join_seconds = join_seconds
        self._name = f"torchrun-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._port = PortReservation()
        self._round_port: PortReservation | None = None
        self._condition = threading.Condition()
        # Guarded by the condition.
        self._round: Round | None = None
        self._workers = Workers.NONE
        self._failure: Failure | None = None
        self._directive: Directive | None = None
        self._error: LinkError | None = None
        self._memory: dict[str, Any] | None = None
        self._stale = False  # what was sent last is not true any more
        self._heard = False  # the coordinator has answered to the latest
        self._closed = False
        self._thread: threading.Thread | None = None

    # torch's interface.

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._run_id

    @property
    def use_agent_store(self) -> bool:
        """False: with a shared store the workers' keys contain the restart count, which differs between agents."""
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Be part of the next round; if we were in one, it is over for us."""
        while True:
            round = self._wait_for_round(self._report_end_of_round())
            first = round.node_rank == 0
            try:
                store: Store = TCPStore(
                    round.master_address, round.master_port, is_master=first, timeout=timedelta(seconds=_STORE_SECONDS)
                )
                # A second port, for the workers' own store; rank 0 tells it through the first.
                info = RendezvousStoreInfo.build(round.node_rank, store, self._address)
            except RuntimeError:  # torch's DistError: the host of the store died between the round and here
                continue
            store.set_timeout(timedelta(seconds=self._join_seconds))
            return RendezvousInfo(store, round.node_rank, round.nodes, info)

    def num_nodes_waiting(self) -> int:
        """Above 0 makes torch's agent restart its workers: when our round is over and another one is wanted."""
        with self._condition:
            if self._round is None or self._directive is None:
                return 0
            return int(_wants_more_than(self._round, self._directive))

    def is_closed(self) -> bool:
        with self._condition:
            return self._closed or (self._directive is not None and self._directive.action is Action.EXIT)

    def set_closed(self) -> None:
        self.shutdown()

    def shutdown(self) -> bool:
        """Say how it ended and stop talking."""
        # torch calls this in a `finally`: an exception on its way is the only sign of how the workers ended.
        failed = sys.exc_info()[0] is not None
        with self._condition:
            if self._closed:
                return True
            if self._round is not None:
                failure = self._make_failure("torchrun gave up: its own --max-restarts are spent") if failed else None
                self._tell(Workers.FAILED if failed else Workers.SUCCEEDED, failure)
                self._condition.wait_for(lambda: self._heard or self._error is not None, _FAREWELL_SECONDS)
            self._closed = True
            self._client.abort()
        return True

    # The conversation.

    def _report_end_of_round(self) -> int:
        """Returns the generation that is over."""
        with self._condition:
            if self._thread is None:
                self._thread = threading.Thread(target=self._talk, name="everstep-rendezvous", daemon=True)
                self._thread.start()
            if self._round is None:
                return 0
            if self._directive is not None and _wants_more_than(self._round, self._directive):
                self._tell(Workers.NONE, None)
            else:
                self._tell(Workers.FAILED, self._make_failure("a worker failed; torchrun knows the details"))
            return self._round.generation

    def _wait_for_round(self, over: int) -> Round:
        deadline = time.monotonic() + self._join_seconds
        with self._condition:
            while True:
                if self._error is not None:
                    raise RendezvousConnectionError(str(self._error))
                directive = self._directive
                if directive is not None and directive.action is Action.EXIT:
                    if directive.exit_code == 0:
                        raise RendezvousGracefulExitError("the run is over")
                    raise RendezvousClosedError(directive.message or "the run has failed")
                if directive is not None and directive.action is Action.WAIT and self._workers is Workers.FAILED:
                    self._tell(Workers.NONE, self._failure)  # heard: torch's agent has no workers any more
                round = directive.round if directive is not None and directive.action is Action.RUN else None
                if round is not None and round.generation > over:
                    self._round = round
                    self._round_port, self._port = self._port, PortReservation()
                    self._tell(Workers.RUNNING, None)
                    return round
                if not self._condition.wait(max(0.0, deadline - time.monotonic())):
                    raise RendezvousTimeoutError(f"no round within {self._join_seconds:.0f} s at {self._client.url}")

    def _make_failure(self, message: str) -> Failure:
        assert self._round is not None
        generation, node = self._round.generation, self._round.node_rank
        return Failure(Reason.UNKNOWN, message, node=node, rank=self._round.rank_offset, generation=generation)

    def _tell(self, workers: Workers, failure: Failure | None) -> None:
        self._workers, self._failure, self._stale, self._heard = workers, failure, True, False
        self._client.abort()  # the poll in flight knows nothing of it
        self._condition.notify_all()

    def _state(self) -> AgentState:
        return AgentState(
            agent=self._name,
            node=-1 if self._round is None else self._round.node_rank,
            address=self._address,
            port=self._port.number,
            nproc=1,
            generation=0 if self._round is None else self._round.generation,
            workers=self._workers,
            failure=self._failure,
            seen=0 if self._directive is None else self._directive.version,
            memory=self._memory if self._directive is not None and self._directive.want_memory else None,
        )

    def _talk(self) -> None:
        while True:
            with self._condition:
                if self._closed:
                    self._client.close()
                    return
                state, self._stale = self._state(), False
            directive: Directive | None = None
            error: LinkError | None = None
            try:
                directive = self._client.sync(state, lambda: not self._stale)
            except LinkError as problem:
                error = problem
            with self._condition:
                if directive is not None:
                    self._directive = directive
                    self._memory = directive.memory or self._memory
                    self._heard = not self._stale
                elif isinstance(error, Refused):
                    self._error = error
                elif not self._stale:
                    self._condition.wait_for(lambda: self._stale or self._closed, _RETRY_SECONDS)
                self._condition.notify_all()
                if self._error is not None:
                    return


def _wants_more_than(round: Round, directive: Directive) -> bool:
    """The directive leaves the round behind: wait for another, run another, or leave."""
    if directive.action is Action.RUN:
        return directive.round is not None and directive.round.generation > round.generation
    return True

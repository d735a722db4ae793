"""Ranks for a script or notebook that was started alone: processes of its own, for one call.

They find each other at a store that this process keeps. Of a Trainer call, what it came to is brought back here: its
result, the trained weights, metrics, the states of callbacks and loggers, and random states, as if it had run in this
process. For anything that has to survive a failure there is `everstep launch`: here one rank's exception ends the call.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from everstep import rng, seed
from everstep.compiled import uncompiled
from everstep.errors import ConfigurationError, EverstepError
from everstep.launch.processes import die_with_parent

P = ParamSpec("P")
T = TypeVar("T")
TrainerT = TypeVar("TrainerT", bound=Any)

_ECHO_SECONDS = 0.5  # that the rank with the first error has to say so before those that lost it do


def on_its_ranks(verb: Callable[Concatenate[TrainerT, P], T]) -> Callable[Concatenate[TrainerT, P], T]:
    """A verb of the Trainer, which starts its ranks first where the strategy says so."""

    @functools.wraps(verb)
    def call(trainer: TrainerT, /, *args: P.args, **kwargs: P.kwargs) -> T:
        start_method = trainer.strategy.start_method
        if start_method is None:
            return verb(trainer, *args, **kwargs)
        world = len(trainer.strategy.devices)
        if trainer.run.environment.checkpoint_uri is not None:
            raise ConfigurationError(
                f"a run with checkpoints needs a launcher: start it with `everstep launch --nproc-per-node {world} …`"
            )
        made = _Call(trainer, verb.__name__, args, kwargs)
        result: T = _bring_back(made, run_on_ranks(_trainer_call, (made,), world, start_method))
        return result

    return call


@dataclass
class _Call:
    """A Trainer call on its way to a rank."""

    trainer: Any
    verb: str
    args: Any
    kwargs: Any


def _trainer_call(call: _Call) -> dict[str, Any]:
    """In a rank: the call, and what it has changed in its Trainer (of rank 0)."""
    from everstep.trainer.run import process_run

    trainer = call.trainer
    trainer.take_place(process_run())
    outcome: dict[str, Any] = {"result": getattr(trainer, call.verb)(*call.args, **call.kwargs)}
    weights = trainer.strategy.gather(trainer.strategy.model_state(trainer.lightning_module))  # a collective
    if trainer.is_global_zero:
        numbers = (
            "global_step",
            "batches_that_stepped",
            "current_epoch",
            "should_stop",
            "num_training_batches",
            "state",
        )
        metrics = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
        outcome |= {
            "weights": weights,
            "trainer": {name: getattr(trainer, name) for name in numbers},
            "metrics": {name: dict(getattr(trainer.logs, name)) for name in metrics},
            "callbacks": {callback.state_key: callback.state_dict() for callback in trainer.callbacks},
            "loggers": [logger.state_dict() for logger in trainer.loggers],
        }
    return outcome


def _bring_back(call: _Call, outcomes: list[dict[str, Any]]) -> Any:
    trainer, first = call.trainer, outcomes[0]
    model = uncompiled(call.args[0] if call.args else call.kwargs.get("model")) or trainer.lightning_module
    trainer.strategy.model, model.trainer = model, trainer
    model.configure_model()  # here it has not been called
    model.load_state_dict(first["weights"], assign=any(p.is_meta for p in model.parameters()))
    for name, value in first["trainer"].items():
        setattr(trainer, name, value)
    for name, values in first["metrics"].items():  # of this call alone, as everywhere
        setattr(trainer.logs, name, values)
    for callback in trainer.callbacks:
        if state := first["callbacks"].get(callback.state_key):
            callback.load_state_dict(state)
    for logger, state in zip(trainer.loggers, first["loggers"], strict=True):
        logger.load_state_dict(state)
    return _in_order([outcome["result"] for outcome in outcomes]) if call.verb == "predict" else first["result"]


def _in_order(parts: list[Any]) -> Any:
    """Predictions as one process would have made them: each round of batches was divided over the ranks, in order."""
    if parts[0] is None:
        return None
    if parts[0] and isinstance(parts[0][0], list):  # several loaders
        return [_in_order([part[loader] for part in parts]) for loader in range(len(parts[0]))]
    longest = max(map(len, parts))
    return [part[index] for index in range(longest) for part in parts if index < len(part)]


# Functions on ranks.


@dataclass
class _Work:
    """What a rank is to do, and the random states with which it begins."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    seed: int | None
    rng: Any
    threads: int


def run_on_ranks(function: Callable[..., Any], arguments: tuple[Any, ...], world: int, start_method: str) -> list[Any]:
    """What the function returns on each of `world` ranks. This process's random states become those of rank 0.

    Raises:
        ConfigurationError: function or arguments cannot be carried to other processes.
        Exception: what the first rank that failed has raised; its traceback there is the cause.
    """
    work = _Work(function, arguments, seed.chosen(), rng.get_state(), max(1, torch.get_num_threads() // world))
    # By value: multiprocessing itself would put tensors into shared memory, and all ranks would train the same ones.
    carried = work if start_method == "fork" else _pickled(work, world)
    context: Any = multiprocessing.get_context(start_method)
    store: Any = None
    processes: list[Any] = []
    connections: list[Connection] = []
    try:
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank, args=(carried, rank, world, theirs, os.getpid()), name=f"rank-{rank}"
            )
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        # Only now: it has threads, and what a thread holds locked in the moment of a fork stays locked in the child.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        for connection in connections:
            with contextlib.suppress(OSError):  # it has ended already; its outcome says how
                connection.send(store.port)
        outcomes = _outcomes(processes, connections)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()  # a rank that waits for a dead one in a collective hears nothing else
            process.join()
        # Not kept alive by the frames of an exception: a fork cannot take down the store of its parent, it would wait
        # for ever for a thread that it does not have.
        del store
    rng.set_state(outcomes[0]["rng"])
    return [outcome["returned"] for outcome in outcomes]


def _pickled(work: _Work, world: int) -> bytes:
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"this call cannot be carried to new processes: {error}. Define classes and functions in a module, not "
            f'inside a function; or give strategy="ddp_fork"; or start the script with `everstep launch '
            f"--nproc-per-node {world} …`"
        ) from error


def _place(rank: int, world: int, port: int) -> dict[str, str]:
    """What a launcher would have set."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        # The store is there already: every rank is a client.
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip


def _rank(carried: _Work | bytes, rank: int, world: int, connection: Connection, parent: int) -> None:
    """The life of a rank."""
    from everstep.trainer.run import process_run

    die_with_parent(parent)
    gc.freeze()  # what a fork's parent has not collected yet is not this process's to take down
    os.environ.update(_place(rank, world, connection.recv()))
    process_run.cache_clear()  # a fork has its parent's
    try:
        work: _Work = pickle.loads(carried) if isinstance(carried, bytes) else carried
        torch.set_num_threads(work.threads)
        if work.seed is not None:
            seed.seed_everything(work.seed)
        rng.set_state(work.rng)
        returned = work.function(*work.arguments)
        connection.send_bytes(pickle.dumps({"returned": returned, "rng": rng.get_state()}))
        if dist.is_initialized():
            dist.barrier()  # nobody leaves while another still needs it
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        failure: dict[str, Any] = {"failed": time.monotonic(), "text": text, "error": None}
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))  # some pickle, but cannot be made again
            failure["error"] = error
        connection.send_bytes(pickle.dumps(failure))
        connection.close()
        os._exit(1)  # the clean-up of a process group that has lost its peers may take long


def _outcomes(processes: list[Any], connections: list[Connection]) -> list[dict[str, Any]]:
    """Of all ranks, by rank. The first failure, if there is one, is raised."""
    outcomes: dict[int, dict[str, Any]] = {}
    until: float | None = None  # when waiting for better explanations ends
    while len(outcomes) < len(processes):
        waiting = {connection: rank for rank, connection in enumerate(connections) if rank not in outcomes}
        for connection in wait(list(waiting), None if until is None else max(0.0, until - time.monotonic())):
            rank = waiting[connection]  # type: ignore[index]
            try:
                outcomes[rank] = pickle.loads(connections[rank].recv_bytes())
            except EOFError:  # gone without a word
                processes[rank].join()
                outcomes[rank] = {"failed": time.monotonic(), "text": _end(processes[rank].exitcode), "error": None}
            if "failed" in outcomes[rank] and until is None:
                until = time.monotonic() + _ECHO_SECONDS
        if until is not None and time.monotonic() >= until:
            break
    failures = [(outcome["failed"], rank) for rank, outcome in outcomes.items() if "failed" in outcome]
    if failures:
        # The earliest: the others' errors are that they have lost it.
        _, rank = min(failures)
        failure = outcomes[rank]
        raised = failure["error"] or EverstepError(f"rank {rank} failed: {failure['text'].strip().splitlines()[-1]}")
        raise raised from _InRank(f"rank {rank}:\n\n{failure['text']}")
    return [outcomes[rank] for rank in range(len(processes))]


class _InRank(Exception):
    """Carries a traceback from another process, to be printed with the exception that it caused here."""

    def __str__(self) -> str:
        return str(self.args[0])


def _end(code: int) -> str:
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit status {code}"
    return f"{how} and said nothing"

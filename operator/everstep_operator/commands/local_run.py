"""One run on this machine, from its manifest to its end: the shell around the planner, as kopf is on a cluster.

Every turn looks at pods and coordinator again (level-triggered); events and the planner's own wish only wake it sooner.
"""

import asyncio
import os
import shlex
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from everstep_operator.api.checkpoint import Checkpoint
from everstep_operator.api.trainingrun import Phase, Spec, TrainingRun, refused_changes
from everstep_operator.cluster import port, process, s3
from everstep_operator.cluster.local import LocalCluster
from everstep_operator.cluster.port import ClusterError, RunKey
from everstep_operator.cluster.process import Process
from everstep_operator.cluster.render.merge import check_template
from everstep_operator.cluster.render.names import MAIN_CONTAINER
from everstep_operator.cluster.s3 import EmbeddedS3
from everstep_operator.cluster.state import Held, StateFolder
from everstep_operator.commands.local_code import bring_code
from everstep_operator.commands.local_notes import cluster_only
from everstep_operator.commands.news import checkpoint, news, summary
from everstep_operator.commands.table import Lines, screen
from everstep_operator.plan import pods, suspend
from everstep_operator.plan.model import Pod
from everstep_operator.reconcile import reconcile
from everstep_protocol import labels
from everstep_protocol.messages import RunState, StopCause

#: Between two looks at the coordinator's report.
POLL_SECONDS = 0.3
#: Between two attempts at what the machine refuses now (no space left, no process to be had).
RETRY_SECONDS = 2.0
#: A coordinator that has been silent for so long after Ctrl-C will not bring about an agreed step.
SILENCE_SECONDS = 10.0
S3_START_SECONDS = 30.0

DONE, FAILED, INTERRUPTED = 0, 1, 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Refused(Exception):
    """The run cannot be started as it was asked for; the message says what to do."""


def run_locally(manifest: TrainingRun, folder: Path, state_dir: Path, lease_seconds: float) -> int:
    """Run it to its end and return the exit status. `folder`: where the manifest lies, and its pods start.

    Raises:
        Refused: the state folder belongs to somebody else, or the change of the manifest is not allowed now.
        ClusterError: the machine cannot do it.
    """
    if not manifest.spec.managed_by_us:
        raise Refused(f"managedBy names another manager, {manifest.spec.managed_by}: remove it to run this run here")
    try:
        check_template(manifest.spec.pod_template, MAIN_CONTAINER[labels.WORKER])
    except port.Refused as error:  # nothing here acts on it, but it is to be found out before it is on a cluster
        raise Refused(str(error)) from None
    state = StateFolder(state_dir)
    name = f"{manifest.metadata.namespace}/{manifest.metadata.name}"
    try:
        state.take()
    except Held as error:
        raise Refused(
            f"{name} is run already by another everstep run ({error}); its state is in {state.path}. "
            "Watch that one, or give this one another --state-dir"
        ) from None
    out = Lines(sys.stdout)
    try:
        kept = state.read()
        if kept is None:
            state.create(manifest)
        else:
            _check_same(kept, manifest, state)
            if kept.status.phase is not None and kept.status.phase.over:
                return _already_over(kept, state, out)
            _take_over(kept, manifest, state, out)
        out = screen(sys.stdout)
        local = LocalRun(manifest, folder, state, lease_seconds, out)
        return asyncio.run(local.run())
    finally:
        out.close()
        state.release()


def _check_same(kept: TrainingRun, manifest: TrainingRun, state: StateFolder) -> None:
    theirs, ours = kept.metadata, manifest.metadata
    if (theirs.namespace, theirs.name) != (ours.namespace, ours.name):
        raise Refused(
            f"the state folder {state.path} belongs to {theirs.namespace}/{theirs.name}, not to "
            f"{ours.namespace}/{ours.name}: give another --state-dir"
        )


def _already_over(kept: TrainingRun, state: StateFolder, out: Lines) -> int:
    status = kept.status
    why = f": {status.message}" if status.phase is Phase.FAILED and status.message else ""
    out.say(f"{_name(kept)} has {status.phase} already ({summary(kept)}){why}")
    out.say(_how_to_start_afresh(kept, state))
    return DONE if status.phase is Phase.SUCCEEDED else FAILED


def _how_to_start_afresh(kept: TrainingRun, state: StateFolder) -> str:
    """With the state folder goes the embedded server's data; checkpoints anywhere else have to go, too."""
    where = kept.spec.checkpoint
    if where is None or EmbeddedS3(state).folder.exists():
        return f"to start afresh, remove its state folder {state.path}, or give another --state-dir"
    return (
        f"to start afresh, remove its state folder {state.path} and its checkpoints at {where.uri}; or give "
        "another --state-dir and another checkpoint.uri"
    )


def _take_over(kept: TrainingRun, manifest: TrainingRun, state: StateFolder, out: Lines) -> None:
    """A run that is not over: with its processes, or without."""
    alive = _living(state)
    if manifest.spec != kept.spec:
        refused = refused_changes(kept, manifest) if alive else []
        if refused:
            raise Refused(
                f"the manifest has changed, and {_name(kept)} is running ({len(alive)} pods): "
                + "; ".join(refused)
                + ". Undo the change, or stop the run first, or start another one with --state-dir"
            )
        state.replace_spec(manifest)
        out.say("the manifest has changed; going on with the new one")
    found = f"{len(alive)} of its pods still run and are adopted" if alive else "none of its pods is left"
    saved = f"; {checkpoint(kept.status)}" if kept.status.last_checkpoint is not None else ""
    out.say(f"going on with {_name(kept)}: {found}{saved}")


def _embeds_s3(where: Checkpoint, manifest: TrainingRun, state: StateFolder) -> bool:
    variables = {variable.name: variable.value for variable in manifest.spec.trainer.env}
    if not s3.is_wanted(where.uri, where.endpoint, variables):
        return False
    wanted = s3.is_wanted(where.uri, where.endpoint, os.environ)
    embedded = state.embeds(where.uri, wanted)
    if wanted and not embedded:  # an empty server would make the run begin again at step 0
        raise Refused(
            f"this run began with an S3 server that the environment named ({', '.join(s3.CREDENTIALS[:4])}, …), "
            "and now it names none: set the same variables again, or start afresh with another --state-dir"
        )
    return embedded


def _living(state: StateFolder) -> list[Process]:
    return [p for p in map(Process, state.pods.iterdir()) if p.exists() and not p.state().finished]


def _name(run: TrainingRun) -> str:
    return f"{run.metadata.namespace}/{run.metadata.name}"


class LocalRun:
    """The loop of one `everstep run`."""

    def __init__(
        self, manifest: TrainingRun, folder: Path, state: StateFolder, lease_seconds: float, out: Lines
    ) -> None:
        self.key = RunKey(manifest.metadata.namespace, manifest.metadata.name)
        self.state = state
        self.out = out
        self.s3: EmbeddedS3 | None = None
        where = manifest.spec.checkpoint
        if where is not None and _embeds_s3(where, manifest, state):
            # It outlives the pods by as much as they take to save.
            self.s3 = EmbeddedS3(state, where.uri, lease_seconds + process.LEASE_GRACE)
        self.cluster = LocalCluster(state, working_dir=folder, lease_seconds=lease_seconds)
        self.shown: TrainingRun | None = None
        self.signals: Counter[int] = Counter()
        self.woken = asyncio.Event()
        self.complaint = ""

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        listener = asyncio.create_task(self._listen())
        try:
            return await self._to_the_end()
        finally:
            listener.cancel()
            with suppress(asyncio.CancelledError):
                await listener
            await self._stop_s3()
            self.cluster.close()

    async def _to_the_end(self) -> int:
        run = await self.cluster.get_run(self.key)
        self.shown = run
        spec = run.spec
        ranks = f"{spec.num_nodes} x {spec.ranks_per_node} ranks"
        self.out.say(f"{_name(run)}: {ranks}, {shlex.join((*spec.trainer.command, *spec.trainer.args))}")
        self.out.say(f"state and logs: {self.state.path}")
        if (note := cluster_only(run)) is not None:
            self.out.say(note)
        await self._start_s3()
        if spec.trainer.code is not None:
            self.cluster.working_dir = self.state.path / "code"
            await asyncio.to_thread(bring_code, spec.trainer.code, self.cluster.working_dir, self._store_env(spec))
        report = await self.cluster.get_report(run)
        if report is not None and report.intent is not None and report.intent.stop is StopCause.INTERRUPT:
            self.out.say("the everstep run before this one was stopping the run: letting it save first")
            await self._save_and_stop()
        while True:
            run, wake_after = await self._turn()
            phase = run.status.phase
            if phase is not None and phase.over and not await self._living_pods(run):
                return self._over(run)
            if phase is Phase.SUSPENDED and run.spec.suspend and not await self.cluster.list_pods(run):
                self.out.close()
                self.out.say(f"suspended: {summary(run)}; set spec.suspend to false and run the same command to go on")
                return INTERRUPTED
            if self.signals and not (phase is not None and phase.over):
                return await self._interrupted()
            await self._pause(min(POLL_SECONDS, POLL_SECONDS if wake_after is None else wake_after))

    async def _turn(self) -> tuple[TrainingRun, float | None]:
        """Look, plan, act, show."""
        wake_after: float | None = None
        try:
            if self.s3 is not None and self.s3.keep():
                self.out.say("the embedded S3 server was gone and is started again")
            wake_after = await reconcile(self.cluster, self.key, datetime.now(UTC))
            self.complaint = ""
        except (ClusterError, OSError) as error:
            if str(error) != self.complaint:
                self.out.say(f"{error}; trying again every {RETRY_SECONDS:.0f} s")
            self.complaint = str(error)
            await self._pause(RETRY_SECONDS)
        run = await self.cluster.get_run(self.key)
        self._show(run)
        return run, wake_after

    async def _living_pods(self, run: TrainingRun) -> list[Pod]:
        """spec.cleanPodPolicy may leave finished ones where they are, for their logs."""
        return [pod for pod in await self.cluster.list_pods(run) if not pod.finished]

    def _show(self, run: TrainingRun) -> None:
        for sentence in news(self.shown or run, run):
            self.out.say(sentence)
        self.out.show(run, datetime.now(UTC))
        self.shown = run

    # The end.

    def _over(self, run: TrainingRun) -> int:
        status = run.status
        self.out.close()
        if status.phase is Phase.SUCCEEDED:
            self.out.say(f"{_name(run)} Succeeded: {summary(run)}")
            reported = status.condition("ProgressReported")
            if reported is not None and reported.status == "False":
                self.out.say(f"note: {reported.message}")
            return DONE
        self.out.say(f"{_name(run)} Failed: {status.reason}: {status.message}")
        failure = self.cluster.last_failure()
        if failure is not None and failure.traceback:
            self.out.raw(failure.traceback.rstrip() + "\n")
        self.out.say(f"{summary(run)}; logs: {self._log(run)}")
        return FAILED

    def _log(self, run: TrainingRun) -> Path:
        """Of the pod that failed last, as far as that is known."""
        node = run.status.attempts[-1].node if run.status.attempts else None
        logs = [] if node is None else list(self.state.pods.glob(f"*-{node}-*/stdout.log"))
        return max(logs, key=lambda log: log.stat().st_mtime, default=self.state.pods)

    async def _interrupted(self) -> int:
        self.out.say("stopping: saving at an agreed step first (once more: leave at once)")
        if not await self._save_and_stop():
            run = await self._kill()
            self.out.close()
            self.out.say(f"left at once: {summary(run)}; the same command resumes from there")
            return INTERRUPTED
        run = await self.cluster.get_run(self.key)
        if run.status.phase is not None and run.status.phase.over:
            return self._over(run)
        self.out.close()
        self.out.say(f"stopped: {summary(run)}; the same command resumes")
        return INTERRUPTED

    async def _save_and_stop(self) -> bool:
        """Have the agreed step reached and saved, then take the pods away; False if told to be quick."""
        run = await self.cluster.get_run(self.key)
        silent_since = asyncio.get_running_loop().time()
        while True:
            if self._in_a_hurry():
                return False
            report = await self.cluster.get_report(run)
            workers = [p for p in await self.cluster.list_pods(run) if p.role == labels.WORKER and not p.finished]
            now = asyncio.get_running_loop().time()
            if report is not None:
                silent_since = now
                if report.state in (RunState.SUCCEEDED, RunState.FAILED):
                    await self._finish()  # the end came first
                    return True
                if report.intent is not None and report.intent.stop is not StopCause.INTERRUPT:
                    await self.cluster.send_intent(run, replace(report.intent, stop=StopCause.INTERRUPT))
                    continue
                run, _ = await self._turn()  # the planner only learns from a run that is being interrupted
                if report.state is RunState.STOPPED:
                    break
            if not workers or now - silent_since > SILENCE_SECONDS:
                break
            await self._pause(POLL_SECONDS)
        return await self._take_away(pods.grace_seconds(run))

    async def _finish(self) -> None:
        """Reconcile a run that is over until nothing is left of it."""
        while not self._in_a_hurry():
            run, _ = await self._turn()
            if run.status.phase is not None and run.status.phase.over and not await self._living_pods(run):
                return
            await self._pause(POLL_SECONDS)

    async def _take_away(self, grace_seconds: float) -> bool:
        """Delete all pods; the run then rests as a suspended one does, and goes on when it is started again."""
        run = await self.cluster.get_run(self.key)
        while there := await self.cluster.list_pods(run):
            if self._in_a_hurry() and grace_seconds > 0:
                return False
            for pod in there:
                if not pod.terminating:
                    await self.cluster.delete_pod(run, pod.name, pod.uid, grace_seconds)
            await self._pause(0.1)
        run = await self.cluster.get_run(self.key)
        rests = suspend.reach(run.status, datetime.now(UTC)).model_copy(
            update={"reason": "Interrupted", "message": "interrupted; everstep run resumes it"}
        )
        await self.cluster.save_status(run, rests)
        return True

    async def _kill(self) -> TrainingRun:
        run = await self.cluster.get_run(self.key)
        for pod in await self.cluster.list_pods(run):
            await self.cluster.delete_pod(run, pod.name, pod.uid, 0)
        await self._take_away(0)
        return await self.cluster.get_run(self.key)

    def _in_a_hurry(self) -> bool:
        return any(count > 1 for count in self.signals.values())

    def _store_env(self, spec: Spec) -> dict[str, str]:
        return {**self.cluster.store_env, **pods.user_env(spec)}

    # The embedded S3 server.

    async def _start_s3(self) -> None:
        if self.s3 is None:
            return
        self.s3.keep(may_move=not _living(self.state))
        deadline = asyncio.get_running_loop().time() + S3_START_SECONDS
        while not self.s3.is_up() and not self.signals:
            if asyncio.get_running_loop().time() > deadline:
                raise ClusterError(f"the embedded S3 server does not come up; see {self.s3.process.log}")
            await self._pause(0.05)
        self.cluster.store_env = self.s3.env()
        self.out.say(f"no endpoint or credentials for S3: an embedded server keeps the checkpoints in {self.s3.data}")

    async def _stop_s3(self) -> None:
        if self.s3 is None:
            return
        self.s3.stop()
        while not self.s3.is_stopped() and not self._in_a_hurry():
            await self._pause(0.05)

    # Waking up.

    async def _listen(self) -> None:
        async for _ in self.cluster.watch():
            self.woken.set()

    def _signalled(self, number: int) -> None:
        self.signals[number] += 1
        self.woken.set()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        self.woken.clear()

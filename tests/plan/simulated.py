"""A cluster and a coordinator in memory, for random histories. It applies plans and lets accidents happen."""

from dataclasses import replace
from datetime import timedelta

from everstep_operator.api.trainingrun import Status, TrainingRun
from everstep_operator.plan import make_plan, observe
from everstep_operator.plan.model import CreatePod, DeletePod, DeleteRun, Plan, Pod, SendIntent
from everstep_operator.plan.refusal import refused
from everstep_protocol import codec, labels
from everstep_protocol.messages import Intent, Member, Progress, Report, RunState, Workers
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason
from tests.plan.builders import T0, UID

S = RunState


class Coordinator:
    """The part of a coordinator that a planner can see."""

    def __init__(self, intent: Intent, members: set[str], generation: int) -> None:
        self.intent = intent
        self.members = members  # pods of the round
        self.generation = generation
        self.state = S.RUNNING if members else S.WAITING
        self.failures: list[Failure] = []

    @property
    def restarts(self) -> int:
        return self.intent.restarts_used + len(self.failures)

    def report(self, step: int, heard: list[Pod]) -> Report:
        return Report(
            protocol=1,
            state=self.state,
            generation=self.generation,
            world_size=len(self.members),
            restarts=self.restarts,
            failures=tuple(self.failures[-10:]),
            progress=Progress(step=step, max_steps=1_000) if step else None,
            intent=self.intent,
            members=tuple(
                Member(pod.node or 0, pod.name, pod.name, "", Workers.RUNNING, self.generation, (), 0.5)
                for pod in heard
            ),
        )

    def fail(self, reason: Reason, step: int, node: int = 0) -> None:
        spent = self.restarts >= self.intent.max_restarts
        self.failures.append(Failure(reason, "it broke", node=node, generation=self.generation, step=step))
        self.state = S.FAILED if spent else S.RESTARTING
        self.members = set()


class World:
    """Pods by name, a coordinator, a clock, and the run as the cluster stores it."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.now = T0
        self.pods: dict[str, Pod] = {}
        self.commands: dict[str, tuple[str, ...]] = {}
        self.coordinator: Coordinator | None = None
        self.silent = False
        self.generation = 0  # the last that ever formed
        self.round: set[str] = set()  # pods whose workers believe in it
        self.step = 0
        self.dead_machines: set[str] = set()  # nothing runs there any more
        self.refuses = False  # the cluster lets no pod be created
        self.deleted = False  # the run itself

    # --- what a reconcile does

    def plan(self) -> Plan:
        report = None
        if self.coordinator is not None and not self.silent:
            report = self.coordinator.report(self.step, [self.pods[name] for name in sorted(self.talking())])
        return make_plan(self.run, observe(self.run, self.pods.values(), report), self.now)

    def save(self, status: Status) -> None:
        self.run = self.run.model_copy(update={"status": status})

    def apply(self, plan: Plan) -> None:
        for action in plan.actions:
            match action:
                case CreatePod(spec):
                    if self.refuses:
                        self.save(refused(self.run.status, "exceeded quota", self.now))
                        continue
                    assert spec.name not in self.pods, f"{spec.name} is created twice"
                    self.pods[spec.name] = Pod(
                        spec.name, f"uid-{spec.name}", spec.role, spec.node, spec.attempt, "Pending", run_uid=UID
                    )
                    self.commands[spec.name] = spec.command
                case DeletePod(name, uid, grace):
                    assert self.pods[name].uid == uid
                    if grace == 0:
                        heard = self.coordinator is not None and not self.silent
                        assert not heard or name not in self.talking(), "a launcher that talks is alive"
                        self.forget(name)
                    else:
                        gone_by = self.now + timedelta(seconds=30 if grace is None else grace)
                        self.pods[name] = replace(self.pods[name], terminating=True, gone_by=gone_by)
                case SendIntent(intent):
                    if self.coordinator is not None and not self.silent:
                        self.coordinator.intent = intent
                case DeleteRun(uid):
                    assert uid == UID
                    self.deleted = True

    def forget(self, name: str) -> None:
        """The cluster has no such pod any more. Its processes are dead, or fenced."""
        pod = self.pods.pop(name)
        if pod.role == labels.COORDINATOR and not pod.finished:
            self.coordinator = None

    # --- what happens meanwhile; each does nothing where it cannot happen

    def some(self, index: int, *phases: str, role: str = labels.WORKER, terminating: bool = False) -> Pod | None:
        found = [
            pod
            for pod in sorted(self.pods.values(), key=lambda pod: pod.name)
            if pod.phase in phases and pod.role == role and pod.terminating == terminating
        ]
        return found[index % len(found)] if found else None

    def workers(self) -> set[str]:
        return {p.name for p in self.pods.values() if p.role == labels.WORKER and p.phase == "Running"}

    def talking(self) -> set[str]:
        """Workers whose launcher the coordinator hears, if there is one."""
        return {name for name in self.workers() if self.pods[name].machine not in self.dead_machines}

    def pod_starts(self, index: int) -> None:
        if (pod := self.some(index, "Pending")) is not None:
            self.pods[pod.name] = replace(pod, phase="Running", machine=f"machine-of-{pod.name}")

    def coordinator_starts(self, index: int) -> None:
        pod = self.some(index, "Pending", role=labels.COORDINATOR)
        if pod is None:
            return
        assert self.coordinator is None, "two coordinators"
        self.pods[pod.name] = replace(pod, phase="Running", machine=f"machine-of-{pod.name}")
        intent = codec.loads(Intent, self.commands[pod.name][-1])
        adopted = self.round & self.talking()
        assert intent.first_generation > 0
        self.coordinator = Coordinator(intent, adopted, self.generation if adopted else 0)

    def coordinator_dies(self, index: int) -> None:
        pod = self.some(index, "Running", role=labels.COORDINATOR)
        if pod is not None and pod.machine not in self.dead_machines:
            self.pods[pod.name] = replace(pod, phase="Failed", exit_code=137)
            self.coordinator = None

    def coordinator_falls_silent(self, index: int) -> None:
        self.silent = index % 2 == 0

    def round_forms(self, _: int) -> None:
        c = self.coordinator
        if c is None or c.state not in (S.WAITING, S.RESTARTING) or c.intent.stop is not None:
            return
        if len(self.talking()) >= c.intent.min_nodes:
            self.generation = max(self.generation + 1, c.intent.first_generation)
            c.generation, c.state, c.members = self.generation, S.STARTING, self.talking()
            self.round = set(c.members)

    def step_ends(self, _: int) -> None:
        c = self.coordinator
        if c is not None and c.state in (S.STARTING, S.RUNNING):
            c.state, self.step = S.RUNNING, self.step + 10

    def rank_fails(self, index: int) -> None:
        c = self.coordinator
        if c is not None and c.state in (S.STARTING, S.RUNNING):
            c.fail((Reason.KILLED, Reason.OUT_OF_MEMORY)[index % 2], self.step)
            self.round = set()

    def pod_dies(self, index: int) -> None:
        if (pod := self.some(index, "Running")) is None or pod.machine in self.dead_machines:
            return
        words = None
        if index % 3 == 0 and pod.name in self.round:
            words = Failure(Reason.OUT_OF_MEMORY, "oom", node=pod.node or 0, generation=self.generation)
        self.pods[pod.name] = replace(pod, phase="Failed", exit_code=(1, 137)[index % 2], failure=words)

    def coordinator_misses_a_member(self, _: int) -> None:
        c = self.coordinator
        if c is not None and c.state in (S.STARTING, S.RUNNING) and (missed := c.members - self.talking()):
            nodes = [self.pods[name].node or 0 for name in sorted(missed) if name in self.pods]
            c.fail(Reason.NODE_LOST, self.step, nodes[0] if nodes else 0)
            self.round = set()

    def machine_dies(self, index: int) -> None:
        """Power loss. Its pods stay as they are; the cluster notices, or (index odd) not yet."""
        role = labels.COORDINATOR if index % 5 == 4 else labels.WORKER
        pod = self.some(index, "Running", role=role) or self.some(index, "Running", role=role, terminating=True)
        if pod is None:
            return
        self.dead_machines.add(pod.machine)
        if pod.role == labels.COORDINATOR:
            self.coordinator = None
        if index % 2 == 0:
            self.cluster_notices(0)

    def cluster_notices(self, _: int) -> None:
        for pod in self.pods.values():
            if pod.machine in self.dead_machines and pod.machine_lost_since is None:
                self.pods[pod.name] = replace(pod, machine_lost_since=self.now)

    def kubelet_dies(self, index: int) -> None:
        """The containers run on, and nobody hears of them but the coordinator."""
        if (pod := self.some(index, "Running")) is not None:
            self.pods[pod.name] = replace(pod, machine_lost_since=self.now)

    def machines_come_back(self, _: int) -> None:
        for name, pod in list(self.pods.items()):
            if pod.machine in self.dead_machines and not pod.finished:
                self.pods[name] = replace(pod, phase="Failed", exit_code=137)
            self.pods[name] = replace(self.pods[name], machine_lost_since=None)
        self.dead_machines.clear()

    def cluster_refuses(self, index: int) -> None:
        self.refuses = index % 2 == 0

    def scaled(self, index: int) -> None:
        policy = self.run.spec.elastic_policy
        if policy is not None:
            sizes = policy.max_nodes - policy.min_nodes + 1
            self._spec(num_nodes=policy.min_nodes + index % sizes)

    def pod_is_evicted(self, index: int) -> None:
        if (pod := self.some(index, "Running")) is not None:
            gone_by = self.now + timedelta(seconds=30)
            self.pods[pod.name] = replace(pod, terminating=True, disrupted=True, gone_by=gone_by)

    def pod_vanishes(self, index: int) -> None:
        """Force-deleted by somebody."""
        if (pod := self.some(index, "Running", "Failed")) is not None:
            del self.pods[pod.name]

    def terminating_pod_goes(self, index: int) -> None:
        found = sorted((p for p in self.pods.values() if p.terminating), key=lambda pod: pod.name)
        found = [pod for pod in found if pod.machine_lost_since is None and pod.machine not in self.dead_machines]
        if found:
            self.forget(found[index % len(found)].name)

    def stop_is_reached(self, index: int) -> None:
        """Because it is asked for, or (index odd) because a pod got SIGTERM."""
        c = self.coordinator
        if c is None or c.state in (S.SUCCEEDED, S.FAILED) or (c.intent.stop is None and index % 2 == 0):
            return
        c.state, c.members, self.round = S.STOPPED, set(), set()
        for name in self.talking():
            self.pods[name] = replace(self.pods[name], phase="Failed", exit_code=EXIT_STOPPED)

    def training_ends(self, _: int) -> None:
        c = self.coordinator
        if c is not None and c.state is S.RUNNING and c.members <= self.talking():
            c.state = S.SUCCEEDED

    def worker_leaves(self, index: int) -> None:
        c = self.coordinator
        pod = self.some(index, "Running")
        if c is None or pod is None or c.state not in (S.SUCCEEDED, S.FAILED) or pod.machine in self.dead_machines:
            return
        good = c.state is S.SUCCEEDED
        phase, code = ("Succeeded", 0) if good else ("Failed", 1)
        self.pods[pod.name] = replace(pod, phase=phase, exit_code=code)

    def suspended(self, _: int) -> None:
        self._spec(suspend=True)

    def resumed(self, _: int) -> None:
        self._spec(suspend=False)

    def _spec(self, **update: object) -> None:
        self.run = self.run.model_copy(update={"spec": self.run.spec.model_copy(update=update)})

    def time_passes(self, index: int) -> None:
        self.now += timedelta(seconds=(0.3, 5, 40, 400)[index % 4])

    def kind_turn(self, index: int = 1) -> None:
        """Everything that should happen, happens; the end of the training only if `index` is 1."""
        self.silent = self.refuses = False
        self.cluster_notices(0)
        for _ in list(self.pods):
            self.terminating_pod_goes(0)
        for pending in range(8):
            self.pod_starts(pending)
        self.coordinator_starts(0)
        self.coordinator_misses_a_member(0)
        self.stop_is_reached(0)
        self.round_forms(0)
        self.step_ends(0)
        if index == 1:
            self.training_ends(0)
        for worker in range(8):
            self.worker_leaves(worker)
        self.now += timedelta(seconds=400)

    ACCIDENTS = (
        *(pod_starts, coordinator_starts, coordinator_dies, coordinator_falls_silent, round_forms, step_ends),
        *(rank_fails, pod_dies, coordinator_misses_a_member, pod_is_evicted, pod_vanishes, terminating_pod_goes),
        *(stop_is_reached, training_ends, worker_leaves, suspended, resumed, time_passes),
        *(machine_dies, machine_dies, cluster_notices, kubelet_dies, machines_come_back),
        *(cluster_refuses, scaled),
        *(kind_turn, kind_turn, kind_turn),  # so that histories get far
    )

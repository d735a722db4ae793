"""What rendered objects look like, one file for each thing that a manifest can ask for, to be read in reviews.

python tests/render/golden.py            write tests/render/golden/*.yaml
python tests/render/golden.py --check    exit 1 if one of them is not what would be written
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster import render
from everstep_operator.cluster.render import RenderSettings
from everstep_operator.plan import pods
from everstep_protocol.messages import Intent

FOLDER = Path(__file__).parent / "golden"

KUBERNETES = "https://kubernetes.io/docs"
GKE = "https://cloud.google.com/kubernetes-engine/docs"

SETTINGS = RenderSettings(
    operator_image="everstep/operator:1",
    runtime_image="everstep/runtime:1",
    operator_namespace="everstep",
    monitoring_namespaces=("monitoring",),
)

Object = dict[str, Any]


@dataclass(frozen=True)
class Golden:
    title: str
    sources: tuple[str, ...]  # where the public documentation of these fields is
    spec: Object = field(default_factory=dict)
    objects: Callable[[TrainingRun], list[Object]] = lambda run: [worker(run, 0)]

    def render(self) -> list[Object]:
        return self.objects(training_run(self.spec))

    def text(self) -> str:
        lines = [f"# {self.title}", "# Written by `make generate`; do not edit.", *(f"# {url}" for url in self.sources)]
        documents = yaml.dump_all(self.render(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        return "\n".join(lines) + "\n" + documents


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def training_run(spec: Object) -> TrainingRun:
    trainer = {"command": ["python", "train.py"], **spec.get("trainer", {})}
    metadata = {"name": "digits", "namespace": "team", "uid": "0b0f1c3e-0000-4000-8000-000000000000"}
    return TrainingRun.model_validate({"metadata": metadata, "spec": {**spec, "trainer": trainer}})


def worker(run: TrainingRun, node: int, excluded_nodes: tuple[str, ...] = ()) -> Object:
    return render.pod(run, replace(pods.worker(run, node, 1), excluded_nodes=excluded_nodes), SETTINGS)


def coordinator(run: TrainingRun) -> Object:
    intent = Intent(nodes=run.spec.num_nodes, min_nodes=run.spec.min_nodes, max_restarts=10, run_uid=run.metadata.uid)
    return render.pod(run, pods.coordinator(run, 1, intent), SETTINGS)


def kind(*kinds: str) -> Callable[[TrainingRun], list[Object]]:
    return lambda run: [child for child in render.children(run, SETTINGS) if child["kind"] in kinds]


TPU_SLICE = {"accelerator": "tpu-v6e-slice", "topology": "4x4"}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}

GOLDEN: dict[str, Golden] = {
    "cpu": Golden(
        "A worker on CPUs, with nothing said that has a default",
        (
            f"{KUBERNETES}/concepts/security/pod-security-standards/#restricted",
            f"{KUBERNETES}/concepts/storage/volumes/#emptydir",
            f"{KUBERNETES}/tasks/debug/debug-application/determine-reason-pod-failure/",
            f"{KUBERNETES}/concepts/workloads/pods/downward-api/",
        ),
        {"numNodes": 2},
    ),
    "container": Golden(
        "A worker with what a manifest can say of its container, and nodes that it is kept away from",
        (
            f"{KUBERNETES}/concepts/containers/images/",
            f"{KUBERNETES}/concepts/configuration/manage-resources-containers/",
            f"{KUBERNETES}/tasks/inject-data-application/distribute-credentials-secure/",
            f"{KUBERNETES}/tasks/configure-pod-container/configure-service-account/",
            f"{KUBERNETES}/concepts/scheduling-eviction/assign-pod-node/#node-affinity",
            f"{KUBERNETES}/concepts/scheduling-eviction/pod-priority-preemption/",
        ),
        {
            "trainer": {
                "image": "registry.example/team/train:1",
                "imagePullPolicy": "IfNotPresent",
                "imagePullSecrets": [{"name": "registry"}],
                "env": [
                    {"name": "LR", "value": "0.1"},
                    {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key"}}},
                ],
                "envFrom": [{"configMapRef": {"name": "settings", "optional": True}}],
                "workingDir": "/work",
                "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "16Gi"}},
                "serviceAccountName": "trainer",
                "terminationGracePeriodSeconds": 120,
            },
            "checkpoint": {
                "uri": "s3://bucket/digits",
                "endpoint": "https://minio.storage:9000",
                "credentialsSecret": "s3",
                "ca": {"configMap": {"name": "minio-ca"}},
            },
            "scheduling": {"priorityClassName": "system-cluster-critical"},
        },
        lambda run: [worker(run, 0, excluded_nodes=("node-a", "node-b"))],
    ),
    "cuda": Golden(
        "A worker on eight NVIDIA devices, a rank each",
        (
            f"{KUBERNETES}/tasks/manage-gpus/scheduling-gpus/",
            "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html",
            "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html",
        ),
        {
            "accelerator": {
                "type": "cuda",
                "count": 8,
                "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
            }
        },
    ),
    "cuda-rdma": Golden(
        "A worker on slices of NVIDIA devices, with RDMA, in a pool with a taint of its own",
        (
            "https://docs.nvidia.com/datacenter/cloud-native/kubernetes/latest/index.html",
            "https://github.com/Mellanox/k8s-rdma-shared-dev-plugin#readme",
            f"{KUBERNETES}/concepts/scheduling-eviction/taint-and-toleration/",
        ),
        {
            "accelerator": {
                "type": "cuda",
                "count": 2,
                "resourceName": "nvidia.com/mig-3g.40gb",
                "tolerations": [{"key": "team", "value": "vision", "effect": "NoSchedule"}],
                "rdma": {"resourceName": "rdma/hca_shared_devices_a"},
            }
        },
    ),
    "tpu-host": Golden(
        "A worker on a TPU slice of one host",
        (f"{GKE}/how-to/tpus", f"{GKE}/concepts/plan-tpus"),
        {"accelerator": {"type": "tpu", "tpu": {"accelerator": "tpu-v6e-slice", "topology": "2x2"}}},
    ),
    "tpu-slice": Golden(
        "The last worker of a TPU slice of four hosts",
        (
            f"{GKE}/how-to/tpus",
            f"{GKE}/concepts/tpus",
            f"{KUBERNETES}/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity",
        ),
        {"numNodes": 4, "accelerator": {"type": "tpu", "tpu": TPU_SLICE}},
        lambda run: [worker(run, 3)],
    ),
    "tpu-multislice": Golden(
        "A worker in the middle of the second of two TPU slices",
        (f"{GKE}/how-to/tpu-multislice", "https://cloud.google.com/tpu/docs/multislice-introduction"),
        {"numNodes": 8, "accelerator": {"type": "tpu", "tpu": TPU_SLICE}},
        lambda run: [worker(run, 5)],
    ),
    "pod-template": Golden(
        "A worker with a podTemplate: a larger /dev/shm, a volume more, another user",
        (
            f"{KUBERNETES}/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/",
            f"{KUBERNETES}/reference/kubernetes-api/workload-resources/pod-v1/",
        ),
        {
            "podTemplate": {
                "metadata": {"labels": {"team": "vision"}, "annotations": {"example.com/owner": "ada"}},
                "spec": {
                    "schedulerName": "default-scheduler",
                    "securityContext": {"runAsUser": 2000, "fsGroup": 2000},
                    "volumes": [
                        {"name": "shm", "emptyDir": {"sizeLimit": "8Gi"}},
                        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
                    ],
                    "containers": [{"name": "trainer", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                },
            }
        },
    ),
    "sidecar": Golden(
        "A worker beside a container that never ends, and after one that Kubernetes ends itself",
        (f"{KUBERNETES}/concepts/workloads/pods/sidecar-containers/",),
        {
            "podTemplate": {
                "spec": {
                    "initContainers": [
                        {
                            "name": "proxy",
                            "image": "proxy:1",
                            "restartPolicy": "Always",
                            "securityContext": RESTRICTED,
                        }
                    ],
                    "containers": [{"name": "logs", "image": "logs:1", "securityContext": RESTRICTED}],
                }
            }
        },
    ),
    "code-files": Golden(
        "A worker whose code is in the manifest, and the ConfigMap that brings it",
        (
            f"{KUBERNETES}/concepts/configuration/configmap/",
            f"{KUBERNETES}/concepts/storage/volumes/#using-subpath",
        ),
        {
            "trainer": {
                "code": {
                    "files": [
                        {"path": "train.py", "content": "from model.layers import Net\n"},
                        {"path": "model/layers.py", "content": "class Net: ...\n"},
                    ]
                }
            }
        },
        lambda run: [*kind("ConfigMap")(run), worker(run, 0)],
    ),
    "code-archive": Golden(
        "A worker whose code lies in a store, in an image that lacks Everstep",
        (f"{KUBERNETES}/concepts/workloads/pods/init-containers/",),
        {
            "trainer": {
                "image": "pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime",
                "injectEverstep": True,
                "code": {"archive": "s3://bucket/code.tar.gz"},
                "resources": {"limits": {"memory": "16Gi"}},
                "workingDir": "src",
            },
            "checkpoint": {"uri": "s3://bucket/digits", "credentialsSecret": "s3"},
        },
    ),
    "coordinator": Golden(
        "The coordinator of a run",
        (
            f"{KUBERNETES}/concepts/scheduling-eviction/assign-pod-node/#affinity-and-anti-affinity",
            f"{KUBERNETES}/concepts/security/pod-security-standards/#restricted",
        ),
        {"numNodes": 2, "scheduling": {"priorityClassName": "system-cluster-critical"}},
        lambda run: [coordinator(run)],
    ),
    "services": Golden(
        "The Services of a run: for its coordinator, and for the names of its workers",
        (
            f"{KUBERNETES}/concepts/services-networking/service/#headless-services",
            f"{KUBERNETES}/concepts/services-networking/dns-pod-service/#pod-s-hostname-and-subdomain-fields",
        ),
        objects=kind("Service"),
    ),
    "network-policy": Golden(
        "Who may open connections to a run's pods",
        (f"{KUBERNETES}/concepts/services-networking/network-policies/",),
        objects=kind("NetworkPolicy"),
    ),
    "disruption-budget": Golden(
        "How many workers of an elastic run a drain has to leave",
        (f"{KUBERNETES}/tasks/run-application/configure-pdb/",),
        {"numNodes": 4, "elasticPolicy": {"minNodes": 2, "maxNodes": 8}},
        kind("PodDisruptionBudget"),
    ),
}


def main(arguments: list[str]) -> int:
    """Write the files, or with --check compare them. Returns the exit status."""
    wanted = {FOLDER / f"{name}.yaml": golden.text() for name, golden in GOLDEN.items()}
    surplus = set(FOLDER.glob("*.yaml")) - set(wanted)
    if arguments == ["--check"]:
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
        for path in sorted([*stale, *surplus]):
            print(f"{path} is not what is rendered: run `make generate` and commit it", file=sys.stderr)
        return 1 if stale or surplus else 0
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    for path in surplus:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

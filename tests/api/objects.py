"""ONE table of accepted and refused TrainingRuns, for the models, the CRD's schema and a real API server.

Each rule of the models has at least one of each here.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    object: Object
    refused: str | None = None  # words of the refusal by the models; None: accepted
    by: str = ""  # who refuses in the API server: "schema", "cel", or "unknown" (fields, in strict mode)
    changed: Object | None = None  # the object that `object` is changed into; it is the change that is refused


def run(spec: Object | None = None, **trainer: Any) -> Object:
    """A minimal object with changes to its spec; `trainer` is merged into spec.trainer."""
    whole: Object = {"trainer": {"command": ["python", "train.py"]}}
    whole.update(deepcopy(spec or {}))
    if isinstance(whole["trainer"], dict):
        whole["trainer"].update(trainer)
    return named("run", whole)


def named(name: str, spec: Object | None = None) -> Object:
    spec = {"trainer": {"command": ["python", "train.py"]}} if spec is None else spec
    return {"apiVersion": "everstep.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": name}, "spec": spec}


def elastic(nodes: int, low: int, high: int, **more: int) -> Object:
    return run({"numNodes": nodes, "elasticPolicy": {"minNodes": low, "maxNodes": high, **more}})


def saved(uri: str, **more: Any) -> Object:
    return run({"checkpoint": {"uri": uri, **more}})


def backoff(**policy: Any) -> Object:
    return run({"failurePolicy": {"backoff": policy}})


def startup(seconds: int) -> Object:
    return run({"failurePolicy": {"startup": {"deadlineSeconds": seconds}}})


def lost_node(**policy: float) -> Object:
    return run({"failurePolicy": {"node": policy}})


def cuda(**more: Any) -> Object:
    return run({"accelerator": {"type": "cuda", **more}})


def tpu(nodes: int, topology: str = "4x4", *, type: str = "tpu", spec: Object | None = None, **more: Any) -> Object:
    slice = {"accelerator": "tpu-v6e-slice", "topology": topology, **more}
    return run({"numNodes": nodes, "accelerator": {"type": type, "tpu": slice}, **(spec or {})})


def variable(**source: Any) -> Object:
    return run(env=[{"name": "A", **source}])


def files(**contents: str) -> list[Object]:
    return [{"path": name, "content": content} for name, content in contents.items()]


def ok(name: str, object: Object) -> Case:
    return Case(name, object)


def bad(name: str, object: Object, refused: str, by: str = "schema") -> Case:
    return Case(name, object, refused, by)


def over(object: Object, phase: str = "Failed") -> Object:
    return object | {"status": {"phase": phase}}


def change(name: str, before: Object, after: Object, refused: str | None = None) -> Case:
    return Case(name, before, refused, "cel" if refused else "", after)


FULL = run(
    {
        "suspend": False,
        "numNodes": 3,
        "managedBy": "everstep.dev/operator",
        "elasticPolicy": {"minNodes": 1, "maxNodes": 5, "step": 2},
        "numProcPerNode": 2,
        "accelerator": {
            "type": "cuda",
            "count": 2,
            "resourceName": "nvidia.com/gpu.shared",
            "nodeSelector": {"pool": "training"},
            "tolerations": [
                {
                    "key": "team",
                    "operator": "Equal",
                    "value": "vision",
                    "effect": "NoExecute",
                    "tolerationSeconds": 60,
                }
            ],
            "rdma": {"resourceName": "rdma/hca_shared_devices_a", "count": 2},
        },
        "podTemplate": {
            "metadata": {"labels": {"team": "vision"}, "annotations": {"note": "x"}},
            "spec": {"schedulerName": "mine", "containers": [{"name": "trainer", "tty": True}]},
        },
        "checkpoint": {
            "uri": "s3://bucket/prefix",
            "every": {"steps": 20},
            "keep": 3,
            "keepEvery": {"steps": 1000, "seconds": 3600},
            "keepBest": {"metric": "val_loss", "mode": "min", "count": 2},
            "resume": "never",
            "endpoint": "http://localhost:9000",
            "region": "eu-west-1",
            "credentialsSecret": "s3",
            "ca": {"configMap": {"name": "ca", "key": "bundle.pem"}},
        },
        "failurePolicy": {
            "maxRestarts": 5,
            "backoff": {"initialSeconds": 0.5, "factor": 1.5, "maxSeconds": 60},
            "startup": {"deadlineSeconds": 900},
            "node": {"graceSeconds": 5, "excludeSeconds": 300},
        },
        "scheduling": {"priorityClassName": "high"},
        "activeDeadlineSeconds": 3600,
        "ttlSecondsAfterFinished": 86400,
        "cleanPodPolicy": "All",
    },
    args=["--epochs", "3"],
    image="registry.example/team/train:1",
    imagePullPolicy="IfNotPresent",
    imagePullSecrets=[{"name": "registry"}],
    injectEverstep=True,
    code={"files": [{"path": "model/layers.py", "content": "pass"}]},
    env=[
        {"name": "A", "value": "1"},
        {"name": "B"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key", "optional": True}}},
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "mode", "key": "mode", "optional": False}}},
        {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    envFrom=[
        {"prefix": "X_", "secretRef": {"name": "more", "optional": True}},
        {"configMapRef": {"name": "most", "optional": False}},
    ],
    workingDir="/work",
    resources={"requests": {"cpu": "4"}, "limits": {"memory": "16Gi"}},
    serviceAccountName="trainer",
    terminationGracePeriodSeconds=60,
)

#: What excludes parts of FULL.
FULL_TPU = run(
    {
        "numNodes": 8,
        "accelerator": {
            "type": "tpu",
            "tpu": {"accelerator": "tpu-v6e-slice", "topology": "4x4", "chipsPerHost": 4},
        },
        "checkpoint": {"uri": "gs://bucket/p", "ca": {"secret": {"name": "ca", "key": "ca.crt"}}},
    },
    code={"archive": "gs://bucket/code.tar.gz"},
)

SUSPENDED = run({"suspend": True})

CASES: tuple[Case, ...] = (
    ok("minimal", run()),
    ok("full", FULL),
    ok("full TPU", FULL_TPU),
    # names: a pod's name has to fit into 63 characters
    ok("name of 40 characters", named("a" * 40)),
    bad("name of 41 characters", named("a" * 41), "is longer than 40 characters", "cel"),
    ok("name with digits and dashes", named("1-run-2")),
    bad("name with a dot", named("a.b"), "has characters that a pod's name may not have", "cel"),
    # elastic bounds
    ok("bounds around numNodes", elastic(3, 2, 4)),
    ok("bounds equal to numNodes", elastic(3, 3, 3)),
    bad("minNodes above maxNodes", elastic(3, 4, 2), "elasticPolicy.maxNodes 2 is below minNodes 4: raise", "cel"),
    bad("numNodes below minNodes", elastic(1, 2, 4), "numNodes 1 is below elasticPolicy.minNodes 2: raise", "cel"),
    bad("numNodes above maxNodes", elastic(5, 2, 4), "numNodes 5 is above elasticPolicy.maxNodes 4: lower", "cel"),
    ok("sizes in steps", elastic(6, 2, 10, step=4)),
    ok("a step that fits once", elastic(2, 2, 10, step=8)),
    bad("maxNodes off the steps", elastic(2, 2, 5, step=2), "maxNodes 5 is not minNodes 2 plus a multiple", "cel"),
    bad(
        "numNodes off the steps",
        elastic(3, 2, 4, step=2),
        "numNodes 3 is not elasticPolicy.minNodes 2 plus a multiple of step 2: change numNodes",
        "cel",
    ),
    bad("step 0", elastic(2, 2, 4, step=0), "spec.elasticPolicy.step must be at least 1, not 0"),
    bad("maxNodes missing", run({"elasticPolicy": {"minNodes": 1}}), "spec.elasticPolicy.maxNodes is missing"),
    # checkpoints
    ok("S3", saved("s3://bucket/prefix")),
    ok("local folder", saved("file:///data/run")),
    ok("another scheme", saved("abfs://container/prefix")),
    bad("URI without a scheme", saved("/data/run"), "checkpoint.uri /data/run has no scheme: write s3://", "cel"),
    bad("URI of only a scheme", saved("s3://"), "has no scheme", "cel"),
    bad("relative file URI", saved("file://data/run"), "is not absolute: write file:///", "cel"),
    ok("own S3 server", saved("s3://bucket/prefix", endpoint="https://minio:9000")),
    bad("endpoint for a folder", saved("file:///data", endpoint="https://m"), "endpoint is for s3:// only", "cel"),
    bad("endpoint without scheme", saved("s3://b/p", endpoint="minio:9000"), "checkpoint.endpoint is no URL", "cel"),
    ok("region", saved("s3://bucket/prefix", region="eu-west-1")),
    bad("region for a folder", saved("file:///data", region="eu"), "checkpoint.region is for s3:// only", "cel"),
    bad("URI missing", run({"checkpoint": {"keep": 2}}), "spec.checkpoint.uri is missing"),
    bad("keep 0", saved("s3://b/p", keep=0), "spec.checkpoint.keep must be at least 1, not 0"),
    ok("kept by step and time", saved("s3://b/p", keepEvery={"steps": 1000, "seconds": 3600})),
    ok("the best are kept", saved("s3://b/p", keepBest={"metric": "val_acc", "mode": "max", "count": 3})),
    bad("kept every 0 steps", saved("s3://b/p", keepEvery={"steps": 0}), "keepEvery.steps must be at least 1, not 0"),
    bad("the best without a metric", saved("s3://b/p", keepBest={}), "spec.checkpoint.keepBest.metric is missing"),
    bad("every 0 steps", saved("s3://b/p", every={"steps": 0}), "every.steps must be at least 1, not 0"),
    bad("resume sometimes", saved("s3://b/p", resume="sometimes"), "must be 'auto' or 'never', not \"sometimes\""),
    # restarts
    ok("no restarts", run({"failurePolicy": {"maxRestarts": 0}})),
    bad("maxRestarts -1", run({"failurePolicy": {"maxRestarts": -1}}), "maxRestarts must be at least 0, not -1"),
    ok("no waits", backoff(initialSeconds=0, maxSeconds=0)),
    bad("waits that shrink", backoff(factor=0.5), "backoff.factor must be at least 1, not 0.5"),
    bad(
        "first wait above the longest", backoff(initialSeconds=9, maxSeconds=3), "backoff.maxSeconds 3 is below", "cel"
    ),
    ok("deadline", run({"activeDeadlineSeconds": 1})),
    bad("deadline 0", run({"activeDeadlineSeconds": 0}), "activeDeadlineSeconds must be at least 1, not 0"),
    bad("start-up deadline 0", startup(0), "failurePolicy.startup.deadlineSeconds must be at least 1, not 0"),
    ok("start-up deadline", startup(60)),
    ok("lost nodes are replaced at once", lost_node(graceSeconds=0, excludeSeconds=0)),
    bad("a grace in the past", lost_node(graceSeconds=-1), "node.graceSeconds must be at least 0, not -1"),
    bad("an exclusion in the past", lost_node(excludeSeconds=-1), "node.excludeSeconds must be at least 0, not -1"),
    # the end
    ok("gone at once", run({"ttlSecondsAfterFinished": 0})),
    bad("TTL -1", run({"ttlSecondsAfterFinished": -1}), "ttlSecondsAfterFinished must be at least 0, not -1"),
    ok("keep all pods", run({"cleanPodPolicy": "None"})),
    bad("keep some pods", run({"cleanPodPolicy": "Some"}), "must be 'Running', 'All' or 'None', not \"Some\""),
    # who looks after it, and how it competes
    ok("another manager", run({"managedBy": "kueue.x-k8s.io/multikueue"})),
    bad("a manager without a domain", run({"managedBy": "me"}), "managedBy me names no manager: write domain", "cel"),
    bad("an empty manager", run({"managedBy": ""}), "names no manager: write domain/name", "cel"),
    ok("a priority", run({"scheduling": {"priorityClassName": "high"}})),
    bad("no priority at all", run({"scheduling": {"priorityClassName": ""}}), "priorityClassName must not be empty"),
    # the command and its variables
    bad("no command", run(command=[]), "spec.trainer.command must have at least 1 item, and has 0"),
    bad("command missing", run({"trainer": {"args": ["x"]}}), "spec.trainer.command is missing"),
    bad("trainer missing", named("run", {"numNodes": 1}), "spec.trainer is missing"),
    ok("variables", run(env=[{"name": "A.b-c_D", "value": "x"}])),
    bad("variable twice", run(env=[{"name": "A"}, {"name": "A"}]), "trainer.env has A more than once"),
    bad("variable with a space", run(env=[{"name": "A B"}]), "spec.trainer.env[0].name must match"),
    bad(
        "a variable of ours",
        run(env=[{"name": "EVERSTEP_TOKEN", "value": "x"}]),
        "EVERSTEP_TOKEN is set by Everstep itself: remove it",
        "cel",
    ),
    bad(
        "a variable of torchrun's",
        run(env=[{"name": "WORLD_SIZE", "value": "4"}]),
        "WORLD_SIZE is given to each rank when a world is formed: remove it from env; numNodes and numProcPerNode",
        "cel",
    ),
    ok("a variable with a name like ours", run(env=[{"name": "EVERSTEP_MINE", "value": "x"}])),
    bad("workingDir empty", run(workingDir=""), "spec.trainer.workingDir must not be empty"),
    bad("too many arguments", run(args=["x"] * 513), "spec.trainer.args has more than 512 items"),
    # the container
    ok("image", run(image="registry.example/team/train:1", imagePullPolicy="Always", injectEverstep=True)),
    bad("pull policy sometimes", run(imagePullPolicy="Sometimes"), "trainer.imagePullPolicy must be 'Always'"),
    ok("quantities", run(resources={"requests": {"cpu": "500m"}, "limits": {"memory": "1.5Gi", "cpu": "2"}})),
    bad("no quantity", run(resources={"limits": {"memory": "16 GB"}}), "must be a quantity such as"),
    ok("a variable from a Secret", variable(valueFrom={"secretKeyRef": {"name": "wandb", "key": "key"}})),
    bad("a variable from nowhere", variable(valueFrom={}), "valueFrom takes one source", "cel"),
    bad(
        "a variable from two sources",
        variable(valueFrom={"secretKeyRef": {"name": "a", "key": "b"}, "fieldRef": {"fieldPath": "spec.nodeName"}}),
        "trainer.env: valueFrom takes one source: secretKeyRef, configMapKeyRef or fieldRef",
        "cel",
    ),
    bad(
        "a variable with value and source",
        variable(value="x", valueFrom={"fieldRef": {"fieldPath": "spec.nodeName"}}),
        "trainer.env: A has value and valueFrom: keep one",
        "cel",
    ),
    ok("variables from a ConfigMap", run(envFrom=[{"configMapRef": {"name": "settings"}}])),
    bad("variables from nowhere", run(envFrom=[{"prefix": "A_"}]), "trainer.envFrom: each entry takes one", "cel"),
    bad("a Secret with a space", run(envFrom=[{"secretRef": {"name": "a b"}}]), "envFrom[0].secretRef.name must match"),
    ok("credentials", saved("s3://b/p", credentialsSecret="s3")),
    bad(
        "credentials for a folder", saved("file:///d", credentialsSecret="s"), "checkpoint.credentialsSecret is", "cel"
    ),
    ok("certificates", saved("s3://b/p", ca={"secret": {"name": "ca"}})),
    bad("certificates from nowhere", saved("s3://b/p", ca={}), "checkpoint.ca takes one source", "cel"),
    bad("certificates for a folder", saved("file:///d", ca={"secret": {"name": "c"}}), "checkpoint.ca is for", "cel"),
    # code
    ok("code in files", run(code={"files": files(**{"train.py": "pass", "model/layers.py": ""})}, workingDir="model")),
    ok("code in an archive", run(code={"archive": "s3://bucket/code.tar.gz"})),
    bad("code from nowhere", run(code={}), "trainer.code takes one source", "cel"),
    bad(
        "code from two sources",
        run(code={"files": files(a="b"), "archive": "s3://b/c.zip"}),
        "trainer.code takes one source: files",
        "cel",
    ),
    bad("a file outside", run(code={"files": [{"path": "../train.py"}]}), "code.files[0].path must match"),
    bad("an absolute file", run(code={"files": [{"path": "/train.py"}]}), "code.files[0].path must match"),
    bad("a file twice", run(code={"files": [*files(a="1"), *files(a="2")]}), "trainer.code.files has a more than once"),
    bad("one large file", run(code={"files": files(a="x" * 100_001)}), "is longer than 100000 characters"),
    bad(
        "many files",
        run(code={"files": files(a="x" * 60_000, b="x" * 60_000)}),
        "trainer.code.files has more than 100000 characters in all: put the folder into an archive",
        "cel",
    ),
    bad("no archive", run(code={"archive": "s3://bucket/code"}), "code is no URI of an archive: write s3://", "cel"),
    bad("a relative workingDir", run(workingDir="src"), "trainer.workingDir src is relative to trainer.code", "cel"),
    # accelerators
    ok("devices", cuda(count=8)),
    ok("ranks by device", run({"accelerator": {"type": "cuda", "count": 8}, "numProcPerNode": 0})),
    bad(
        "count of CPUs",
        run({"accelerator": {"count": 8}}),
        "accelerator.count is for type cuda, and type is cpu",
        "cel",
    ),
    ok("slices of a device", cuda(resourceName="nvidia.com/mig-1g.10gb")),
    bad(
        "a resource for CPUs",
        run({"accelerator": {"resourceName": "cpus"}}),
        "accelerator.resourceName is for type cuda, and type is cpu",
        "cel",
    ),
    ok("RDMA", cuda(rdma={"resourceName": "rdma/hca"})),
    bad("RDMA for CPUs", run({"accelerator": {"rdma": {"resourceName": "r"}}}), "accelerator.rdma is for type", "cel"),
    bad(
        "devices twice",
        run({"accelerator": {"type": "cuda"}}, resources={"limits": {"nvidia.com/gpu": "8"}}),
        "trainer.resources names the resource of the accelerator",
        "cel",
    ),
    ok("other devices", run({"accelerator": {"type": "cuda"}}, resources={"limits": {"example.com/fpga": "1"}})),
    ok(
        "a pool of CPUs", run({"accelerator": {"nodeSelector": {"pool": "a"}, "tolerations": [{"operator": "Exists"}]}})
    ),
    bad(
        "a taint without a key",
        run({"accelerator": {"tolerations": [{"value": "x"}]}}),
        "accelerator.tolerations: Equal needs a key",
        "cel",
    ),
    ok("one TPU host", tpu(1, "2x2")),
    ok("one TPU chip", tpu(1, "1x1")),
    bad("TPU slices that cannot be joined", tpu(2, "2x2"), "numNodes 2 with TPU slices of one host (2x2)", "cel"),
    ok("a TPU slice of three dimensions", tpu(4, "2x2x4")),
    ok("two TPU slices", tpu(8)),
    ok("TPU hosts of eight chips", tpu(1, "2x4", chipsPerHost=8)),
    bad("half a TPU slice", tpu(6), "numNodes 6 are no whole TPU slices of topology 4x4 with 4 chips", "cel"),
    bad("a TPU without slices", run({"accelerator": {"type": "tpu"}}), "accelerator.type tpu needs", "cel"),
    bad("slices of CPUs", tpu(4, type="cpu"), "accelerator.tpu is for type tpu, and type is cpu", "cel"),
    bad("no topology", tpu(1, "big"), "tpu.topology must match"),
    bad("a topology that does not divide", tpu(1, "3x3"), "accelerator.tpu.topology 3x3 does not divide", "cel"),
    bad(
        "elastic slices",
        tpu(8, spec={"elasticPolicy": {"minNodes": 4, "maxNodes": 12, "step": 4}}),
        "elasticPolicy does not go with a TPU",
        "cel",
    ),
    bad("half the TPU ranks", tpu(4, spec={"numProcPerNode": 2}), "numProcPerNode 2 does not go with the chips", "cel"),
    ok("a rank for each chip", tpu(4, spec={"numProcPerNode": 4})),
    ok("one TPU rank", tpu(4, spec={"numProcPerNode": 1})),
    # more for pods
    ok("a sidecar", run({"podTemplate": {"spec": {"containers": [{"name": "logs", "image": "fluent-bit"}]}}})),
    bad("a pod of text", run({"podTemplate": {"spec": "x"}}), "spec.podTemplate.spec must be a mapping of names"),
    # types
    bad("a number in quotes", run({"numNodes": "3"}), 'must be a whole number, not the text "3": remove the quotes'),
    bad("a broken number", run({"numNodes": 2.5}), "spec.numNodes must be a whole number, not 2.5"),
    bad("numNodes 0", run({"numNodes": 0}), "spec.numNodes must be at least 1, not 0"),
    bad("too many nodes", run({"numNodes": 10_001}), "spec.numNodes must be at most 10000, not 10001"),
    bad("fewer than no ranks", run({"numProcPerNode": -1}), "spec.numProcPerNode must be at least 0, not -1"),
    bad("text for a flag", run({"suspend": "true"}), 'must be true or false, not the text "true": remove the quotes'),
    bad("a number as variable", run(env=[{"name": "A", "value": 1}]), "must be text, not 1: put it in quotes"),
    bad("a command in one word", run(command="python x.py"), '"python x.py": write [python, x.py]'),
    bad("a command for a shell", run(command=["python x.py"]), "trainer.command is executed without a shell", "cel"),
    ok("a path with a space", run(command=["python", "my script.py"])),
    bad("torchrun", run(command=["/opt/bin/torchrun", "x.py"]), "trainer.command is what each rank runs", "cel"),
    bad("torchrun's module", run(command=["python", "-m", "torch.distributed.run"]), "trainer.command is what", "cel"),
    bad(
        "torchrun's forerunner", run(command=["python", "-m", "torch.distributed.launch"]), "trainer.command is", "cel"
    ),
    bad("accelerate", run(command=["accelerate", "launch", "x.py"]), "a launcher such as torchrun", "cel"),
    bad("MPI", run(command=["/usr/bin/mpirun", "python", "x.py"]), "a launcher such as torchrun", "cel"),
    bad(
        "a store to read from", saved("https://b.s3.amazonaws.com/p"), "is no store for checkpoints: write s3://", "cel"
    ),
    bad("a hub", saved("hf://team/model"), "checkpoint.uri hf://team/model is no store for checkpoints", "cel"),
    bad("a store without a bucket", saved("s3:///p"), "checkpoint.uri s3:///p names no bucket: write s3://", "cel"),
    ok("a name like torchrun's", run(command=["python", "torchrun.py"])),
    bad("devices of CPUs", run(resources={"limits": {"nvidia.com/gpu": 8}}), "trainer.resources asks for dev", "cel"),
    bad("chips of CPUs", run(resources={"requests": {"google.com/tpu": 4}}), "trainer.resources asks for dev", "cel"),
    bad("auto", run({"numProcPerNode": "auto"}), 'the text "auto": leave it out for one rank on each device'),
    bad("a duration", run({"ttlSecondsAfterFinished": "1d"}), 'not the text "1d": write 86400'),
    bad("a rhythm", saved("s3://b/p", every="10m"), 'must be a mapping of fields, not the text "10m": it has steps'),
    bad(
        "volumes", run(volumes=[]), "spec.trainer has no field volumes: write spec.podTemplate.spec.volumes", "unknown"
    ),
    bad("a kilo", run(resources={"requests": {"memory": "4K"}}), 'quantity such as 2, "500m" or 16Gi, not "4K"'),
    bad("a list for an object", run({"trainer": ["x"]}), "spec.trainer must be a mapping of fields, not a list"),
    bad("a GPU", run({"accelerator": {"type": "gpu"}}), "'cpu', 'cuda' or 'tpu', not \"gpu\": write cuda"),
    bad(
        "resources by name",
        run(resources={"cpu": 4}),
        "resources has no field cpu: write requests: {cpu: …}",
        "unknown",
    ),
    bad("variables by name", run(env={"A": "b"}), "must be a list, not a mapping: write [{name: …, value: …}]"),
    bad("a Secret by reference", saved("s3://b/p", credentialsSecret={"name": "s3"}), "a mapping: write its name, s3"),
    bad("an accelerator of tomorrow", run({"accelerator": {"type": "qpu"}}), "'cpu', 'cuda' or 'tpu', not \"qpu\""),
    bad("a fraction without quotes", run(resources={"limits": {"cpu": 0.5}}), 'not 0.5: write "0.5"'),
    # unknown fields
    bad("unknown in spec", run({"numNode": 3}), "spec has no field numNode; did you mean numNodes?", "unknown"),
    bad("snake case", run({"num_nodes": 3}), "spec has no field num_nodes; did you mean numNodes?", "unknown"),
    bad("unknown in env", run(env=[{"name": "A", "valu": ""}]), "env[0] has no field valu; did you mean", "unknown"),
    bad(
        "Kubeflow's policy", run({"runPolicy": {}}), "no field runPolicy: write spec.suspend, spec.cleanPod", "unknown"
    ),
    bad("a Job's limit", run({"backoffLimit": 3}), "backoffLimit: write spec.failurePolicy.maxRestarts", "unknown"),
    bad("unknown and far", run({"flavour": 3}), "spec has no field flavour; it has accelerator,", "unknown"),
    # changes
    change("suspend", run(), SUSPENDED),
    change("more restarts", run(), run({"failurePolicy": {"maxRestarts": 99}})),
    change("a deadline", run(), run({"activeDeadlineSeconds": 9})),
    change("a trainer while suspended", SUSPENDED, run({"suspend": True}, args=["--lr", "1"])),
    change("a trainer with the resume", SUSPENDED, run({"numNodes": 2}, args=["--lr", "1"])),
    change("a trainer on the way", run(), run(args=["--lr", "1"]), "trainer changes only while the run is suspended"),
    change("a trainer with suspend", run(), run({"suspend": True}, args=["1"]), "trainer changes only while"),
    change("a TTL", run(), run({"ttlSecondsAfterFinished": 9})),
    change("which pods are kept", run(), run({"cleanPodPolicy": "None"})),
    change("a start-up deadline", run(), startup(60)),
    change("numNodes in the bounds", elastic(2, 2, 4), elastic(4, 2, 4)),
    change("numNodes on the way", run(), run({"numNodes": 2}), "numNodes of a running run changes only within"),
    change("numNodes while suspended", SUSPENDED, run({"suspend": True, "numNodes": 2})),
    change(
        "numNodes with new bounds",
        run({"numNodes": 2}),
        elastic(3, 2, 4),
        "elasticPolicy changes only while the run is suspended",
    ),
    change("a priority on the way", run(), run({"scheduling": {"priorityClassName": "a"}}), "scheduling changes only"),
    change("a manager that is the same", run({"managedBy": "a.b/c"}), run({"managedBy": "a.b/c", "suspend": True})),
    change("a manager given later", run(), run({"managedBy": "a.b/c"}), "managedBy never changes, or two"),
    change("another manager", run({"managedBy": "a.b/c"}), run({"managedBy": "a.b/d"}), "managedBy never changes"),
    change("a manager while suspended", SUSPENDED, run({"suspend": True, "managedBy": "a/b"}), "managedBy never"),
    change("elasticPolicy on the way", elastic(3, 2, 4), elastic(3, 2, 5), "elasticPolicy changes only while"),
    change("elasticPolicy taken away", elastic(3, 2, 4), run({"numNodes": 3}), "elasticPolicy changes only while"),
    change("ranks on the way", run(), run({"numProcPerNode": 2}), "numProcPerNode changes only while"),
    change("accelerator on the way", run(), cuda(), "accelerator changes only while"),
    change("podTemplate given later", run(), run({"podTemplate": {}}), "podTemplate changes only while"),
    change("checkpoint on the way", saved("s3://b/p"), saved("s3://b/q"), "checkpoint changes only while"),
    change(
        "a trainer after a failure", over(run()), run(args=["--lr", "1"]), "the run is over and does not begin again"
    ),
    change("suspend after the end", over(run(), "Succeeded"), SUSPENDED, "delete it and create it anew"),
    change("a resume after the end", over(SUSPENDED, "Succeeded"), run(), "the run is over"),
    change("a trainer of a suspended run that is over", over(SUSPENDED), run({"suspend": True}, args=["1"]), "is over"),
    change("numNodes after the end", over(elastic(2, 2, 4)), elastic(4, 2, 4), "the run is over"),
    change("more restarts after the last", over(run()), run({"failurePolicy": {"maxRestarts": 99}}), "the run is over"),
    change("a checkpoint after the end", over(run()), saved("s3://b/p"), "the run is over"),
    change("a TTL after the end", over(run()), run({"ttlSecondsAfterFinished": 9, "cleanPodPolicy": "All"})),
    change("a trainer that is not over", run() | {"status": {"phase": "Running"}}, run(args=["1"]), "trainer changes"),
    change("checkpoint given later", run(), saved("s3://b/p"), "checkpoint changes only while"),
)

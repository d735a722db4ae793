"""What a manifest says that only a cluster acts on, so that the same manifest works here and there."""

from collections.abc import Iterator

from everstep_operator.api.failure_policy import NodePolicy
from everstep_operator.api.trainingrun import Spec, TrainingRun


def cluster_only(run: TrainingRun) -> str | None:
    """A line about it; None where everything is acted on."""
    fields = list(_fields(run.spec))
    return f"note: only a cluster acts on {', '.join(fields)}" if fields else None


def _fields(spec: Spec) -> Iterator[str]:
    trainer, checkpoint = spec.trainer, spec.checkpoint
    said = {
        "accelerator": spec.accelerator.type != "cpu" or spec.accelerator.node_selector or spec.accelerator.tolerations,
        "failurePolicy.node": spec.failure_policy.node != NodePolicy(),
        "managedBy": spec.managed_by,
        "podTemplate": spec.pod_template,
        "scheduling": spec.scheduling.priority_class_name,
        "trainer.image": trainer.image or trainer.image_pull_policy or trainer.image_pull_secrets,
        "trainer.injectEverstep": trainer.inject_everstep,
        "trainer.env.valueFrom": any(variable.value_from for variable in trainer.env),
        "trainer.envFrom": trainer.env_from,
        "trainer.resources": trainer.resources.requests or trainer.resources.limits,
        "trainer.serviceAccountName": trainer.service_account_name,
        "ttlSecondsAfterFinished": spec.ttl_seconds_after_finished is not None,
        "checkpoint.credentialsSecret": checkpoint and checkpoint.credentials_secret,
        "checkpoint.ca": checkpoint and checkpoint.ca,
    }
    return (field for field, given in said.items() if given)

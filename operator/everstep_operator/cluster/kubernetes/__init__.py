"""The Kubernetes adapter of cluster/port.py. Nothing outside this package imports `kubernetes`."""

from everstep_operator.cluster.kubernetes.adapter import KubernetesCluster
from everstep_operator.cluster.kubernetes.answers import Answers
from everstep_operator.cluster.kubernetes.api import ApiServer, configuration, traced_session
from everstep_operator.cluster.kubernetes.coordinators import Tokens
from everstep_operator.cluster.kubernetes.lease import Lease

__all__ = ["Answers", "ApiServer", "KubernetesCluster", "Lease", "Tokens", "configuration", "traced_session"]

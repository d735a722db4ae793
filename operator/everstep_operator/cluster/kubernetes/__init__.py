"""The Kubernetes adapter of cluster/port.py. Nothing outside this package imports `kubernetes`."""

from everstep_operator.cluster.kubernetes.adapter import KubernetesCluster
from everstep_operator.cluster.kubernetes.api import ApiServer, configuration
from everstep_operator.cluster.kubernetes.coordinators import Tokens

__all__ = ["ApiServer", "KubernetesCluster", "Tokens", "configuration"]

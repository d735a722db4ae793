"""The Kubernetes adapter of cluster/port.py. Nothing outside this package imports `kubernetes`."""

from everstep_operator.cluster.kubernetes.adapter import KubernetesCluster
from everstep_operator.cluster.kubernetes.api import ApiServer, authorization, configuration
from everstep_operator.cluster.kubernetes.coordinators import Tokens
from everstep_operator.cluster.kubernetes.lease import Lease

__all__ = ["ApiServer", "KubernetesCluster", "Lease", "Tokens", "authorization", "configuration"]

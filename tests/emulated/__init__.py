"""A Kubernetes that is small enough for a unit test: an API server on kmock, and a kubelet that runs real processes."""

from tests.emulated.api import EmulatedApi, Fault
from tests.emulated.cluster import EmulatedCluster

__all__ = ["EmulatedApi", "EmulatedCluster", "Fault"]

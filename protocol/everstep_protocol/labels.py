"""Labels and annotations of objects that belong to a run. The operator writes them, selectors and people read them."""

RUN = "everstep.dev/run"  # name of the TrainingRun
RUN_UID = "everstep.dev/run-uid"
ROLE = "everstep.dev/role"  # worker | coordinator
NODE = "everstep.dev/node"  # index of the node in the run
ATTEMPT = "everstep.dev/attempt"  # which pod for that node index, 1 ..

WORKER = "worker"
COORDINATOR = "coordinator"

KEPT_FROM = "everstep.dev/kept-from"  # annotation of a pod: names of Nodes that it is not placed on, between commas

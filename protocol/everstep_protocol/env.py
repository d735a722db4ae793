"""Environment variables that carry the conversation into pods and workers. Written in one place, read in one place."""

# Written by the operator into every pod of a run, read by launcher and runtime.
COORDINATOR = "EVERSTEP_COORDINATOR"  # http://host:port
TOKEN = "EVERSTEP_TOKEN"  # the run's bearer token
RUN_NAME = "EVERSTEP_RUN_NAME"
RUN_NAMESPACE = "EVERSTEP_RUN_NAMESPACE"
RUN_UID = "EVERSTEP_RUN_UID"
POD = "EVERSTEP_POD"  # the pod's name
NODE = "EVERSTEP_NODE"  # index of this node in the run, 0 ..
NODE_ADDRESS = "EVERSTEP_NODE_ADDRESS"  # where the other nodes reach this one
SEED = "EVERSTEP_SEED"  # seed of the run, for scripts that set none
CHECKPOINT_URI = "EVERSTEP_CHECKPOINT_URI"
CHECKPOINT_EVERY_STEPS = "EVERSTEP_CHECKPOINT_EVERY_STEPS"
CHECKPOINT_KEEP = "EVERSTEP_CHECKPOINT_KEEP"
CHECKPOINT_RETENTION = "EVERSTEP_CHECKPOINT_RETENTION"  # what stays besides the newest, as JSON (a Retention)
CHECKPOINT_RESUME = "EVERSTEP_CHECKPOINT_RESUME"  # auto | never
TERMINATION_FILE = "EVERSTEP_TERMINATION_FILE"  # where the launcher leaves its last words as JSON (a Failure)
GRACE_SECONDS = "EVERSTEP_GRACE_SECONDS"  # from SIGTERM to SIGKILL of the pod

# Written by the launcher into every worker, read by the runtime, beside torchrun's.
TORCHRUN = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
GENERATION = "EVERSTEP_GENERATION"  # of the round this worker belongs to, 1 ..
BOARD = "EVERSTEP_BOARD"  # path of the shared memory between launcher and its ranks (everstep/board.py)
FAILURE_FILE = "EVERSTEP_FAILURE_FILE"  # where a failing worker leaves its Failure as JSON

"""Why a run does not begin: one word, the cluster's words, and an end where waiting is pointless."""

import pytest

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.plan.model import Pod
from everstep_protocol.messages import RunState
from tests.plan.builders import all_pods, at, plan, pod, progress, report, run, running, then

WAITS = report(RunState.WAITING, 0)


def waiting_pod(reason: str, message: str = "") -> list[Pod]:
    return [pod(None), pod(0), pod(1, phase="Pending", waiting_reason=reason, message=message)]


def begun(**spec: object) -> TrainingRun:
    new = run(**spec)  # type: ignore[arg-type]
    return then(new, plan(new))


@pytest.mark.parametrize(
    ("word", "message", "reason"),
    [
        ("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "Unschedulable"),
        ("SchedulingGated", "", "Unschedulable"),
        ("ErrImagePull", "not found", "ImagePull"),
        ("ImagePullBackOff", "Back-off pulling image", "ImagePull"),
        ("InvalidImageName", "couldn't parse image name", "ImagePull"),
        ("CreateContainerConfigError", 'secret "s3" not found', "Config"),
        ("FailedMount", 'MountVolume.SetUp failed for volume "ca": secret "ca" not found', "Config"),
        ("FailedMount", "references non-existent secret key: ca.crt", "Config"),
        ("FailedMount", "mount failed: exit status 32", "Storage"),
        ("FailedAttachVolume", "timed out", "Storage"),
        ("Unschedulable", "0/3 nodes: pod has unbound immediate PersistentVolumeClaims", "Storage"),
        ("Unschedulable", 'persistentvolumeclaim "data" not found', "Storage"),
        ("ContainerCreating", "", "WaitingForNodes"),
    ],
)
def test_pending_says_why_in_one_word_and_in_the_words_of_the_cluster(word: str, message: str, reason: str) -> None:
    status = plan(begun(), waiting_pod(word, message), WAITS).status
    assert (status.phase, status.reason) == ("Pending", reason)
    assert status.message == f"1 of 2 nodes run; run-1-1: {word}" + (f": {message}" if message else "")
    condition = status.condition("PodsRunning")
    assert condition is not None
    assert (condition.status, condition.reason, condition.message) == ("False", reason, status.message)


def test_word_that_the_message_begins_with_is_said_once() -> None:
    status = plan(begun(), waiting_pod("ErrImagePull", "ErrImagePull: not found"), WAITS).status
    assert status.message == "1 of 2 nodes run; run-1-1: ErrImagePull: not found"


def test_node_that_is_not_ready_is_named() -> None:
    pods = [pod(None), pod(0), pod(1, phase="Pending", machine="gpu-7", machine_lost_since=at(0))]
    status = plan(begun(), pods, WAITS, 5).status
    assert status.reason == "NodeNotReady"
    assert "gpu-7" in status.message


def test_what_somebody_has_to_repair_is_told_first() -> None:
    pods = [
        pod(None),
        pod(0, phase="Pending", waiting_reason="Unschedulable", message="no room"),
        pod(1, phase="Pending", waiting_reason="ErrImagePull", message="no such image"),
    ]
    assert plan(begun(), pods, WAITS).status.reason == "ImagePull"


@pytest.mark.parametrize(
    ("word", "message", "reason"),
    [
        ("ErrImagePull", 'failed to resolve reference "ghcr.io/me/x:1": ghcr.io/me/x:1: not found', "ImagePull"),
        ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: manifest unknown', "ImagePull"),
        ("ErrImagePull", "failed to fetch oauth token: unexpected status: 401 Unauthorized", "ImagePull"),
        ("ErrImagePull", "failed to fetch anonymous token: unexpected status: 403 Forbidden", "ImagePull"),
        ("ErrImagePull", "pull access denied, repository does not exist or may require authorization", "ImagePull"),
        ("ErrImagePull", "dial tcp: lookup ghrc.io on 10.0.0.10:53: no such host", "ImagePull"),
        ("InvalidImageName", 'couldn\'t parse image name "My/Image"', "ImagePull"),
        ("ErrImageNeverPull", 'Container image "x" is not present with pull policy of Never', "ImagePull"),
        ("CreateContainerConfigError", 'secret "s3" not found', "Config"),
        ("CreateContainerConfigError", "couldn't find key token in Secret team/s3", "Config"),
        ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root", "Config"),
        ("FailedMount", 'configmap "ca" not found', "Config"),
    ],
)
def test_what_does_not_mend_itself_fails_the_run_soon_and_not_at_once(word: str, message: str, reason: str) -> None:
    run = begun(max_restarts=5)
    run = then(run, plan(run, waiting_pod(word, message), WAITS, 10))
    assert plan(run, waiting_pod(word, message), WAITS, 39).status.phase == "Pending"
    over = plan(run, waiting_pod(word, message), WAITS, 40)
    assert (over.status.phase, over.status.reason) == ("Failed", reason)
    assert message in over.status.message
    assert over.status.restarts.total == 0


def test_trouble_that_went_away_begins_anew() -> None:
    run = begun()
    for second, word in ((0, "ErrImagePull"), (20, "ContainerCreating"), (25, "ErrImagePull")):
        run = then(run, plan(run, waiting_pod(word, "not found"), WAITS, second))
    assert plan(run, waiting_pod("ErrImagePull", "not found"), WAITS, 54).status.phase == "Pending"
    assert plan(run, waiting_pod("ErrImagePull", "not found"), WAITS, 55).status.phase == "Failed"


def test_run_that_has_trained_waits_for_its_image() -> None:
    run = running()
    for second in (10, 100):
        run = then(run, plan(run, waiting_pod("ErrImagePull", "registry is down"), report(RunState.WAITING, 1), second))
    assert run.status.phase == "Restarting"
    assert "registry is down" in run.status.message


def test_run_that_has_trained_waits_for_its_image_also_when_it_is_resumed() -> None:
    trained = running()
    over = report(RunState.STOPPED, 1, progress=progress(41_000))
    suspended = trained.model_copy(update={"spec": trained.spec.model_copy(update={"suspend": True})})
    suspended = then(suspended, plan(suspended, all_pods(), over, 10))
    assert suspended.status.phase == "Suspended"
    resumed = suspended.model_copy(update={"spec": trained.spec})
    resumed = then(resumed, plan(resumed, [], None, 20))
    for second in (30, 60, 1_000):
        resumed = then(resumed, plan(resumed, waiting_pod("ErrImagePull", "manifest unknown"), WAITS, second))
    assert (resumed.status.phase, resumed.status.reason) == ("Pending", "ImagePull")


@pytest.mark.parametrize(
    ("word", "message", "reason"),
    [
        ("ErrImagePull", "unexpected status code 503 Service Unavailable", "ImagePull"),
        ("ErrImagePull", "429 Too Many Requests", "ImagePull"),
        ("ErrImagePull", "toomanyrequests: You have reached your pull rate limit", "ImagePull"),
        ("ErrImagePull", "dial tcp 10.0.0.1:443: connect: connection refused", "ImagePull"),
        ("ErrImagePull", "dial tcp 10.0.0.1:443: connect: no route to host", "ImagePull"),
        ("ErrImagePull", "dial tcp 10.0.0.1:443: connect: network is unreachable", "ImagePull"),
        ("ErrImagePull", "dial tcp: lookup ghcr.io on 10.0.0.10:53: read udp: i/o timeout", "ImagePull"),
        ("ErrImagePull", "dial tcp: lookup ghcr.io on 10.0.0.10:53: server misbehaving", "ImagePull"),
        ("ErrImagePull", "failed to authorize: failed to fetch anonymous token: unexpected EOF", "ImagePull"),
        ("ErrImagePull", "failed to extract layer: write /var/lib/x: no space left on device", "ImagePull"),
        ("ImagePullBackOff", 'Back-off pulling image "ghcr.io/me/x:1"', "ImagePull"),
        ("RegistryUnavailable", "image pull failed", "ImagePull"),
        ("CreateContainerError", "context deadline exceeded", "Config"),
        ("CreateContainerError", "failed to reserve container name: name is reserved", "Config"),
        ("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition", "Config"),
    ],
)
def test_what_may_mend_itself_is_waited_for(word: str, message: str, reason: str) -> None:
    run = begun(failurePolicy={"startup": {"deadlineSeconds": 600}})
    for second in (10, 40, 599):
        run = then(run, plan(run, waiting_pod(word, message), WAITS, second))
    assert (run.status.phase, run.status.reason) == ("Pending", reason)
    assert plan(run, waiting_pod(word, message), WAITS, 600).status.reason == "StartupDeadlineExceeded"


@pytest.mark.parametrize(
    ("word", "soft", "final"),
    [
        ("ErrImagePull", "503 Service Unavailable", "401 Unauthorized"),
        ("CreateContainerConfigError", "failed to sync secret cache: timed out", 'secret "s3" not found'),
    ],
)
def test_words_that_are_final_are_confirmed_whatever_was_said_before(word: str, soft: str, final: str) -> None:
    run = begun()
    for second, words in ((0, soft), (600, soft), (601, final), (602, soft), (610, final), (639, final)):
        run = then(run, plan(run, waiting_pod(word, words), WAITS, second))
        assert run.status.phase == "Pending"
    assert plan(run, waiting_pod(word, final), WAITS, 640).status.phase == "Failed"


def test_of_several_pods_the_one_whose_trouble_is_final_is_told() -> None:
    run, first = begun(), pod(0, phase="Pending", waiting_reason="ErrImagePull", message="503 Service Unavailable")
    pods = [pod(None), first, *waiting_pod("ErrImagePull", "manifest unknown")[2:]]
    run = then(run, plan(run, pods, WAITS, 0))
    over = plan(run, pods, WAITS, 30).status
    assert over.phase == "Failed"
    assert "run-1-1: ErrImagePull: manifest unknown" in over.message


def test_a_back_off_that_does_not_say_why_leaves_the_words_of_the_last_pull() -> None:
    """Kubelets before 1.32 repeat the registry's words only at each try."""
    backs_off = waiting_pod("ImagePullBackOff", 'Back-off pulling image "ghcr.io/me/x:1"')
    for words, phase in (("not found", "Failed"), ("503 Service Unavailable", "Pending")):
        run = begun()
        for second, pods in ((0, waiting_pod("ErrImagePull", words)), (10, backs_off), (29, backs_off)):
            run = then(run, plan(run, pods, WAITS, second))
            assert run.status.phase == "Pending"
        after = plan(run, backs_off, WAITS, 30).status
        assert after.phase == phase
        assert words in after.message or phase == "Pending"


def test_no_room_is_waited_for_without_end() -> None:
    run = begun()
    run = then(run, plan(run, waiting_pod("Unschedulable", "no room"), WAITS, 10))
    assert plan(run, waiting_pod("Unschedulable", "no room"), WAITS, 10**6).status.phase == "Pending"


def test_start_up_deadline_fails_with_the_reason_that_it_waited_for() -> None:
    run = begun(failurePolicy={"startup": {"deadlineSeconds": 60}})
    run = then(run, plan(run, waiting_pod("Unschedulable", "no room"), WAITS, 0))
    assert plan(run, waiting_pod("Unschedulable", "no room"), WAITS, 58).wake_after == 2
    over = plan(run, waiting_pod("Unschedulable", "no room"), WAITS, 60)
    assert (over.status.phase, over.status.reason) == ("Failed", "StartupDeadlineExceeded")
    assert "deadlineSeconds 60" in over.status.message
    assert "Unschedulable" in over.status.message
    assert "no room" in over.status.message


def test_start_up_deadline_is_met_by_the_first_step() -> None:
    run = running(failurePolicy={"startup": {"deadlineSeconds": 60}})
    assert plan(run, all_pods(), report(progress=progress(10)), 61).status.phase == "Running"


def test_resume_shows_pending_with_its_reason_at_once() -> None:
    suspended = run(suspend=True)
    suspended = then(suspended, plan(suspended))
    resumed = suspended.model_copy(update={"spec": suspended.spec.model_copy(update={"suspend": False})})
    first = plan(resumed, [], None, 5)
    assert (first.status.phase, first.status.reason) == ("Pending", "Resumed")
    second = plan(then(resumed, first), waiting_pod("Unschedulable", "no room"), WAITS, 6)
    assert (second.status.phase, second.status.reason) == ("Pending", "Unschedulable")

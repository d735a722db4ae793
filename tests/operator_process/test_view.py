"""The view of pods: whatever comes late, in any order, it never goes back in time, and in the end it is right."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from everstep_operator.cluster.kubernetes.pods import Seen
from everstep_operator.cluster.kubernetes.view import MachineView, PodView, machine
from everstep_operator.cluster.port import RunKey
from everstep_operator.plan.model import Pod

RUN = "run-uid"
KEY = RunKey("team", "first")


def seen(uid: str, version: int, phase: str = "Pending", *, run: str = RUN) -> Seen:
    pod = Pod(f"pod-{uid}", uid, "worker", 0, 1, phase, run_uid=run)
    return Seen(KEY, pod, version, "", datetime(2026, 1, 1, tzinfo=UTC))


def phases(view: PodView) -> dict[str, str]:
    return {item.pod.uid: item.pod.phase for item in view.of(RUN)}


def test_a_pod_that_we_created_is_there_before_the_watch_tells() -> None:
    view = PodView()
    view.wrote(seen("a", 10))
    assert phases(view) == {"a": "Pending"}
    view.changed("ADDED", seen("a", 10), 10)
    view.changed("MODIFIED", seen("a", 12, "Running"), 12)
    assert phases(view) == {"a": "Running"}


def test_an_older_word_is_not_believed() -> None:
    view = PodView()
    view.listed_run(RUN, [seen("a", 12, "Running")], 15)
    view.changed("ADDED", seen("a", 10), 10)
    assert phases(view) == {"a": "Running"}


def test_news_of_one_pod_does_not_hide_older_news_of_another() -> None:
    view = PodView()
    view.listed([seen("a", 5, "Running")], 6)
    view.wrote(seen("b", 10))
    view.changed("MODIFIED", seen("a", 8, "Failed"), 8)
    assert phases(view) == {"a": "Failed", "b": "Pending"}


def test_a_pod_that_we_removed_is_not_brought_back_by_a_late_event() -> None:
    view = PodView()
    view.wrote(seen("a", 10))
    view.removed(RUN, "a")
    view.changed("MODIFIED", seen("a", 11, "Running"), 11)
    assert phases(view) == {}
    view.changed("DELETED", seen("a", 12), 12)
    assert phases(view) == {}


def test_a_list_that_is_older_than_a_creation_does_not_take_it_away() -> None:
    view = PodView()
    view.wrote(seen("b", 20))
    view.listed([seen("a", 5)], 15)
    assert phases(view) == {"a": "Pending", "b": "Pending"}
    view.listed([seen("a", 5)], 25)
    assert phases(view) == {"a": "Pending"}, "a newer one does"


def test_doubt_lasts_until_the_source_was_asked() -> None:
    view = PodView()
    view.doubt(RUN)
    view.changed("ADDED", seen("a", 10), 10)
    assert not view.is_sure(RUN)
    view.listed_run(RUN, [seen("a", 10)], 11)
    assert view.is_sure(RUN)


def test_only_news_is_told() -> None:
    told: list[RunKey] = []
    view = PodView(told.append)
    view.wrote(seen("a", 10))
    view.changed("ADDED", seen("a", 10), 10)
    assert told == [], "we know what we did"
    view.changed("MODIFIED", seen("a", 11, "Running"), 11)
    assert told == [KEY]
    view.listed([seen("a", 11, "Running")], 12)
    assert told == [KEY]
    view.listed([], 13)
    assert told == [KEY, KEY]


def test_a_pod_that_ended_while_a_list_was_on_its_way_stays_gone() -> None:
    view = PodView()
    view.listed([seen("a", 10, "Running")], 10)
    asked = [seen("a", 10, "Running")], 11
    view.changed("DELETED", seen("a", 12, "Running"), 12)
    view.listed(*asked)
    assert phases(view) == {}, "by who takes over"
    view.listed_run(RUN, *asked)
    assert phases(view) == {}, "by who is in doubt"


def test_a_creation_whose_answer_comes_after_the_end_of_the_pod_is_over() -> None:
    view = PodView()
    view.changed("ADDED", seen("a", 10), 10)
    view.changed("DELETED", seen("a", 11), 11)
    view.wrote(seen("a", 10))
    assert phases(view) == {}


def test_nothing_is_kept_of_the_runs_that_ever_were() -> None:
    view = PodView()

    def live(number: int) -> int:
        """A run comes, is in doubt, is asked for, and goes in doubt. What the view holds then."""
        uid, version = f"run-{number}", 10 * number
        view.doubt(uid)
        view.listed_run(uid, [seen(f"pod-{number}", version, run=uid)], version + 1)
        view.changed("DELETED", seen(f"pod-{number}", version + 2, run=uid), version + 2)
        view.doubt(uid)
        view.forget(uid)
        return sum(len(held) for held in vars(view).values() if isinstance(held, (dict, set)))

    assert live(1) == live(2) == live(3)
    assert view.is_sure("run-1")


@dataclass
class Store:
    """What an API server has, and the history that a watch tells late."""

    version: int = 0
    pods: dict[str, Seen] = field(default_factory=dict)
    history: list[tuple[str, Seen, int]] = field(default_factory=list)
    told: int = 0

    def write(self, type: str, uid: str, phase: str = "Pending") -> Seen:
        self.version += 1
        item = seen(uid, self.version, phase)
        if type == "DELETED":
            self.pods.pop(uid)
        else:
            self.pods[uid] = item
        self.history.append((type, item, self.version))
        return item

    def now(self) -> tuple[list[Seen], int]:
        return list(self.pods.values()), self.version


OURS = st.sampled_from(["create", "remove", "list", "create asked", "remove asked", "list asked", "all asked"])
OTHERS = st.sampled_from(["change", "vanish", "watch", "watch", "watch", "relist", "answered", "answered"])


@settings(max_examples=600)
@given(st.lists(st.tuples(st.one_of(OURS, OTHERS), st.integers(0, 3)), max_size=60))
def test_in_any_order_of_words_the_view_is_never_older_than_what_it_was(steps: list[tuple[str, int]]) -> None:
    store, view, born = Store(), PodView(), 0
    answers: list[Callable[[], None]] = []  # on their way: of the moment in which they were asked
    best: dict[str, int] = {}  # newest version of each pod that the view has shown
    buried: set[str] = set()  # pods whose end the view has seen
    for step, which in steps:
        alive = sorted(store.pods)
        victim = alive[which % len(alive)] if alive else None
        match step:
            case "create":
                born += 1
                view.wrote(store.write("ADDED", f"p{born}"))
            case "remove" if victim is not None:
                store.write("DELETED", victim)
                view.removed(RUN, victim)
            case "list":
                view.listed_run(RUN, *store.now())
                assert phases(view) == {uid: item.pod.phase for uid, item in store.pods.items()}
            case "create asked":
                born += 1
                answers.append(partial(view.wrote, store.write("ADDED", f"p{born}")))
            case "remove asked" if victim is not None:
                store.write("DELETED", victim)
                answers.append(partial(view.removed, RUN, victim))
            case "list asked":
                answers.append(partial(view.listed_run, RUN, *store.now()))
            case "all asked":  # by who takes over, while the watch goes on
                answers.append(partial(view.listed, *store.now()))
            case "answered" if answers:
                answers.pop(which % len(answers))()
            case "change" if victim is not None:
                store.write("MODIFIED", victim, "Running")
            case "vanish" if victim is not None:
                store.write("DELETED", victim)
            case "watch" if store.told < len(store.history):
                type, item, version = store.history[store.told]
                store.told += 1
                view.changed(type, item, version)
            case "relist":
                view.listed(*store.now())
                store.told = len(store.history)
        shown = {item.pod.uid: item.version for item in view.of(RUN)}
        assert not buried & shown.keys(), "a pod came back from the dead"
        assert all(shown[uid] >= best.get(uid, 0) for uid in shown), "a pod went back in time"
        buried |= best.keys() - shown.keys()
        best |= shown
    for type, item, version in store.history[store.told :]:
        view.changed(type, item, version)
    for answer in answers:
        answer()
    assert phases(view) == {uid: item.pod.phase for uid, item in store.pods.items()}


def test_nodes_are_told_when_they_are_lost_or_found_and_not_for_heartbeats_or_a_cordon() -> None:
    told: list[str] = []
    view = MachineView(told.append)

    def node(ready: str, heartbeat: str, **spec: bool) -> dict[str, object]:
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:20Z"}
        return {
            "metadata": {"name": "n1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec,
            "status": {"conditions": [condition | {"lastHeartbeatTime": heartbeat}]},
        }

    view.listed([machine(node("True", "a"))], 1)
    view.changed("MODIFIED", machine(node("True", "b")), 2)
    assert told == ["n1"]
    view.changed("MODIFIED", machine(node("Unknown", "c")), 3)
    lost = view.get("n1")
    assert lost is not None
    assert lost.lost_since == datetime(2026, 1, 1, 0, 0, 20, tzinfo=UTC)
    view.changed("MODIFIED", machine(node("True", "d")), 4)
    assert view.get("n1") == machine(node("True", "d"))
    assert told == ["n1"] * 3
    view.changed("MODIFIED", machine(node("True", "e", unschedulable=True)), 5)
    assert told == ["n1"] * 3, "nothing new goes there; what runs there goes on"


def test_a_list_without_a_pod_is_its_end_whatever_the_watch_tells_later() -> None:
    view = PodView()
    view.wrote(seen("a", 10))
    view.listed_run(RUN, [], 20)
    view.changed("ADDED", seen("a", 10), 10)
    assert phases(view) == {}

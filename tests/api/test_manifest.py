"""What a manifest that cannot be used gets: one sentence, or a short list, with the way out."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from everstep_operator.api.manifest import ManifestError, load, parse, sentences
from everstep_operator.api.trainingrun import Status, TrainingRun, refused_changes
from tests.api.objects import CASES

ROOT = Path(__file__).parents[2]
HEAD = "apiVersion: everstep.dev/v1alpha1\nkind: TrainingRun\nmetadata: {name: run}\n"
GOOD = HEAD + "spec: {trainer: {command: [python, train.py]}}\n"


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as error:
        parse(text, "run.yaml")
    return str(error.value)


def load_refusal(path: Path) -> str:
    with pytest.raises(ManifestError) as error:
        load(path)
    return str(error.value)


def test_good_manifest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("---\n" + GOOD + "---\n")  # what `kubectl` writes between documents is no document
    run = load(path)
    assert run.metadata.name == "run"
    assert run.metadata.namespace == "default"
    assert run.spec.trainer.command == ("python", "train.py")


def test_json_is_yaml() -> None:
    text = (
        '{"apiVersion": "everstep.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "j"},'
        ' "spec": {"trainer": {"command": ["a"]}}}'
    )
    assert parse(text, "run.json").metadata.name == "j"


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/**/*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_good(path: Path) -> None:
    load(path)


# --- files ----------------------------------------------------------------------------------------------------------


def test_missing_file_names_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "trainingrun.yaml").write_text(GOOD)
    said = load_refusal(tmp_path / "traningrun.yaml")
    assert said.endswith(f"no such file; did you mean {tmp_path / 'trainingrun.yaml'}?")
    assert load_refusal(tmp_path / "nowhere" / "x.yaml").endswith("no such file")


def test_folder_names_a_manifest_in_it(tmp_path: Path) -> None:
    assert load_refusal(tmp_path) == f"{tmp_path} is a folder: name the manifest itself"
    (tmp_path / "a.yaml").write_text(GOOD)
    assert load_refusal(tmp_path).endswith(f"such as {tmp_path / 'a.yaml'}")


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc\xff\xfe")
    assert load_refusal(path) == f"{path} is not a text file: byte 3 is not UTF-8"


def test_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be read: Not a directory" in load_refusal(tmp_path / "file" / "run.yaml")


# --- YAML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n"])
def test_empty(text: str) -> None:
    assert refusal(text).startswith("run.yaml is empty: a manifest begins with apiVersion: everstep.dev/v1alpha1")


def test_broken_yaml_says_where() -> None:
    assert refusal("a: 1\nb: [1, 2\nc: 3\n").startswith("run.yaml is not YAML: line 3, column 2: ")
    assert "line 2, column 1" in refusal("a: 1\n\tb: 2\n")
    assert refusal("a: \x00").startswith("run.yaml is not YAML: ")


def test_nested_without_end() -> None:
    assert "nested too deeply" in refusal("[" * 20_000)


def test_key_given_twice() -> None:
    said = refusal(HEAD + "spec:\n  numNodes: 2\n  numNodes: 3\n")
    assert said == "run.yaml is not YAML: line 6, column 3: numNodes is given twice"


def test_several_documents() -> None:
    assert refusal(f"{GOOD}---\n{GOOD}").startswith("run.yaml has 2 documents: put each TrainingRun into a file")


def test_tags_of_python_are_not_executed(tmp_path: Path) -> None:
    said = refusal(f"a: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'planted'}]")
    assert "not YAML" in said
    assert not (tmp_path / "planted").exists()


def test_whole_numbers_with_a_point() -> None:
    """kubectl makes JSON's 2 of them, so an API server takes them."""
    text = HEAD + "spec: {numNodes: 2.0, trainer: {command: [a], resources: {limits: {cpu: 4.0}}}}"
    spec = parse(text, "run.yaml").spec
    assert (spec.num_nodes, spec.trainer.resources.limits) == (2, {"cpu": "4"})
    assert "must be a whole number, not 2.5" in refusal(text.replace("2.0", "2.5"))


def test_values_that_json_does_not_have() -> None:
    assert "a value that JSON cannot" in refusal(HEAD + "spec: {trainer: {command: [a]}, numNodes: .inf}")
    assert "must be text" not in refusal(HEAD + "spec: {trainer: {command: [2026-01-01]}, numNodes: 0}"), "as kubectl"


# --- not a TrainingRun ----------------------------------------------------------------------------------------------


def test_other_things() -> None:
    assert refusal("just text") == (
        'run.yaml is not a TrainingRun: it is the text "just text", not a mapping of fields'
    )
    assert refusal("[1]") == "run.yaml is not a TrainingRun: it is a list, not a mapping of fields"
    assert "apiVersion is missing; write apiVersion: everstep.dev/v1alpha1" in refusal("kind: TrainingRun")
    assert "apiVersion is v1, not everstep.dev/v1alpha1" in refusal("apiVersion: v1\nkind: Pod")
    assert "kind is Pod, not TrainingRun" in refusal("apiVersion: everstep.dev/v1alpha1\nkind: Pod")
    assert "kind is missing" in refusal("apiVersion: everstep.dev/v1alpha1\n")


def test_spec_missing_or_empty() -> None:
    assert refusal(HEAD).startswith("run.yaml: spec is missing")
    assert refusal(HEAD + "spec:\n") == "run.yaml: spec must be a mapping of fields, not empty"


def test_metadata() -> None:
    body = "apiVersion: everstep.dev/v1alpha1\nkind: TrainingRun\nspec: {trainer: {command: [a]}}\n"
    assert "metadata is missing" in refusal(body)
    assert "metadata.name is missing" in refusal(body + "metadata: {}\n")
    assert "metadata has no field nam; did you mean name?" in refusal(body + "metadata: {name: a, nam: b}\n")
    assert "metadata.labels.a must be text, not 1: put it in quotes" in refusal(
        body + "metadata: {name: a, labels: {a: 1}}\n"
    )
    legal = body + "metadata: {name: a, finalizers: [x], ownerReferences: [], managedFields: []}\n"
    assert parse(legal, "run.yaml").metadata.name == "a"


def test_status_is_the_operators_and_left_out() -> None:
    """What `kubectl get -o yaml` wrote is a manifest, as for an API server."""
    assert parse(GOOD + "status: {phase: Failed, restarts: 3}\n", "run.yaml").status == Status()


def test_status_that_nobody_understands_is_told_in_our_words() -> None:
    document = yaml.safe_load(GOOD) | {"status": {"phase": "Foo", "startTime": "noon"}}
    with pytest.raises(ValidationError) as error:
        TrainingRun.model_validate(document, by_alias=True, by_name=False)
    phase, time = sentences(error.value)
    assert phase.startswith("status.phase must be 'Pending', 'Starting'")
    assert phase.endswith(', not "Foo"')
    assert time == 'status.startTime must be a time such as 2026-01-31T12:00:00Z, not the text "noon"'


# --- several at once ------------------------------------------------------------------------------------------------


def test_all_mistakes_are_listed() -> None:
    said = refusal(HEAD + "spec: {numNode: 1, suspend: 1, trainer: {comand: [a]}}\n")
    assert said.splitlines()[0] == "run.yaml:"
    assert "  spec has no field numNode; did you mean numNodes?" in said.splitlines()
    assert "  spec.trainer has no field comand; did you mean command?" in said.splitlines()
    assert "  spec.suspend must be true or false, not 1" in said.splitlines()


def test_a_field_by_another_name_is_told_once() -> None:
    said = refusal(HEAD + "spec: {elasticPolicy: {minReplicas: 2, maxReplicas: 4}, trainer: {command: [a]}}\n")
    assert said.splitlines()[1:] == [
        "  spec.elasticPolicy has no field minReplicas; did you mean minNodes?",
        "  spec.elasticPolicy has no field maxReplicas; did you mean maxNodes?",
    ]


def test_a_long_list_ends() -> None:
    fields = ", ".join(f"x{i}: 1" for i in range(30))
    lines = refusal(HEAD + f"spec: {{trainer: {{command: [a]}}, {fields}}}\n").splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  … and 20 more"


def test_no_sentence_is_one_of_pydantic() -> None:
    """Each kind of error that the fields of spec can have has our words."""
    for case in CASES:
        if case.refused is None or case.changed is not None:
            continue
        said = refusal(yaml.safe_dump(case.object))
        assert not re.search(r"Input should|Field required|Extra inputs|pydantic|Value error|\bTuple\b", said), said


def test_readme_changes_the_example_into_one_that_a_cluster_can_run_and_scale() -> None:
    """What `kubectl scale tr/digits --replicas=2` needs is in it."""
    readme = (ROOT / "README.md").read_text()
    (changes,) = [text for text in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if text.startswith("  ")]
    example = yaml.safe_load((ROOT / "examples" / "digits" / "trainingrun.yaml").read_text())
    example["spec"] |= yaml.safe_load(changes)
    run = parse(yaml.safe_dump(example), "digits.yaml")
    assert run.spec.checkpoint is not None
    assert run.spec.checkpoint.credentials_secret == "s3"
    (replicas,) = re.findall(r"kubectl scale tr/digits --replicas=(\d+)", readme)
    example["spec"]["numNodes"] = int(replicas)
    assert refused_changes(run, parse(yaml.safe_dump(example), "digits.yaml")) == []

import json
import os
import stat
import sys

import pytest
import yaml

from helpers import jobset_schema
from var_jax.errors import UserError
from var_jax.sweep import jobset
from var_jax.sweep.backend import RunCommand, make
from var_jax.sweep.jobset import JobSet

# Notes its calls and its standard input, and answers as the test wrote it down for the first
# argument that it knows.
KUBECTL = """#!{python}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
text = "" if sys.stdin.isatty() else sys.stdin.read()
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps([sys.argv[1:], text]) + "\\n")
answers = json.loads((here / "answers.json").read_text())
for key, (code, out, err) in answers.items():
    if all(word in sys.argv for word in key.split()):
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(code)
"""


def command(run="a1b2c3", directory="gs://bucket/sweep/a1b2c3", attempt=1) -> RunCommand:
    return RunCommand(
        run,
        directory,
        (
            sys.executable,
            "-m",
            "var_jax",
            "train",
            "--config",
            "configs/scaling.py:paper",
            "--config.seed=3",
            "--workdir",
            directory,
        ),
        attempt,
        {"FENCE": "a/0001.json"},
    )


TPU = JobSet(
    image="registry/var-jax:1",
    accelerator="tpu-v5-lite-podslice",
    topology="4x4",
    slices=2,
    queue="tpu",
    namespace="ml",
    selector="cloud.google.com/gke-spot=true",
    resources="cpu=8,memory=32Gi",
    service_account="trainer",
    volume="shared:/work",
    restarts=5,
)


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """Puts the stub on PATH; returns (set its answers, the calls so far)."""
    directory = tmp_path / "bin"
    directory.mkdir()
    stub = directory / "kubectl"
    stub.write_text(KUBECTL.format(python=sys.executable))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)

    def answer(**by_words):
        (directory / "answers.json").write_text(json.dumps(by_words))

    def calls():
        file = directory / "calls.jsonl"
        return (
            [tuple(json.loads(line)) for line in file.read_text().splitlines()]
            if file.exists()
            else []
        )

    answer()
    return answer, calls


def test_manifest_is_valid_by_the_schema():
    """The manifests for TPUs, CPUs and GPUs have no problem by JobSet's schema; the test of the
    schema below shows that it finds mistakes."""
    for engine in (
        TPU,
        JobSet(image="var-jax"),
        JobSet(image="var-jax", resources="nvidia.com/gpu=8"),
    ):
        assert jobset_schema.problems(engine.manifest(command())) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), ("statsu", {})),
        (("metadata",), ("label", {"a": "b"})),
        (("spec",), ("maxRestarts", 3)),
        (("spec", "failurePolicy", "rules", 0), ("onJobFailureReason", ["PodFailurePolicy"])),
        (("spec", "failurePolicy", "rules", 0), ("onJobFailureReasons", ["Preempted"])),
        (("spec", "failurePolicy"), ("maxRestarts", "3")),
        (("spec", "replicatedJobs", 0), ("replica", 1)),
        (("spec", "replicatedJobs", 0, "template", "spec"), ("completionMode", "Index")),
        (
            (
                "spec",
                "replicatedJobs",
                0,
                "template",
                "spec",
                "podFailurePolicy",
                "rules",
                0,
                "onExitCodes",
            ),
            ("code", 75),
        ),
        (
            ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"),
            ("gracePeriodSeconds", 3),
        ),
        (
            ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0),
            ("cmd", ["a"]),
        ),
        (
            ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0),
            ("command", "a"),
        ),
        (
            (
                "spec",
                "replicatedJobs",
                0,
                "template",
                "spec",
                "template",
                "spec",
                "volumes",
                1,
                "persistentVolumeClaim",
            ),
            ("claim", "a"),
        ),
    ],
)
def test_schema_refuses_manifests_with_mistakes(path, value):
    """The schema's check is not empty: it reports one misspelled key or one value of a wrong type
    at any depth of a valid manifest."""
    manifest = TPU.manifest(command())
    at = manifest
    for key in path:
        at = at[key]
    at[value[0]] = value[1]
    assert jobset_schema.problems(manifest)


def test_manifest_starts_the_same_command_on_every_host():
    """Each slice is a job with one pod per host, here two slices of four hosts with four chips
    each. Every pod runs the run's own command with its environment, resources, node selector and
    queue."""
    manifest = TPU.manifest(command())
    [replicated] = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    # 16 chips, 4 per host, two slices
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (2, 4, 4)
    [container] = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", *command().argv[1:]]
    assert container["env"] == [
        {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://bucket/sweep/a1b2c3/xla"},
        {"name": "FENCE", "value": "a/0001.json"},
    ]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", "google.com/tpu": "4"}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpu"}


def test_shared_memory_is_mounted_with_and_without_a_volume():
    """A container has 64 MB of it by default, in which batches from worker processes find no
    room."""
    for engine, claims in ((JobSet(image="i"), []), (TPU, [("work", "/work")])):
        pod = engine.manifest(command())["spec"]["replicatedJobs"][0]["template"]["spec"][
            "template"
        ]["spec"]
        mounts = [
            (mount["name"], mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]
        ]
        assert mounts == [("shm", "/dev/shm"), *claims]
        assert pod["volumes"][0] == {"name": "shm", "emptyDir": {"medium": "Memory"}}
        assert [volume["name"] for volume in pod["volumes"]] == [name for name, _ in mounts]


def outcome(manifest: dict, *, exit_code: int = 1, conditions: tuple[str, ...] = ()) -> str:
    """What Kubernetes does when a pod fails, by the rules of Job's podFailurePolicy (first match
    wins, else the backoff limit counts) and JobSet's failurePolicy (first match wins, else
    RestartJobSet)."""
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a podFailurePolicy needs it
    assert job["backoffLimit"] == 0
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if (codes and codes["operator"] == "In" and exit_code in codes["values"]) or any(
            condition["type"] in conditions for condition in rule.get("onPodConditions", ())
        ):
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def test_manifest_restarts_without_limit_after_preemptions_alone():
    """A preempted pod, by exit code 75 or by a disruption, restarts the set without limit, and any
    other failure counts toward `restarts`. `outcome` applies the manifest's rules as Kubernetes
    does."""
    manifest = TPU.manifest(command())
    assert outcome(manifest, exit_code=75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert (
        outcome(manifest, exit_code=137, conditions=("DisruptionTarget",))
        == "RestartJobSetAndIgnoreMaxRestarts"
    )
    assert outcome(manifest, exit_code=1) == outcome(manifest, exit_code=137) == "RestartJobSet"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 5


def test_names_are_labels_that_are_used_once():
    """Six attempts of three runs get six names. Each name is a DNS label, and it has at most 63
    characters with the longest suffix that a pod's name gets."""
    names = {
        jobset.name(command(run, attempt=attempt))
        for run in ("0a1b2c", "x" * 80, "A_b.c")
        for attempt in (1, 12)
    }
    assert len(names) == 6
    for name in names:
        assert jobset.re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
        assert len(f"{name}-train-15-255-abcde") <= 63
    assert jobset.name(command("0a1b2c", attempt=2)) == "var-jax-0a1b2c-2"


def test_submit_checks_all_before_it_creates_one(kubectl):
    """The manifests of both runs are sent to the server as a dry run before a second call creates
    them. Both calls send the same text, and each run gets a job."""
    _, calls = kubectl
    both = [command(), command("d4e5f6", "gs://bucket/sweep/d4e5f6", attempt=2)]
    assert TPU.submit(both) == ["/ml/var-jax-a1b2c3-1", "/ml/var-jax-d4e5f6-2"]
    (check, checked), (apply, applied) = calls()
    assert check == ["--namespace=ml", "apply", "--dry-run=server", "--filename=-"]
    assert apply == ["--namespace=ml", "apply", "--filename=-"]
    assert checked == applied == TPU.render(both)
    assert list(yaml.safe_load_all(applied)) == [TPU.manifest(one) for one in both]


def test_submit_takes_back_what_it_created_when_the_rest_is_refused(kubectl):
    """If the server refuses the manifests after it accepted the dry run, a third call deletes all
    of them, and the error is kubectl's message in one line."""
    answer, calls = kubectl
    answer(
        **{"--dry-run=server": (0, "", ""), "apply": (1, "", "error: quota exceeded\nfor pods\n")}
    )
    with pytest.raises(UserError, match=r"^kubectl apply refuses: error: quota exceeded for pods$"):
        TPU.submit([command()])
    assert [next(word for word in args if not word.startswith("--")) for args, _ in calls()] == [
        "apply",
        "apply",
        "delete",
    ]
    assert "--ignore-not-found" in calls()[-1][0] and calls()[-1][1] == TPU.render([command()])


def test_submit_creates_nothing_when_the_server_refuses_one(kubectl):
    """If the server refuses the dry run, no second call is made, and the error has kubectl's
    message."""
    answer, calls = kubectl
    answer(**{"--dry-run=server": (1, "", 'no matches for kind "JobSet"')})
    with pytest.raises(UserError, match='refuses: no matches for kind "JobSet"'):
        TPU.submit([command()])
    assert len(calls()) == 1


@pytest.mark.parametrize(
    ("answer", "alive"),
    [
        ((0, "var-jax-a1b2c3-1 ", ""), True),
        ((0, "var-jax-a1b2c3-1 Completed", ""), False),
        ((0, "var-jax-a1b2c3-1 Failed", ""), False),
        ((0, "", ""), False),
        ((1, "", "Unable to connect to the server"), None),
    ],
)
def test_alive_follows_the_jobsets_condition(kubectl, answer, alive):
    """A JobSet without a final condition is alive, a completed, failed or missing one is not, and
    an unreachable server gives None. The server is asked in the job's own context and namespace,
    whatever the engine's options."""
    set_answer, calls = kubectl
    set_answer(get=answer)
    assert JobSet(image="other").alive("east/ml/var-jax-a1b2c3-1") is alive
    [(args, _)] = calls()
    assert args[:5] == [
        "--context=east",
        "--namespace=ml",
        "get",
        "jobsets.jobset.x-k8s.io",
        "var-jax-a1b2c3-1",
    ]


def test_stop_deletes_the_jobset(kubectl):
    """The JobSet is deleted by its name in its namespace; kubectl does not wait for its pods, and a
    JobSet that is gone is no error."""
    _, calls = kubectl
    TPU.stop("/ml/var-jax-a1b2c3-1")
    assert calls()[0][0] == [
        "--namespace=ml",
        "delete",
        "jobsets.jobset.x-k8s.io",
        "var-jax-a1b2c3-1",
        "--ignore-not-found",
        "--wait=false",
    ]


def test_submit_names_kubectl_where_it_is_missing(monkeypatch, tmp_path):
    """Without kubectl nothing can be submitted, and the error names kubectl. `alive` gives None,
    `stop` raises nothing, and `render`, which `--dry-run` uses, works."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="kubectl, which is not on PATH"):
        TPU.submit([command()])
    assert TPU.alive("/ml/x") is None
    TPU.stop("/ml/x")
    assert TPU.render([command()])  # --dry-run needs no cluster


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs --option image=IMAGE"),
        ({"image": "i", "topology": "4x4"}, "go together"),
        (
            {"image": "i", "slices": "2"},
            "slices=2: slices are of TPUs; give --option accelerator and --option topology",
        ),
        ({"image": "i", "accelerator": "a", "topology": "4by4"}, "like 4x4"),
        ({"image": "i", "accelerator": "a", "topology": "3x3"}, "whole hosts of 4 chips"),
        ({"image": "i", "volume": "/work"}, "CLAIM:/PATH"),
        ({"image": "i", "selector": "spot"}, "'spot' is not KEY=VALUE"),
        ({"image": "i", "chips": "0"}, "at least 1"),
        ({"image": "i", "chips": "four"}, "whole number"),
        ({"image": "i", "topolgy": "4x4"}, "did you mean 'topology'"),
    ],
)
def test_make_names_mistakes_in_options(options, message):
    """A wrong option is refused in one line that names the option and the right value."""
    with pytest.raises(UserError, match=message) as caught:
        make("jobset", options)
    assert "\n" not in str(caught.value)


def test_check_refuses_a_volume_that_is_not_mounted_here(tmp_path):
    """A sweep's directory on the mounted volume or in a bucket passes. A volume that is not mounted
    at the same path on this machine is refused, and so is a directory outside it; nothing is
    created."""
    engine = JobSet(image="i", volume=f"shared:{tmp_path}")
    engine.check(f"{tmp_path}/sweep")
    engine.check("gs://bucket/sweep")
    with pytest.raises(UserError, match="there is no directory .*/gone here.*at the same path"):
        JobSet(image="i", volume=f"shared:{tmp_path}/gone").check(f"{tmp_path}/gone/sweep")
    with pytest.raises(UserError, match="no pod of the cluster could write elsewhere"):
        engine.check("elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_render_refuses_a_directory_that_no_pod_could_write():
    """A run's directory on the pods' volume is accepted, and a relative path, which is outside it,
    is refused."""
    with pytest.raises(UserError, match="no pod of the cluster could write runs/a"):
        TPU.render([command(directory="runs/a")])
    assert TPU.render([command(directory="/work/runs/a")])

"""The engine `jobset`, which applies each run to a Kubernetes cluster as a JobSet by kubectl.

The API is jobset.x-k8s.io/v1alpha2. On GKE a JobSet of TPU hosts forms one JAX process group by
itself. Exit code 75 and the loss of a node restart the set without limit; other failures restart it
up to `restarts` times.
"""

import dataclasses
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml

from var_jax.errors import PREEMPTED_EXIT_CODE, UserError
from var_jax.sweep.backend import RunCommand, shared_programs

KUBECTL_SECONDS = 120  # time limit of one call
NAME_LENGTH = 40  # a pod's name, NAME-train-SLICE-HOST and a suffix, may have 63 characters


@dataclasses.dataclass(frozen=True)
class JobSet:
    """Starts each attempt as a JobSet named after the run and the attempt.

    The image holds this package, and the config at the path of the command relative to the image's
    working directory. The sweep's directory is in a bucket or on a volume. Job ids are
    CONTEXT/NAMESPACE/NAME.

    Attributes:
      image: container image; required.
      namespace, context: those of kubectl; "" for its current ones.
      queue: local queue of Kueue, where Kueue admits jobs.
      accelerator: GKE's name of the TPU, such as tpu-v5-lite-podslice; "" for nodes without TPUs.
      topology: topology of a slice, such as 4x4, which determines the number of hosts.
      chips: number of chips per host.
      slices: number of slices per run, joined by the data-center network.
      selector: additional node labels, such as "cloud.google.com/gke-spot=true".
      resources: additional resources per host, such as "cpu=8,memory=32Gi,nvidia.com/gpu=8".
      service_account: Kubernetes service account with write access to the bucket.
      volume: CLAIM:PATH mounts a persistent volume claim.
      python: the image's Python interpreter.
      restarts: number of restarts after failures other than preemptions.
      save_seconds: seconds between SIGTERM and SIGKILL.
    """

    max_live_runs: ClassVar[int] = 0
    may_wait: ClassVar[bool] = True

    image: str = ""
    namespace: str = ""
    context: str = ""
    queue: str = ""
    accelerator: str = ""
    topology: str = ""
    chips: int = 4
    slices: int = 1
    selector: str = ""
    resources: str = ""
    service_account: str = ""
    volume: str = ""
    python: str = "python"
    restarts: int = 3
    save_seconds: int = 120

    def __post_init__(self):
        if not self.image:
            raise UserError(
                "backend jobset needs --option image=IMAGE, a container image with this package "
                "installed"
            )
        for name, least in (("chips", 1), ("slices", 1), ("restarts", 0), ("save_seconds", 0)):
            if getattr(self, name) < least:
                raise UserError(
                    f"--option {name}={getattr(self, name)}: it must be at least {least}"
                )
        if self.slices > 1 and not self.topology:
            raise UserError(
                f"--option slices={self.slices}: slices are of TPUs; give --option accelerator and "
                "--option topology too, or leave slices out"
            )
        if bool(self.accelerator) != bool(self.topology):
            raise UserError(
                "--option accelerator and --option topology go together, such as "
                "accelerator=tpu-v5-lite-podslice and topology=4x4"
            )
        if self.topology and (
            not re.fullmatch(r"\d+(x\d+)+", self.topology) or self._slice_chips % self.hosts
        ):
            raise UserError(
                f"--option topology={self.topology}: it must be like 4x4, in whole hosts of "
                f"{self.chips} chips"
            )
        if self.volume and not re.fullmatch(r"[a-z0-9.-]+:/.+", self.volume):
            raise UserError(f"--option volume={self.volume}: it must be CLAIM:/PATH")
        _pairs("selector", self.selector)
        _pairs("resources", self.resources)

    @property
    def hosts(self) -> int:
        """Number of hosts per slice."""
        return max(1, self._slice_chips // self.chips) if self.topology else 1

    @property
    def _slice_chips(self) -> int:
        return math.prod(map(int, self.topology.split("x")))

    def check(self, workdir: str) -> None:
        self._require_reachable(workdir)
        mount = self.volume.partition(":")[2]
        if "://" not in workdir and not Path(mount).is_dir():
            raise UserError(
                f"there is no directory {mount} here, where the runs' files have to be read; mount "
                f"the volume of --option volume={self.volume} at the same path, or give a bucket "
                "as --workdir"
            )

    def submit(self, commands: Sequence[RunCommand]) -> list[str]:
        if not commands:
            return []
        manifests = self.render(commands)
        # All or none: the server checks every manifest before any is created, and if creation fails
        # after all, the created objects are deleted.
        self._kubectl("apply", "--dry-run=server", "--filename=-", text=manifests)
        try:
            self._kubectl("apply", "--filename=-", text=manifests)
        except UserError:
            self._call(
                "delete", "--ignore-not-found", "--wait=false", "--filename=-", text=manifests
            )
            raise
        return [f"{self.context}/{self.namespace}/{name(command)}" for command in commands]

    def alive(self, job: str) -> bool | None:
        result = _jobset_for(job)._call(
            "get",
            "jobsets.jobset.x-k8s.io",
            job.rpartition("/")[2],
            "--ignore-not-found",
            "--output=jsonpath={.metadata.name} {.status.terminalState}",
        )
        if result is None or result.returncode:
            return None
        words = result.stdout.split()
        return len(words) == 1  # none: deleted; two: completed or failed

    def stop(self, job: str) -> None:
        """Deletes the JobSet: its pods get SIGTERM, and `save_seconds` later SIGKILL."""
        _jobset_for(job)._call(
            "delete",
            "jobsets.jobset.x-k8s.io",
            job.rpartition("/")[2],
            "--ignore-not-found",
            "--wait=false",
        )

    def render(self, commands: Sequence[RunCommand]) -> str:
        return yaml.safe_dump_all(
            [self.manifest(command) for command in commands], sort_keys=False, width=1000
        )

    def manifest(self, command: RunCommand) -> dict[str, Any]:
        """Returns the JobSet of one attempt at a run.

        Raises:
          UserError: the run's directory is neither in a bucket nor on the volume.
        """
        self._require_reachable(command.directory)
        metadata: dict[str, Any] = {"name": name(command)}
        if self.namespace:
            metadata["namespace"] = self.namespace
        if self.queue:
            metadata["labels"] = {"kueue.x-k8s.io/queue-name": self.queue}
        if self.topology:
            metadata["annotations"] = {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            }
        job = {
            "parallelism": self.hosts,
            "completions": self.hosts,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            # Both rules fail the job at once, with a reason that the set's failure policy matches.
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"operator": "In", "values": [PREEMPTED_EXIT_CODE]},
                    },
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                ]
            },
            "template": {"spec": self._pod(command)},
        }
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "failurePolicy": {
                    "maxRestarts": self.restarts,
                    "rules": [
                        {
                            "name": "preempted",
                            "action": "RestartJobSetAndIgnoreMaxRestarts",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                        }
                    ],
                },
                "replicatedJobs": [
                    {"name": "train", "replicas": self.slices, "template": {"spec": job}}
                ],
            },
        }

    def _pod(self, command: RunCommand) -> dict[str, Any]:
        resources = _pairs("resources", self.resources) | (
            {"google.com/tpu": str(self.chips)} if self.topology else {}
        )
        selector = (
            {
                "cloud.google.com/gke-tpu-accelerator": self.accelerator,
                "cloud.google.com/gke-tpu-topology": self.topology,
            }
            if self.topology
            else {}
        )
        selector |= _pairs("selector", self.selector)
        claim, _, mount = self.volume.partition(":")
        container: dict[str, Any] = {
            "name": "train",
            "image": self.image,
            "command": [self.python, *command.argv[1:]],
        }
        environment = {**shared_programs(command.directory), **command.environment}
        container["env"] = [{"name": key, "value": value} for key, value in environment.items()]
        if resources:
            container["resources"] = {"requests": resources, "limits": resources}
        # Processes that decode images pass them on in shared memory; a container has only 64 MB of
        # it by default.
        container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
        volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        if claim:
            container["volumeMounts"].append({"name": "work", "mountPath": mount})
            volumes.append({"name": "work", "persistentVolumeClaim": {"claimName": claim}})
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.save_seconds,
        }
        if self.service_account:
            pod["serviceAccountName"] = self.service_account
        if selector:
            pod["nodeSelector"] = selector
        return {**pod, "containers": [container], "volumes": volumes}

    def _require_reachable(self, directory: str):
        mount = self.volume.partition(":")[2]
        if "://" not in directory and not (
            mount and PurePosixPath(directory).is_relative_to(mount)
        ):
            raise UserError(
                f"no pod of the cluster could write {directory}; give a bucket as --workdir, or "
                "a path on a volume that --option volume=CLAIM:/PATH mounts"
            )

    def _kubectl(self, *args: str, text: str):
        """Calls kubectl, and raises UserError if it fails or does not answer."""
        result = self._call(*args, text=text)
        if result is None:
            raise UserError(
                f"kubectl does not answer within {KUBECTL_SECONDS} s; is the cluster there?"
                if shutil.which("kubectl")
                else "backend jobset needs kubectl, which is not on PATH; install it and log in "
                "to the cluster"
            )
        if result.returncode:
            raise UserError(
                f"kubectl {args[0]} refuses: {' '.join(result.stderr.split()) or result.returncode}"
            )

    def _call(self, *args: str, text: str = "") -> subprocess.CompletedProcess[str] | None:
        """Calls kubectl; returns None if it does not answer."""
        flags = [
            f"--{option}={value}"
            for option, value in (("context", self.context), ("namespace", self.namespace))
            if value
        ]
        try:
            return subprocess.run(
                ["kubectl", *flags, *args],
                input=text,
                capture_output=True,
                text=True,
                timeout=KUBECTL_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None


def name(command: RunCommand) -> str:
    """Returns the unique name of an attempt's JobSet, a DNS label."""
    run = re.sub(r"[^a-z0-9]+", "-", command.run.lower()).strip("-")
    suffix = f"-{command.attempt}"
    return f"var-jax-{run}"[: NAME_LENGTH - len(suffix)].rstrip("-") + suffix


def _jobset_for(job: str) -> JobSet:
    """Returns an engine for the context and namespace of a job, independent of other options."""
    context, namespace, _ = job.rsplit("/", 2)
    return JobSet(image="-", context=context, namespace=namespace)


def _pairs(option: str, text: str) -> dict[str, str]:
    pairs = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UserError(f"--option {option}={text}: {part!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs

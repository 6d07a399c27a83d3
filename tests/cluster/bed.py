"""A test bed: Slurm with two nodes, or two machines for a Ray cluster, as network namespaces on this machine. Root.

    python tests/cluster/bed.py up      # then: export SLURM_CONF=/tmp/xinv-bed/slurm.conf; sinfo
    python tests/cluster/bed.py down

The nodes have an address, a host name and daemons each; files, processes and memory they have in common.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))  # this file is run by hand too
from marks import marked

FOLDER = Path("/tmp/xinv-bed")
BRIDGE = "xinvbr"
HOST = "10.77.0.254"
NODES = {"n1": "10.77.0.1", "n2": "10.77.0.2"}
PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
CPUS = 2
MEMORY = 8000  # MB a node: more than it gets, so that two jobs fit

CONFIG = """\
ClusterName=xinvbed
SlurmctldHost={host}({address})
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=15
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
DefMemPerNode=1000
MpiDefault=none
ReturnToService=2
SlurmdTimeout=120
SlurmctldTimeout=60
KillWait=30
{nodes}
PartitionName=work Nodes=n1,n2 Default=YES MaxTime=60 State=UP
PartitionName=short Nodes=n1 MaxTime=5 State=UP
"""


def unfit() -> str | None:
    """Why no bed can stand here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the test bed needs Linux and root (network namespaces, slurmd)"
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    return f"the test bed needs {', '.join(missing)} (packages iproute2, util-linux)" if missing else None


def install() -> None:
    """Slurm and munge by apt, where they are missing."""
    missing = sorted({package for name, package in PACKAGES.items() if shutil.which(name) is None})
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run("apt-get", "update", "-qq", env=environment)
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=environment)


# --------------------------------------------------------------------------------------------------------- the network


def inside(node: str, command: Sequence[str | Path]) -> list[str]:
    """The command line that runs `command` on a node, under its host name.

    Not `ip netns exec`: that mounts /sys again, and slurmd then dies for want of cgroups.
    """
    within = ["sh", "-c", 'hostname "$0" && exec "$@"', node, *map(str, command)]
    return ["nsenter", f"--net=/run/netns/{_space(node)}", "unshare", "--uts", *within]


def network_up() -> None:
    """A namespace for each node, on a bridge that this machine is on too."""
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "address", "add", f"{HOST}/24", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")
    for node, address in NODES.items():
        _run("ip", "netns", "add", _space(node))
        _run("ip", "link", "add", _cable(node), "type", "veth", "peer", "name", "eth0", "netns", _space(node))
        _run("ip", "link", "set", _cable(node), "master", BRIDGE, "up")
        for words in (f"address add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run("ip", "-n", _space(node), *words.split())
        # It leads nowhere. Ray looks for its own address by a route to the outside, else by its host's name, which does
        # not resolve here: each of its programs would wait ten seconds for a name server.
        _route(node)


def _route(node: str) -> None:
    _run("ip", "-n", _space(node), "route", "replace", "default", "via", HOST)


def network_down() -> None:
    """Remove it; nothing where there is none."""
    for node in NODES:
        for words in (f"netns delete {_space(node)}", f"link delete {_cable(node)}"):
            subprocess.run(["ip", *words.split()], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


def partition(node: str, cut: bool = True) -> None:
    """Pull a node's cable, or put it back."""
    _run("ip", "link", "set", _cable(node), "down" if cut else "up")


def _space(node: str) -> str:
    return f"xinv-{node}"


def _cable(node: str) -> str:
    return f"xinv-{node}-host"


def _run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return str(done.stdout)


# ------------------------------------------------------------------------------------------------------------ processes


@dataclass(frozen=True)
class Daemons:
    """Processes that outlive the program that started them; a file says which they are."""

    record: Path

    def start(self, name: str, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
        with (self.record.parent / f"{name}.out").open("ab") as sink:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, start_new_session=True,
            )  # fmt: skip
        known = self._read()
        known[name] = [process.pid, psutil.Process(process.pid).create_time()]
        self.record.write_text(json.dumps(known))

    def alive(self) -> dict[str, psutil.Process]:
        """Those that live, by name. A number that another process has now is not one of them."""
        found = {}
        for name, (pid, created) in self._read().items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                    found[name] = process
        return found

    def stop(self, *names: str) -> None:
        """End some, or all, and whatever they have started."""
        ending = {name: process for name, process in self.alive().items() if not names or name in names}
        family = [*ending.values(), *(child for process in ending.values() for child in _children(process))]
        for signum, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signum)
            family = psutil.wait_procs(family, timeout=seconds)[1]

    def _read(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = json.loads(self.record.read_text()) if self.record.exists() else {}
        return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


# ---------------------------------------------------------------------------------------------------------------- Slurm


def daemons() -> Daemons:
    return Daemons(FOLDER / "daemons.json")


def environment() -> dict[str, str]:
    """What Slurm's commands need to find this cluster."""
    return {**os.environ, "SLURM_CONF": str(FOLDER / "slurm.conf")}


def slurm(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands."""
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)


def is_up() -> bool:
    return {"munged", "slurmctld", *NODES} <= daemons().alive().keys()


def up() -> None:
    """Start everything; returns once both nodes are idle. RuntimeError where that does not happen."""
    if reason := unfit():
        raise RuntimeError(reason)
    install()
    down()
    for part in ("", "state", "munge", *(f"spool-{node}" for node in NODES)):
        (FOLDER / part).mkdir(mode=0o755, parents=True)
    network_up()
    _start_munge()
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={node} NodeAddr={address} Port=17001 CPUs={CPUS} RealMemory={MEMORY}"
        for node, address in NODES.items()
    )
    text = CONFIG.format(host=os.uname().nodename, address=HOST, folder=FOLDER, nodes=nodes)
    (FOLDER / "slurm.conf").write_text(text)
    start_controller()
    for node in NODES:
        start_node(node)
    wait_idle()


def start_controller() -> None:
    daemons().start("slurmctld", ["slurmctld", "-D", "-f", FOLDER / "slurm.conf"])


def start_node(node: str) -> None:
    daemons().start(node, inside(node, ["slurmd", "-D", "-N", node, "-f", FOLDER / "slurm.conf"]))


def down() -> None:
    """End and remove whatever `up` and the jobs on the bed have left, of this or an earlier program."""
    if FOLDER.exists():
        if is_up():
            slurm("scancel", "--user=root")
            time.sleep(1)
        daemons().stop()
        for pid in set(marked(f"SLURM_CONF={FOLDER / 'slurm.conf'}")) - _own_line():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(FOLDER)
    network_down()


def _own_line() -> set[int]:
    own = psutil.Process()
    return {own.pid, *(parent.pid for parent in own.parents())}


def heal() -> None:
    """Put every cable back, and what Slurm thinks of the nodes."""
    for node in NODES:
        partition(node, cut=False)
        _run("ip", "-n", _space(node), "link", "set", "eth0", "up")
        _route(node)  # gone with the link
    deadline = time.monotonic() + 90
    while "idle" not in slurm("sinfo", "-h", "-N", "-n", "n2", "-o", "%T").stdout or "*" in slurm("sinfo", "-h").stdout:
        if time.monotonic() > deadline:
            break
        for node in NODES:
            slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
        time.sleep(1)
    wait_idle()


def wait_idle(seconds: float = 60) -> None:
    """Until both nodes are idle. RuntimeError, with the end of the logs, where they are not."""
    deadline = time.monotonic() + seconds
    seen = ""
    while time.monotonic() < deadline:
        done = slurm("sinfo", "-h", "-N", "-p", "work", "-o", "%N %T")
        seen = done.stdout or done.stderr
        if sorted(done.stdout.split("\n")) == ["", *(f"{node} idle" for node in NODES)]:
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text()[-800:] for path in FOLDER.glob("*.log"))
    raise RuntimeError(f"The nodes are not idle after {seconds:.0f} s: {seen}\n{logs}")


def _start_munge() -> None:
    folder = FOLDER / "munge"
    key = folder / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    files = {name: folder / name for name in ("socket", "pid-file", "log-file", "seed-file")}
    options = [f"--{name}={path}" for name, path in files.items()]
    daemons().start("munged", ["munged", "--foreground", "--force", f"--key-file={key}", *options])
    deadline = time.monotonic() + 20
    while not files["socket"].exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"munged did not start: {(FOLDER / 'munged.out').read_text()[-500:]}")
        time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------------------ Ray


@dataclass(frozen=True)
class RayCluster:
    """Two machines with Ray, started by hand."""

    dashboard: str  # http://host:port
    address: str  # host:port of the GCS
    token: str
    processes: Daemons

    def kill(self, node: str) -> None:
        """End everything of one machine without a warning."""
        process = self.processes.alive()[node]
        for member in [*_children(process), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


@contextlib.contextmanager
def ray_cluster(cpus: int = 2, environment: dict[str, str] | None = None) -> Iterator[RayCluster]:
    """A Ray cluster of both nodes, with a token; ended with all that ran on it. Makes the network where there is none.

    Args:
        cpus: that each node offers.
        environment: of Ray's daemons, and so of the workers.
    """
    made = not Path(f"/run/netns/{_space('n1')}").exists()
    folder = Path(f"/tmp/xinv-ray-{os.getpid()}")
    folder.mkdir(mode=0o700)
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    processes = Daemons(folder / "daemons.json")
    mark = f"XINV_BED={folder}"
    base = {
        **os.environ, **(environment or {}), "XINV_BED": str(folder), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "GLOO_SOCKET_IFNAME": "eth0",
        "SPT_NOENV": "1", "TMPDIR": str(folder), "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }  # fmt: skip
    ray = Path(sys.executable).with_name("ray")
    common = ["--block", "--disable-usage-stats", f"--num-cpus={cpus}", f"--object-store-memory={200 << 20}"]
    address = f"{NODES['n1']}:6379"
    try:
        if made:
            network_down()
            network_up()
        head = ["--head", "--port=6379", f"--node-ip-address={NODES['n1']}", "--include-dashboard=true"]
        head += [f"--dashboard-host={NODES['n1']}", "--dashboard-port=8265", f"--temp-dir={folder / 'n1'}"]
        processes.start("n1", inside("n1", [ray, "start", *head, *common]), base)
        _wait_for_ray(folder / "n1.out")
        worker = [f"--address={address}", f"--node-ip-address={NODES['n2']}", f"--temp-dir={folder / 'n2'}"]
        processes.start("n2", inside("n2", [ray, "start", *worker, *common]), base)
        _wait_for_ray(folder / "n2.out")
        yield RayCluster(f"http://{NODES['n1']}:8265", address, token, processes)
    finally:
        processes.stop()
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            network_down()


def _wait_for_ray(output: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while "Ray runtime started" not in output.read_text():
        if time.monotonic() > deadline:
            raise RuntimeError(f"Ray did not start within {seconds:.0f} s: {output.read_text()[-800:]}")
        time.sleep(0.3)


if __name__ == "__main__":
    verbs = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit(f"{__doc__}")
    if trouble := unfit():
        sys.exit(trouble)
    verbs[sys.argv[1]]()

"""What is so at the user's site, for every job: partitions, accounts, images. Not in the experiment's configuration,
which is the same everywhere."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from launch.ray_client import RaySite
from launch.rayjob import KubernetesSite
from launch.slurm import SlurmSite
from xinv.mistakes import checked
from xinv.overrides import load_yaml


class Site(BaseModel):
    """The site file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of every job, such as NCCL_SOCKET_IFNAME: ib0"
    )
    ray: RaySite = Field(default_factory=RaySite, description="for Ray clusters, --on http://... or ray://...")
    slurm: SlurmSite = Field(default_factory=SlurmSite, description="for --on slurm")
    kubernetes: KubernetesSite = Field(default_factory=KubernetesSite, description="for --on kubernetes")


def site_path() -> Path:
    """Where the user's site file is: XINV_SITE, else xinv/site.yaml in the folder of the user's settings."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("XINV_SITE") or home / "xinv" / "site.yaml")


def load_site(path: Path | None = None) -> Site:
    """The site file at `path`, or the user's own; the defaults where the user has none.

    Raises:
        InputError: a file that was named is missing; or it does not validate.
    """
    file = path or site_path()
    if not file.exists() and path is None and "XINV_SITE" not in os.environ:
        return Site()
    return checked(Site, load_yaml(file), str(file))

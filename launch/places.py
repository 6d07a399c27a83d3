"""The places where jobs run, by the names that `--on` takes."""

from collections.abc import Callable

from launch.backend import Backend
from launch.kubernetes import Kubernetes
from launch.local import Local
from launch.ray_jobs import RayJobs
from launch.site import Site
from launch.slurm import Slurm
from xinv.errors import InputError

PLACES: dict[str, Callable[[Site], Backend]] = {
    "local": lambda site: Local(),
    "slurm": lambda site: Slurm(site.slurm),
    "kubernetes": lambda site: Kubernetes(site.kubernetes),
}
"""Name -> the backend, made from the site file."""

RAY = ("http://", "https://", "ray://")
"""How the address of a Ray cluster begins, which is a place's name too."""


def place_of(on: str, site: Site) -> Backend:
    """The backend of a place. InputError, with the known ones, for a name that is none."""
    if on in PLACES:
        return PLACES[on](site)
    if on.startswith(RAY):
        return RayJobs(site.ray, on)
    known = ", ".join([*PLACES, *(f"{start}HOST" for start in RAY)])
    raise InputError(f"There is no place called {on!r}; known are {known}.")

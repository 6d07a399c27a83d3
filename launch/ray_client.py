"""The connection to a Ray cluster's dashboard: within limits of time, with the site's token, in the user's words.

Ray's own client waits for ever, sends jobs wherever RAY_ADDRESS points, and tells a wrong token, a proxy and a dead
host apart only by the classes of its exceptions.
"""

import contextlib
import functools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from xinv.errors import InputError, WorkError
from xinv.parallel import MADE, secure

CONNECT, ANSWER, UPLOAD, LEARN = 10.0, 60.0, 900.0, 60.0
"""Seconds for a connection, an answer, sending a package, and for learning a dashboard's address from ray://."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class SilentError(InputError):
    """Nobody answers. It may be the network, for a moment."""


class RaySite(BaseModel):
    """Section `ray` of the site file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: Path | None = Field(
        None, description="file with the cluster's token, where RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH name none"
    )
    gpu_memory: str | None = Field(
        None, description="memory of a GPU there, such as 80GiB: a job whose trainings cannot fit is not sent"
    )
    headers: dict[str, str] = Field(default_factory=dict, description="HTTP headers for a proxy before the dashboard")
    verify: bool | Path = Field(True, description="certificates of https: checked; by this file or folder; false: not")
    python: str = Field("python", description="interpreter on the head node; python: the first on the path of its Ray")
    exclude: tuple[str, ...] = Field((), description="files that are not packed, such as data/* or *.bin")
    package: int = Field(100, ge=1, le=500, description="MiB of code at most; Ray itself takes 500")


def checked_address(on: str) -> str:
    """The address as `--on` gives it. InputError where it names no host, or holds a password."""
    parts = urlsplit(on)
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "An address with a user name or password in it would be recorded with the job. Put what a proxy wants into "
            "the site file (ray: {headers: {Authorization: ...}})."
        )
    try:
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        named = False
    if not named or parts.query or parts.fragment:
        raise InputError(f"{on!r} is no address of a Ray cluster; expected http://HOST:8265 or ray://HOST:10001.")
    return on.rstrip("/")


def token_of(site: RaySite) -> str | None:
    """The cluster's token: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, the site's file, ~/.ray/auth_token; or None.

    Raises:
        InputError: a file that is named does not exist, or cannot be read.
    """
    found = os.environ.get("RAY_AUTH_TOKEN")
    if found and found not in MADE:
        return found.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH") or site.token
    path = Path(named or Path.home() / ".ray" / "auth_token").expanduser()
    if named is None and not path.exists():
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise InputError(
            f"The token of the Ray cluster is to be in {path}, which cannot be read ({error.strerror})."
        ) from None


def client(on: str, site: RaySite) -> Any:
    """Ray's JobSubmissionClient for the cluster at `on`, connected.

    Raises:
        InputError: nobody answers, or something that is no Ray; the token is missing or wrong.
    """
    token = token_of(site)
    address = dashboard_of(on, token) if on.startswith("ray://") else on
    make, refusal = _client_class(address, token is not None)
    verify = site.verify if isinstance(site.verify, bool) else str(site.verify.expanduser())
    try:
        with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # both would come before the address here
            return make(address, headers={**site.headers, **_authorization(token, site)}, verify=verify)
    except InputError:
        raise
    except refusal as error:  # Ray found no token of its own
        raise InputError(_refused(address, token is not None, str(error))) from None
    except FileNotFoundError as error:
        raise InputError(f"ray.verify of the site file: {error}") from None
    except (RuntimeError, OSError, ValueError, LookupError, TypeError) as error:  # an answer, but not a dashboard's
        raise InputError(
            f"What answers at {address} is no dashboard of Ray ({_cause(error)}). Check the address; the dashboard's "
            "port is 8265 unless Ray was told another."
        ) from None


def _authorization(token: str | None, site: RaySite) -> dict[str, str]:
    if token is None:
        return {}
    # A proxy's own Authorization goes first; Ray reads the other header too.
    taken = any(name.lower() == "authorization" for name in site.headers)
    return {"X-Ray-Authorization" if taken else "Authorization": f"Bearer {token}"}


def _client_class(address: str, with_token: bool) -> tuple[Any, type[Exception]]:
    """The client, made when it is wanted: Ray is slow to import. And what it raises where there is no token."""
    if "ray" not in sys.modules:
        secure()
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):  # they talk of every package and every connection
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        """With a time limit for every request, and errors that say what to do."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            wait = (UPLOAD, UPLOAD) if method == "PUT" else (CONNECT, ANSWER)
            try:
                return super()._do_request(method, endpoint, timeout=wait, **options)
            except AuthenticationError as error:
                raise InputError(_refused(address, with_token, str(error))) from None
            except requests.exceptions.SSLError as error:
                raise InputError(
                    f"No safe connection to {address} ({_cause(error)}). A certificate of your site's own authority "
                    "holds with ray: {verify: /path/to/ca.pem} in the site file; a dashboard without TLS is http://..."
                ) from None
            except requests.exceptions.Timeout:
                raise SilentError(
                    f"{address} does not answer in time. Does that host run the head of a Ray cluster, and does "
                    "no firewall stand between?"
                ) from None
            except requests.exceptions.RequestException as error:
                raise SilentError(
                    f"No Ray cluster answers at {address} ({_cause(error)}). Is it up, is the address that of its "
                    "dashboard (port 8265), and does the dashboard listen for other machines (ray start --head "
                    "--dashboard-host=0.0.0.0)? See cluster/RAY.md."
                ) from None

    return Client, AuthenticationError


def _refused(address: str, with_token: bool, said: str) -> str:
    if not with_token:
        return (
            f"{address} wants a token, and there is none here. Put the cluster's own into RAY_AUTH_TOKEN, its file's "
            "name into RAY_AUTH_TOKEN_PATH, or that into the site file (ray: {token: FILE})."
        )
    reason = said.splitlines()[0].removeprefix("Authentication failed: ").removeprefix("Authentication required: ")
    return (
        f"{address} refuses the token ({reason:.200}). It takes the one that its head was started with: compare "
        "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ray.token of the site file. A proxy in between may refuse, or drop "
        "the header: see ray.headers of the site file."
    )


SIGNS = (
    "Connection refused", "Name or service not known", "Temporary failure in name resolution", "No route to host",
    "Network is unreachable", "Connection reset", "certificate verify failed", "wrong version number",
)  # fmt: skip
"""Reasons, deep in nested messages."""


def _cause(error: BaseException) -> str:
    """The innermost reason, in a line."""
    text = str(error)
    found = next((sign for sign in SIGNS if sign in text), None)
    if found is not None:
        return found
    return text.splitlines()[0][:200] if text else type(error).__name__


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Environment variables set aside."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


LEARNING = "import sys, ray; print(ray.init(sys.argv[1], logging_level='ERROR').dashboard_url)"
"""A program of its own: the client behind ray:// stays connected, and may never answer."""


@functools.cache
def dashboard_of(on: str, token: str | None) -> str:
    """The dashboard's address, as the cluster at ray://... tells it.

    Raises:
        InputError: it does not answer, refuses the token, or its dashboard listens on its own machine alone.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    advice = f"Name the dashboard itself: --on http://{urlsplit(on).hostname}:8265."
    try:
        done = subprocess.run(
            [sys.executable, "-c", LEARNING, on],
            capture_output=True, text=True, timeout=LEARN, check=False, env={**kept, **secret},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"{on} did not tell the address of its dashboard within {LEARN:.0f} s. {advice}") from None
    if done.returncode != 0 or not done.stdout.strip():
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{on} did not tell the address of its dashboard ({reason:.300}). {advice}")
    found = done.stdout.strip().splitlines()[-1]
    if urlsplit(f"//{found}").hostname in LOOPBACK and urlsplit(on).hostname not in LOOPBACK:
        raise InputError(
            f"The dashboard of {on} listens on its own machine alone ({found}). Have it listen for others (ray start "
            "--head --dashboard-host=0.0.0.0), or tunnel: ssh -L 8265:127.0.0.1:8265 HEAD, then --on "
            "http://127.0.0.1:8265."
        )
    return f"http://{found}"


def asked(connection: Any, endpoint: str) -> Any:
    """What the dashboard says at an endpoint that Ray's client has no method for. WorkError where it says nothing."""
    answer = connection._do_request("GET", endpoint)
    try:
        answer.raise_for_status()
        return answer.json()
    except (OSError, ValueError) as error:
        raise WorkError(f"The dashboard does not answer {endpoint} ({_cause(error)}).") from None

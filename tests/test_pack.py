"""What of a working tree is packed, what is not, and what is refused."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from launch.pack import is_secret, tree_of, write_zip
from xinv.errors import InputError

CODE = ("model.py", "package/__init__.py", "package/layers.py", "package/words.json", "configs/mine.yaml")
APART = ("runs/demo/scores.json", "wandb/run/output.log", "data/faces/1.png", "package/__pycache__/layers.cpython.pyc")
SECRETS = (".env", "keys/server.pem", "hf_token", "deploy/credentials.json", ".aws/config", "id_ed25519", ".netrc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project's folder, no git checkout."""
    root = tmp_path / "project"
    for name in (
        *CODE,
        *APART,
        *SECRETS,
        ".venv/pyvenv.cfg",
        ".venv/lib/site.py",
        "env/pyvenv.cfg",
        "env/lib/torch.py",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return root


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def apart(folder: Path) -> list[Path]:
    return [folder / "runs", folder / "data" / "faces"]


def test_a_folder_is_packed_without_runs_data_environments_and_secrets(folder: Path) -> None:
    tree = tree_of(folder, apart(folder))
    assert sorted(tree.files) == sorted(CODE)
    assert tree.size == sum(len(name) + 1 for name in CODE)
    # Those in hidden folders were never looked at.
    assert set(tree.secrets) == {name for name in SECRETS if not name.startswith(".aws")}


def test_of_a_checkout_what_git_tracks_and_what_it_does_not_ignore(folder: Path) -> None:
    (folder / ".gitignore").write_text("data/\nscratch.py\n")
    (folder / "scratch.py").write_text("ignored\n")
    (folder / "gone.py").write_text("deleted since\n")
    git(folder, "init")
    git(folder, "add", "model.py", "gone.py", ".gitignore", ".env")
    (folder / "gone.py").unlink()
    tree = tree_of(folder, apart(folder))
    assert sorted(tree.files) == sorted([*CODE, ".gitignore"])
    assert set(tree.secrets) == set(SECRETS)
    # From a folder within, that folder alone.
    assert tree_of(folder / "package").files == ("__init__.py", "layers.py", "words.json")


def test_a_repository_within_the_checkout_is_packed_too(folder: Path) -> None:
    inner = folder / "vendor"
    inner.mkdir()
    (inner / "theirs.py").write_text("x = 1\n")
    git(folder, "init")
    git(inner, "init")
    git(inner, "add", "theirs.py")
    git(inner, "commit", "-m", "theirs")
    git(folder, "add", "vendor")
    assert "vendor/theirs.py" in tree_of(folder, apart(folder))


def test_links_to_elsewhere_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "photo.png").write_text("a person\n")
    (folder / "photo.png").symlink_to(tmp_path / "elsewhere" / "photo.png")
    (folder / "photos").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "alias.py").symlink_to(folder / "model.py")
    assert sorted(tree_of(folder, apart(folder)).files) == sorted([*CODE, "alias.py"])
    git(folder, "init")
    assert sorted(tree_of(folder, apart(folder)).files) == sorted([*CODE, "alias.py"])


def test_code_is_packed_even_where_the_data_is_all_around_it(folder: Path) -> None:
    assert tree_of(folder, [folder]).files == ("model.py", "package/__init__.py", "package/layers.py")


def test_a_folder_without_python_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert tree_of(tmp_path).files == ()


def test_what_is_too_large_is_refused_with_the_largest_files_by_name(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"\0" * 3_000_000)
    with pytest.raises(
        InputError, match=r"the limit is 10,000 files and 2\.1 MB.*largest are weights\.bin \(3\.0 MB\)"
    ):
        tree_of(folder, apart(folder), limit=2 << 20)
    assert sorted(tree_of(folder, apart(folder), exclude=["*.bin"], limit=2 << 20).files) == sorted(CODE)


def test_too_many_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.pack.FILES", 4)
    with pytest.raises(InputError, match="the limit is 4 files"):
        tree_of(folder, apart(folder))
    monkeypatch.setattr("launch.pack.FILES", 1)
    with pytest.raises(InputError, match="too many to be a project's folder"):
        tree_of(folder, apart(folder))


def test_the_zip_holds_the_tree_and_is_the_same_of_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_zip(tree_of(folder, apart(folder)), tmp_path / "first.zip")
    (folder / "model.py").touch()
    write_zip(tree_of(folder, apart(folder)), tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.zip") as archive:
        assert sorted(archive.namelist()) == sorted(CODE)
        assert archive.read("package/layers.py") == b"package/layers.py\n"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("auth_token", True), ("tokens.txt", True), ("my-secret.yaml", True), ("secrets/prod.yaml", True),
        (".ENV", True), ("a/.ssh/config", True), ("service-account.json", True), ("OPENAI_API_KEY", True),
        ("tokenizer.json", False), ("tokens.py", False), ("secrets/__init__.py", False), ("docs/passwords.md", False),
        ("keyboard.txt", False), ("environment.yaml", False), ("model.py", False),
    ],
)  # fmt: skip
def test_secrets_are_known_by_their_names(name: str, secret: bool) -> None:
    assert is_secret(name) is secret

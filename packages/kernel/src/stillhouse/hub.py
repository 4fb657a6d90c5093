"""Exported students on the Hugging Face hub: which files go there, and the upload of them.

huggingface_hub uploads; token and endpoint are its own: HF_TOKEN or `hf auth login`, HF_ENDPOINT.
"""

import contextlib
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.assets import FOLDER, SUFFIXES
from stillhouse.card import CARD
from stillhouse.errors import BadSetting, StillhouseError
from stillhouse.files import write_text

# what a model is made of; anything else in its folder, such as images of its data, stays here
UPLOADED = (".safetensors", ".onnx", ".pt2", ".json", ".md", ".txt", ".model", ".jinja", ".py")


class HubError(StillhouseError):
    """The hub cannot be reached, or it refused."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a push sends: paths by their name in the repository, the card as README.md, and the
    names of what stays behind.
    """

    repo: str
    files: Mapping[str, Path]
    card: str
    left: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by name, the card's too."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return dict(sorted({**sizes, CARD: len(self.card.encode())}.items()))


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """Where an upload is now."""

    url: str
    commit: str


def planned(folder: Path, repo: str, card: str) -> Upload:
    """The upload of an exported student's folder to `repo`. Files are taken by their suffix:
    weights, JSON, text and code of the export, and its assets. Raises BadSetting for a name that
    the hub cannot have.
    """
    check_name(repo)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    taken = {name: path for name, path in files.items() if _of_a_model(name)}
    left = tuple(name for name in files if name not in taken)
    return Upload(
        repo=repo, files={n: p for n, p in taken.items() if n != CARD}, card=card, left=left
    )


def _of_a_model(name: str) -> bool:
    """Whether a file of an exported folder, by its path in it, is part of the model."""
    suffix = Path(name).suffix.lower()
    return suffix in (SUFFIXES if name.startswith(f"{FOLDER}/") else UPLOADED)


def check_name(repo: str) -> None:
    """Raises BadSetting for what is no OWNER/NAME of the hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise BadSetting(f"'{repo}': {_first_line(error)}") from error
    if repo.count("/") != 1:
        raise BadSetting(f"'{repo}': give the repository as OWNER/NAME")


def push(upload: Upload, *, private: bool = False, update: bool = False) -> Pushed:
    """Upload to a new repository, or with `update` as a new commit of one that may be there.

    Raises BadSetting without a token, for a repository that is there already (without `update`) or
    that is public where `private` was requested; HubError where the hub refuses or cannot be
    reached.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise BadSetting(
            "no token of the Hugging Face hub. Set HF_TOKEN to one that may write, or run: "
            "hf auth login"
        )
    api = HfApi()
    with _refusals(upload.repo, api.endpoint):
        url = api.create_repo(upload.repo, private=private or None, exist_ok=update)
        if update and private and not api.repo_info(upload.repo).private:
            raise BadSetting(
                f"{upload.repo} is public; leave out --private, or make it private on the hub"
            )
        with _laid_out(upload) as folder:
            found = api.upload_folder(
                repo_id=upload.repo,
                folder_path=folder,
                commit_message="Upload a student exported by Stillhouse",
            )
    return Pushed(url=str(url), commit=str(found.oid))


@contextlib.contextmanager
def _laid_out(upload: Upload) -> Generator[Path]:
    """The upload as one folder: links to the files, which may be large, and the card."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for relative, path in upload.files.items():
            link = folder / relative
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        write_text(folder / CARD, upload.card)
        yield folder


@contextlib.contextmanager
def _refusals(repo: str, endpoint: str) -> Generator[None]:
    """Turn what the hub and the way to it can say into one line."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # its parents are what its HTTP library, of one name or another, says of a connection
    http = tuple(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))
    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(repo, endpoint, error.response.status_code, error.server_message) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{endpoint}: HF_HUB_OFFLINE is set; unset it to upload") from error
    except (*http, OSError) as error:
        raise HubError(f"{endpoint} cannot be reached ({_first_line(error)})") from error
    except (RuntimeError, ValueError) as error:  # of a file's upload, or of the card's front matter
        raise HubError(f"{repo}: the upload failed ({_first_line(error)})") from error


def _refused(repo: str, endpoint: str, status: int, reason: str | None) -> StillhouseError:
    owner = repo.partition("/")[0]
    match status:
        case 401:
            return BadSetting(
                f"{endpoint} does not know this token. Set HF_TOKEN to a valid one, or run: "
                "hf auth login"
            )
        case 403:
            return BadSetting(
                f"{repo}: this token may not write there; give a repository of its owner instead "
                f"of '{owner}', or a token with the right to write"
            )
        case 409:
            return BadSetting(
                f"{repo} is there already; give another name, or --update for a new commit of it"
            )
        case _:
            return HubError(f"{repo}: {endpoint} answered {status} ({reason or 'no reason given'})")


def _first_line(error: BaseException) -> str:
    """The first line that an error says; the one below it where it only wraps another."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return f"{_first_line(error.__cause__)}: {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__

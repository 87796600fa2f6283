"""
Publishing on the Hub: everything in one commit, retried where that helps, checked when it is there, and explained in
one line where it cannot be done. A repository never holds a card without the weights.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer

from .evidence import RESULTS_FILE, Run, load_run
from .files import file_sha256
from .model_card import CardFacts, build_card
from .repository import copy_files, save_repository
from .run_record import RUN_FILE, encoder_fingerprint


logger = logging.getLogger(__name__)

T = TypeVar("T")

# Files of an earlier publication that the new one does not have are deleted; others' files stay.
OWN_FILES = ("*.safetensors", "*.safetensors.index.json", "*_c2fmae.py", "preprocessor_config.json")
TOKEN_PATTERN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
ATTEMPTS = 5
LONGEST_WAIT = 60.0


class HubError(RuntimeError):
    """What went wrong, whether anything was published, and what to do, in one line. It never holds a token."""


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    processor: Any = None,
    runs: Sequence[Run] = (),
    facts: CardFacts | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    custom_code: bool = True,
    license_text: str | None = None,
    tags: Sequence[str] | None = None,
) -> CommitInfo:
    """
    Publish a model with configuration, image processor, timm's keys, model card, records and licence in one commit.

    Args:
        model: A C2FMAE model, or one that is built on it.
        repo_id (`str`): `name` or `owner/name`; it is made if it is not there.
        processor (*optional*): The image processor.
        runs: Records of training and evaluation, from [`~c2fmae_hf.evidence.load_run`]: what the card is made of.
        facts (*optional*): What the card says besides.
        private (`bool`, *optional*): Whether a new repository is private; by default as the account is set.
        token (*optional*): By default the one of `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): Branch, made if it is not there; by default `main`.
        subfolder (`str`, *optional*): Folder in the repository. Code for `trust_remote_code` is read at the root
            alone, and so is left out.
        create_pr (`bool`): Open a pull request instead, as for another's repository.
        commit_message, commit_description (`str`, *optional*).
        custom_code, license_text: See [`~c2fmae_hf.repository.save_repository`].
        tags (*optional*): Further tags of the card.

    Returns:
        `CommitInfo`: of the commit that holds everything.

    Raises:
        [`HubError`]: if it cannot be published; what was there before is untouched.
        `ValueError`: if a run's result belongs to other weights.
    """
    facts = replace(facts or CardFacts(), tags=(*(facts.tags if facts else ()), *(tags or ())))
    with tempfile.TemporaryDirectory(prefix="c2fmae-hub-") as temporary:
        folder = Path(temporary) / "repository"
        try:
            write_repository(
                model,
                folder,
                repo_id,
                processor=processor,
                runs=runs,
                facts=facts,
                custom_code=custom_code and not subfolder,
                license_text=license_text,
            )
        except (OSError, SafetensorError) as error:
            if _is_disk_full(error):
                raise HubError(
                    f"no space left in {tempfile.gettempdir()}, where the repository is prepared; free some, or set "
                    "TMPDIR. Nothing was published"
                ) from None
            raise
        return publish_folder(
            folder,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            subfolder=subfolder,
            create_pr=create_pr,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            commit_description=commit_description,
        )


def write_repository(
    model: PreTrainedModel,
    folder: Path,
    repo_id: str,
    *,
    processor: Any = None,
    runs: Sequence[Run] = (),
    facts: CardFacts | None = None,
    custom_code: bool = True,
    license_text: str | None = None,
) -> None:
    """
    All files of the repository as they would be published, for looking at them first. Arguments and errors are those
    of [`push_to_hub`].
    """
    _check_runs(model, runs)
    save_repository(model, folder, processor, custom_code=custom_code, license_text=license_text)
    for run in runs:
        copy_files(folder, run.sources)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    card = build_card(repo_id, model.config, type(model).__name__, files=files, runs=runs, facts=facts)
    card.save(folder / "README.md")


def _check_runs(model: PreTrainedModel, runs: Sequence[Run]) -> None:
    """A record belongs to these weights if its run made them, or started from them."""
    fingerprint = encoder_fingerprint(model)
    for run in runs:
        if fingerprint not in run.encoders:
            of = " or ".join(sorted(one[:12] for one in run.encoders)) or "unknown ones"
            raise ValueError(
                f"{next(iter(run.sources.values()), 'run')}: expected a record of the weights to be published "
                f"(encoder {fingerprint[:12]}), got one of {of}; evaluate these weights, or leave the record out"
            )


def publish_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    commit_description: str | None = None,
) -> CommitInfo:
    """
    Publish a folder's files in one commit. Arguments, result and errors are those of [`push_to_hub`].

    A step that fails for a reason that may pass (too many requests, a server's error, a connection that breaks) is
    tried again up to five times; large files that have arrived are not sent again. If the answer to the commit is
    lost, the repository is looked at to find out whether it landed.
    """
    publication = _Publication(folder, repo_id, token, subfolder, revision)
    return publication.run(private, create_pr, commit_message, commit_description)


class PublishingTrainer(Trainer):
    """A `Trainer` whose `push_to_hub` publishes as [`push_to_hub`] does: one commit, with a card of its records."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """
        Publish the model as it is now, with the records in `args.output_dir` that are of its weights.

        Args:
            commit_message, token, revision, private (*optional*): Over those of the arguments.
            blocking (`bool`): Has no effect; the method returns when everything is published.
            kwargs: Of [`push_to_hub`].

        Returns:
            `CommitInfo`, in the main process.
        """
        if not self.is_world_process_zero():
            return None
        args = self.args
        folder = Path(str(args.output_dir))
        model = self.accelerator.unwrap_model(self.model)
        runs = []
        if any((folder / name).is_file() for name in (RUN_FILE, RESULTS_FILE)):
            run = load_run(folder, "training")
            runs = [run] if encoder_fingerprint(model) in run.encoders else []
        return push_to_hub(
            model,
            args.hub_model_id or folder.absolute().name,
            processor=self.processing_class,
            runs=runs,
            commit_message=commit_message,
            token=token or args.hub_token,
            revision=revision or args.hub_revision,
            private=args.hub_private_repo if private is None else private,
            **kwargs,
        )


class _Publication:
    """One folder on its way to one repository."""

    def __init__(
        self, folder: Path, repo_id: str, token: str | bool | None, subfolder: str | None, revision: str | None
    ) -> None:
        self.folder, self.repo_id, self.revision = folder, repo_id, revision
        self.secret = token if isinstance(token, str) else get_token()
        self.api = HfApi(token=token)
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        self.prefix = prefix
        self.files = {
            prefix + path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
        }
        self.account: dict[str, Any] = {}
        self.is_published = False

    def run(
        self, private: bool | None, create_pr: bool, commit_message: str, commit_description: str | None
    ) -> CommitInfo:
        self.check_secrets()
        try:
            self.account = self.attempt("asking who you are", self.api.whoami)
            if not create_pr:
                self.repo_id = self.attempt("making the repository", self.make_repository, private)
            if self.revision and not create_pr and not self.revision.startswith("refs/"):
                self.attempt(
                    "making the branch", self.api.create_branch, self.repo_id, branch=self.revision, exist_ok=True
                )
            info = self.attempt("publishing", self.commit, create_pr, commit_message, commit_description)
            self.is_published = True
            self.attempt("checking the result", self.check, info.pr_revision if create_pr else info.oid)
        except HubError:
            raise
        except Exception as error:
            explanation = self.explain(error)
            if explanation is None:
                raise
            # Not `from error`: a request with its headers hangs on it.
            raise HubError(self.redact(explanation)) from None
        return info

    def check_secrets(self) -> None:
        """
        Raises:
            [`HubError`]: naming the file that holds something like a token.
        """
        for name, path in self.files.items():
            if path.suffix in (".safetensors", ".png"):
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            if TOKEN_PATTERN.search(text) or (self.secret and self.secret in text):
                raise HubError(f"{name} holds what looks like an access token; remove it. Nothing was published")

    def make_repository(self, private: bool | None) -> str:
        return self.api.create_repo(self.repo_id, private=private, exist_ok=True).repo_id

    def commit(self, create_pr: bool, message: str, description: str | None) -> CommitInfo:
        """The one commit; if an earlier try of it landed without our hearing of it, that one."""
        head = self.api.repo_info(self.repo_id, revision=self.revision).sha
        there = {} if create_pr else self.remote_checksums(head)
        if there and not self.differing(there):
            logger.info("%s holds these files already.", self.repo_id)
            url = f"{self.api.endpoint}/{self.repo_id}/commit/{head}"
            return CommitInfo(commit_url=url, commit_message=message, commit_description="", oid=str(head))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in self.files.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in there if self.is_left_over(name)]
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=message,
            commit_description=description,
            revision=self.revision,
            create_pr=create_pr,
            parent_commit=None if create_pr else head,
        )

    def is_left_over(self, name: str) -> bool:
        if name in self.files or not name.startswith(self.prefix):
            return False
        name = name.removeprefix(self.prefix)
        return name.startswith("runs/") or ("/" not in name and any(fnmatch(name, own) for own in OWN_FILES))

    def check(self, revision: str) -> None:
        """
        Raises:
            [`HubError`]: if a file in the repository is not what was sent.
        """
        differing = self.differing(self.remote_checksums(revision))
        if differing:
            raise HubError(f"{self.repo_id}: published, but {differing} are not what was sent; publish again")

    def remote_checksums(self, revision: str | None) -> dict[str, str]:
        """SHA-256 of large files, git's SHA-1 of small ones, by path."""
        return {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in self.api.list_repo_tree(self.repo_id, revision=revision, recursive=True)
            if isinstance(entry, RepoFile)
        }

    def differing(self, remote: dict[str, str]) -> list[str]:
        return [
            name
            for name, path in self.files.items()
            if remote.get(name) != (file_sha256(path) if len(remote.get(name, "")) == 64 else _git_checksum(path))
        ]

    def attempt(self, what: str, function: Callable[..., T], *args, **kwargs) -> T:
        """Call a function, and again if it fails for a reason that may pass."""
        for number in range(1, ATTEMPTS + 1):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if number == ATTEMPTS or not _may_pass(error):
                    raise
                wait = _wait(error, number)
                logger.warning(
                    "%s: %s failed (%s); try %d of %d in %.0f s.",
                    self.repo_id,
                    what,
                    self.redact(_in_short(error)),
                    number + 1,
                    ATTEMPTS,
                    wait,
                )
                time.sleep(wait)
        raise AssertionError

    def explain(self, error: Exception) -> str | None:
        """One line for what people run into, `None` for what is not the Hub's doing."""
        nothing = "It was published, but could not be checked" if self.is_published else "Nothing was published"
        if isinstance(error, OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE is set, so that the Hub is not asked. {nothing}"
        if isinstance(error, HFValidationError):
            return (
                f"repo_id: expected 'name' or 'owner/name' of letters, digits, '-', '_' and '.', got {self.repo_id!r}"
            )
        status = getattr(getattr(error, "response", None), "status_code", None)
        name = self.account.get("name")
        access = self.account.get("auth", {}).get("accessToken", {})
        if self.secret is None and (status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError"):
            return f"no access token: run `hf auth login`, or set HF_TOKEN, with a token that may write. {nothing}"
        if status == 401 and not self.account:
            return (
                "the Hub does not accept the access token: it may be mistyped, expired or revoked. Make one that may "
                f"write at {self.api.endpoint}/settings/tokens and run `hf auth login`. {nothing}"
            )
        if status in (401, 403, 404) and access.get("role") == "read":
            return (
                f"the access token {access.get('displayName', '')!r} of {name} may only read; make one that may write "
                f"at {self.api.endpoint}/settings/tokens. {nothing}"
            )
        if status in (401, 403, 404):
            owners = [name, *(entry.get("name") for entry in self.account.get("orgs", []))]
            return (
                f"{self.repo_id} is not yours to write to, or not visible: you are {name}, and may write as "
                f"{', '.join(map(str, owners))}; choose another name, or open a pull request (create_pr). {nothing}"
            )
        if status in (409, 412):
            return f"{self.repo_id} changed while it was published; publish again. {nothing}"
        if status is not None:
            return (
                f"the Hub answered {_in_short(error)}. {nothing}; publish again later, what arrived is not sent twice"
            )
        if _may_pass(error):
            return (
                f"no connection to {self.api.endpoint} ({_in_short(error)}). {nothing}; publish again, what "
                "arrived is not sent twice"
            )
        return None

    def redact(self, text: str) -> str:
        text = TOKEN_PATTERN.sub("***", text)
        return text.replace(self.secret, "***") if self.secret else text


def _git_checksum(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_disk_full(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or "No space left" in str(error) or "File too large" in str(error)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and those behind it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _may_pass(error: Exception) -> bool:
    """Whether a second try may succeed. The Hub's client has httpx or httpx2 beneath, depending on its version."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    for one in _chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(one, HfHubHTTPError) or status is not None:
            return status in (*RETRIED_STATUS, 412)
        if isinstance(one, (ConnectionError, TimeoutError)):
            return True
        if any(base.__name__ == "TransportError" for base in type(one).__mro__):
            return True
    return False


def _wait(error: Exception, number: int) -> float:
    """Seconds before the next try: what the server asks for, or 1, 2, 4, ..."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None) or {}
        asked = headers.get("retry-after", "")
        if str(asked).isdigit():
            return min(float(asked), LONGEST_WAIT)
    return min(2.0 ** (number - 1), LONGEST_WAIT)


def _in_short(error: Exception) -> str:
    for one in _chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status is not None:
            request_id = getattr(one, "request_id", None)
            return f"{status} {one.response.reason_phrase}" + (f", request {request_id}" if request_id else "")
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""
Publishing on the Hub: everything in one commit, retried where that helps, checked when it is there, and explained in
one line where it cannot be done. A repository never holds a card without the weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..modeling_c2fmae import C2FMAEPreTrainedModel
from ..utils.files import file_sha256, write_json
from ..utils.retries import attempt, error_chain, failure_behind, in_short, may_pass, status_of
from .fingerprints import encoder_fingerprint, weights_fingerprint
from .model_card import DEFAULT_LICENSE, CardFacts, build_card, own_config
from .records import Run, hub_name, run_of_weights
from .redaction import TOKEN_PATTERN
from .repository import INDEX_FILE, PROCESSOR_FILE, save_repository


logger = logging.getLogger(__name__)

T = TypeVar("T")

FINGERPRINTS = ("starting_encoder", "starting_weights", "encoder", "weights")
RECORD_PATTERN = re.compile(r"runs/(pretraining|training|evaluation-\d+)/[^/]+\.json")
ATTEMPTS = 5
NOTHING = "Nothing was published"


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
        processor (*optional*): The image processor; by default of a C2FMAE model that of its configuration.
        runs: Records of training and evaluation, from [`~c2fmae_hf.publishing.records.load_run`], of which the card is
            made.
        facts (*optional*): What the card says besides.
        private (`bool`, *optional*): Whether a new repository is private; by default as the account is set.
        token (*optional*): By default the one of `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): Branch, made if it is not there; by default `main`.
        subfolder (`str`, *optional*): Folder in the repository. Code for `trust_remote_code` is read at the root
            alone, and so is left out.
        create_pr (`bool`): Open a pull request instead, as for another's repository.
        commit_message, commit_description (`str`, *optional*).
        custom_code, license_text: See [`~c2fmae_hf.publishing.repository.save_repository`].
        tags (*optional*): Further tags of the card.

    Returns:
        `CommitInfo`: of the commit that holds everything.

    Raises:
        [`HubError`]: if it cannot be published, or weights of others have no licence; what was there before is
            untouched.
        `ValueError`: if a run's result belongs to other weights.
    """
    facts = replace(facts or CardFacts(), tags=(*(facts.tags if facts else ()), *(tags or ())))
    _check_name(repo_id)
    if "/" not in repo_id:  # the card's code is to name its owner
        publication = _Publication({}, repo_id, token, None, None)
        repo_id = publication.explained(publication.full_name)
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
                custom_code=custom_code,
                license_text=license_text,
                # Where a pull request will be is not known yet; what it proposes is for the branch.
                revision=revision,
                subfolder=subfolder,
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
    revision: str | None = None,
    subfolder: str | None = None,
) -> None:
    """
    All files of the repository as they would be published, for looking at them first. Arguments and errors are those
    of [`push_to_hub`].
    """
    _check_name(repo_id)
    runs = _of_weights(runs, model)
    check_license(model, facts, license_text, runs)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected a new or an empty folder, got one with files")
    folder.parent.mkdir(parents=True, exist_ok=True)
    subfolder = (subfolder or "").strip("/") or None
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        if processor is None and isinstance(model, C2FMAEPreTrainedModel):
            processor = C2FMAEImageProcessor.from_config(model.config)
        has_code = custom_code and not subfolder
        save_repository(model, temporary, processor, custom_code=has_code, license_text=license_text)
        for run in runs:
            for name, content in run.files.items():  # not the files themselves: folders and secrets are left out
                write_json(temporary / name, content)
        files = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
        # As it was written: a processor's pixel statistics are the model's there.
        config = type(model.config).from_pretrained(temporary)
        card = build_card(
            *(repo_id, config, type(model).__name__),
            files=files,
            runs=runs,
            facts=facts,
            revision=revision,
            subfolder=subfolder,
        )
        card.save(temporary / "README.md")
        _check_secrets({path.relative_to(temporary).as_posix(): path for path in temporary.rglob("*")}, None)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise HubError(_bad_name(repo_id)) from None


def check_license(
    model: PreTrainedModel, facts: CardFacts | None, license_text: str | None, runs: Sequence[Run] = ()
) -> None:
    """
    Weights that others have made, or that were trained further from such, are not ours to license.

    Raises:
        [`HubError`]: if they have no licence, or another licence than Apache-2.0 has no text.
    """
    name = facts.license if facts is not None else None
    own = own_config(model.config)
    others = [own.converted_from if own is not None else model.name_or_path or "another library's model"]
    others += [hub_name(model.name_or_path), *(run.record.get("base_model") for run in runs if run.role == "made")]
    origin = next(filter(None, others), None)
    if origin and name is None:
        raise HubError(
            f"license: expected that of {origin}, of which the weights were made (see its card, or its authors' "
            f"repository; --license or --hub_license, and its text), got None. {NOTHING}"
        )
    if name not in (None, DEFAULT_LICENSE) and license_text is None:
        raise HubError(f"license_text: expected the text of {name}, got None. {NOTHING}")


def _check_secrets(files: Mapping[str, Path], secret: str | None) -> None:
    """
    Raises:
        [`HubError`]: naming the file that holds something like a token.
    """
    for name, path in files.items():
        if path.suffix in (".safetensors", ".png") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if TOKEN_PATTERN.search(text) or (secret and secret in text):
            raise HubError(f"{name} holds what looks like an access token; remove it. Nothing was published")


def _of_weights(runs: Sequence[Run], model: PreTrainedModel) -> list[Run]:
    """The runs with their roles; a record of other weights is an error."""
    found = [run_of_weights(run, model) for run in runs]
    # What made the encoder that the weights were trained from belongs to their history.
    starts = {run.record.get("starting_encoder") for run in found if run is not None and run.is_training}
    result = []
    for run, known in zip(runs, found):
        if known is None and run.record.get("encoder") in starts - {None}:
            known = replace(run, role="made_start")
        if known is None:
            raise ValueError(_other_weights(run, model))
        result.append(known)
    return result


def _other_weights(run: Run, model: PreTrainedModel) -> str:
    known = {name: str(run.record[name])[:12] for name in FINGERPRINTS if name in run.record}
    return (
        f"{next(iter(run.sources.values()), 'run')}: expected a record of the weights to be published (encoder "
        f"{encoder_fingerprint(model)[:12]}, weights {weights_fingerprint(model)[:12]}), got one of "
        f"{known or 'unknown ones'}; evaluate these weights, or leave the record out"
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
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    publication = _Publication(files, repo_id, token, subfolder, revision)
    return publication.run(private, create_pr, commit_message, commit_description)


class _Publication:
    """Files of a folder, by their paths in it, on their way to one repository."""

    def __init__(
        self,
        files: Mapping[str, Path],
        repo_id: str,
        token: str | bool | None,
        subfolder: str | None,
        revision: str | None,
    ) -> None:
        self.repo_id, self.revision = repo_id, revision
        self.secret = token if isinstance(token, str) else None if token is False else get_token()
        self.api = HfApi(token=token)
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        self.prefix = prefix
        self.files = {prefix + name: path for name, path in files.items()}
        self.account: dict[str, Any] = {}
        self.state = NOTHING

    def run(
        self, private: bool | None, create_pr: bool, commit_message: str, commit_description: str | None
    ) -> CommitInfo:
        _check_secrets(self.files, self.secret)
        return self.explained(self._run, private, create_pr, commit_message, commit_description)

    def explained(self, function: Callable[..., T], *args) -> T:
        """
        Call a function, and explain what it raises.

        Raises:
            [`HubError`]: nothing hangs on it, as a request with its headers would.
        """
        try:
            with _no_request_lines():
                return function(*args)
        except HubError:
            raise
        except Exception as error:
            explanation = self.explain(error)
            if explanation is None:
                raise
        # Not in the block above: even `from None` keeps the error, and with it the token, as `__context__`.
        raise HubError(self.redact(explanation))

    def full_name(self) -> str:
        """The repository's name with its owner, who is the one that asks."""
        if self.secret is None:
            raise HubError(self.no_token())
        self.account = self.attempt("asking who you are", self.api.whoami)
        return f"{self.account['name']}/{self.repo_id}"

    def prepare(self, private: bool | None, create_pr: bool = False) -> None:
        """Who asks, and for their own repository that it is there."""
        if self.secret is None:
            raise HubError(self.no_token())
        self.account = self.attempt("asking who you are", self.api.whoami)
        if not create_pr:
            self.repo_id = self.attempt("making the repository", self.make_repository, private)

    def _run(
        self, private: bool | None, create_pr: bool, commit_message: str, commit_description: str | None
    ) -> CommitInfo:
        self.prepare(private, create_pr)
        if self.revision and not create_pr and not self.revision.startswith("refs/"):
            self.attempt(
                "making the branch", self.api.create_branch, self.repo_id, branch=self.revision, exist_ok=True
            )
        info = self.attempt("publishing", self.commit, create_pr, commit_message, commit_description)
        self.state = "It was published, but could not be checked"
        self.attempt("checking the result", self.check, info.pr_revision if create_pr else info.oid)
        return info

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
        if create_pr and self.state != NOTHING and (landed := self.pull_request(message)):
            return landed
        self.state = NOTHING
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in self.files.items()
        ]
        deletions = [CommitOperationDelete(path_in_repo=name) for name in self.left_over(there, head)]
        # Part of the commit otherwise; by itself it is known that nothing is published if it fails.
        self.api.preupload_lfs_files(
            self.repo_id, additions, revision=self.revision, create_pr=create_pr, free_memory=False
        )
        try:
            return self.api.create_commit(
                self.repo_id,
                [*additions, *deletions],
                commit_message=message,
                commit_description=description,
                revision=self.revision,
                create_pr=create_pr,
                parent_commit=None if create_pr else head,
            )
        except Exception as error:
            if not 400 <= (status_of(error) or 0) < 500:
                self.state = "Whether it was published is not known"
            raise

    def pull_request(self, title: str) -> CommitInfo | None:
        """One of ours that holds these files."""
        for discussion in self.api.get_repo_discussions(
            self.repo_id, author=self.account.get("name"), discussion_type="pull_request", discussion_status="open"
        ):
            reference = f"refs/pr/{discussion.num}"
            if discussion.title == title and not self.differing(self.remote_checksums(reference)):
                url = f"{self.api.endpoint}/{self.repo_id}"
                oid = str(self.api.repo_info(self.repo_id, revision=reference).sha)
                return CommitInfo(
                    commit_url=f"{url}/commit/{oid}",
                    commit_message=title,
                    commit_description="",
                    oid=oid,
                    pr_url=f"{url}/discussions/{discussion.num}",
                )
        return None

    def left_over(self, there: Iterable[str], revision: str | None) -> list[str]:
        """
        Files of an earlier publication that this one does not have. Others' files stay: only what that publication's
        `config.json` tells to be its own is meant, its modules, and records by the names that they have here.
        """
        config_name = f"{self.prefix}config.json"
        names = {
            name.removeprefix(self.prefix) for name in set(there) - set(self.files) if name.startswith(self.prefix)
        }
        if config_name not in there or not names:
            return []
        with tempfile.TemporaryDirectory(prefix="c2fmae-hub-") as folder:
            file = self.api.hf_hub_download(self.repo_id, config_name, revision=revision, local_dir=folder)
            config = json.loads(Path(file).read_text(encoding="utf-8"))
        own = {INDEX_FILE, PROCESSOR_FILE, *(name for name in names if name.endswith(".safetensors"))}
        if "auto_map" in config:
            own |= {path.name for path in Path(__file__).parent.glob("*.py")}
        return [self.prefix + name for name in sorted(names) if name in own or RECORD_PATTERN.fullmatch(name)]

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
        return attempt(
            f"{self.repo_id}: {what}",
            lambda: function(*args, **kwargs),
            ATTEMPTS,
            _is_worth_another_try,
            self.redact,
        )

    def no_token(self) -> str:
        return f"no access token: run `hf auth login`, or set HF_TOKEN, with a token that may write. {self.state}"

    def explain(self, error: Exception) -> str | None:
        """One line for what people run into, `None` for what is not the Hub's doing."""
        if any(isinstance(one, OfflineModeIsEnabled) for one in error_chain(error)):
            return f"HF_HUB_OFFLINE is set, so that the Hub is not asked. {self.state}"
        if isinstance(error, HFValidationError):
            return _bad_name(self.repo_id)
        status = status_of(error)
        name = self.account.get("name")
        access = self.account.get("auth", {}).get("accessToken", {})
        settings = f"{self.api.endpoint}/settings/tokens"
        if _is_storage(error):
            return f"the storage refused what was sent ({in_short(error)}). {self.state}; publish again"
        if status in (401, 403, 404) and access.get("role") == "read":
            return (
                f"the access token {access.get('displayName', '')!r} of {name} may only read; make one that may write "
                f"at {settings}. {self.state}"
            )
        if status == 401:
            return (
                "the Hub does not accept the access token: it may be mistyped, expired or revoked. Make one that may "
                f"write at {settings} and run `hf auth login`. {self.state}"
            )
        if status in (403, 404):
            owners = [name, *(entry.get("name") for entry in self.account.get("orgs", []))]
            hint = ""
            if access.get("role") == "fineGrained":
                hint = f", unless the fine-grained token lacks the permission (see {settings})"
            return (
                f"{self.repo_id} is not yours to write to, or not visible: you are {name}, and may write as "
                f"{', '.join(map(str, owners))}{hint}; choose another name, or open a pull request (create_pr). "
                f"{self.state}"
            )
        if status in (409, 412):
            return f"{self.repo_id} changed while it was published; publish again. {self.state}"
        if status is not None:
            return (
                f"the Hub answered {in_short(error)}. {self.state}; publish again later, what arrived is not sent "
                "twice"
            )
        if may_pass(error):
            return (
                f"no connection to {self.api.endpoint} ({in_short(error)}). {self.state}; publish again, what "
                "arrived is not sent twice"
            )
        return None

    def redact(self, text: str) -> str:
        text = TOKEN_PATTERN.sub("***", text)
        return text.replace(self.secret, "***") if self.secret else text


@contextmanager
def _no_request_lines() -> Iterator[None]:
    """The library's client logs addresses of storage, with the signatures that open them."""
    clients = {client: client.level for client in map(logging.getLogger, ("httpx", "httpx2"))}  # by its version
    for client, level in clients.items():
        client.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        for client, level in clients.items():
            client.setLevel(level)


def _bad_name(repo_id: str) -> str:
    return f"repo_id: expected 'name' or 'owner/name' of letters, digits, '-', '_' and '.', got {repo_id!r}"


def _git_checksum(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_disk_full(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or "No space left" in str(error) or "File too large" in str(error)


def _is_storage(error: Exception) -> bool:
    """
    Whether the storage of large files refused one: its address is valid for a time, and it checks what arrives. With a
    new address, or a better connection, it may accept.
    """
    request = getattr(getattr(failure_behind(error), "response", None), "request", None)
    return status_of(error) in (400, 403) and getattr(request, "method", "") == "PUT"


def _is_worth_another_try(error: Exception) -> bool:
    """
    Besides what may pass by itself: a refusal of the storage, and a commit on which someone else's came first. But not
    where `huggingface_hub` itself has tried six times with waits: five times that would be too much.
    """
    was_tried_again = any(
        "http_backoff" in frame.f_code.co_name
        for one in error_chain(error)
        for frame, _ in traceback.walk_tb(one.__traceback__)
    )
    return not was_tried_again and (may_pass(error) or status_of(error) == 412 or _is_storage(error))

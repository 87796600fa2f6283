"""Publishing on the Hub: weights, card, records and licence in one commit, with messages that explain refusals."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from jinja2 import UndefinedError
from transformers import PreTrainedModel

from ..image_processing_c2fmae import C2FMAEImageProcessor
from ..modeling_c2fmae import C2FMAEForSemanticSegmentation, C2FMAEPreTrainedModel
from ..utils.files import replace_folder, write_json
from .licences import inherited_license, is_apache
from .model_card import DEFAULT_LICENSE, PICTURE, CardFacts, build_card, own_config
from .records import Run, hub_name, runs_of_weights
from .redaction import TOKEN_PATTERN
from .repository import save_repository


T = TypeVar("T")
logger = logging.getLogger(__name__)

# Files of a publication, besides its code.
OWN_FILES = re.compile(
    r"(model(-\d+-of-\d+)?|decoder|decode_head|fpn|label_embed)\.safetensors|model\.safetensors\.index\.json"
    rf"|preprocessor_config\.json|{re.escape(PICTURE)}|runs/[^/]+/[^/]+\.json"
)
# Base class of the client's errors: httpx's or httpx2's, depending on its version.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
NOTHING = "Nothing was published"


class HubError(RuntimeError):
    """A failure to publish: its cause and remedy in one line, without any token."""


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
    picture: Path | None = None,
) -> CommitInfo:
    """
    Publish a model with configuration, image processor, timm's keys, model card, records and licence in one commit.

    Args:
        model: A C2FMAE model, or one that is built on it.
        repo_id (`str`): `name` or `owner/name`; created if it does not exist.
        processor (*optional*): The image processor; by default one made from a C2FMAE model's configuration.
        runs: Records of training and evaluation for the card, from [`~c2fmae_hf.publishing.records.load_run`].
        facts (*optional*): Facts for the card that are not in the records.
        private (`bool`, *optional*): Whether a new repository is private; by default the account's setting.
        token (*optional*): By default the one from `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): Branch, created if it does not exist; by default `main`.
        subfolder (`str`, *optional*): Folder in the repository. It gets no code: `trust_remote_code` reads the root.
        create_pr (`bool`): Open a pull request instead, for example in someone else's repository.
        commit_message, commit_description (`str`, *optional*).
        custom_code, license_text: See [`~c2fmae_hf.publishing.repository.save_repository`].
        tags (*optional*): Further tags for the card.
        picture (*optional*): A PNG of predictions, which the card shows. It is published as `predictions.png`.

    Returns:
        `CommitInfo`: The commit.

    Raises:
        [`HubError`]: if the Hub refuses, others' weights have no licence, or a file holds an access token.
        `ValueError`: if a run's result belongs to other weights.
    """
    facts = facts or CardFacts()
    facts = replace(facts, tags=(*facts.tags, *(tags or ())))
    _check_name(repo_id)
    if "/" not in repo_id:  # the card's code names the owner
        repo_id = _ask(repo_id, token, lambda api, name: name)
    with tempfile.TemporaryDirectory(prefix="c2fmae-hub-") as temporary:
        folder = Path(temporary) / "repository"
        write_repository(
            model,
            folder,
            repo_id,
            processor=processor,
            runs=runs,
            facts=facts,
            custom_code=custom_code,
            license_text=license_text,
            revision=revision,
            subfolder=subfolder,
            picture=picture,
        )
        _check_secrets(folder, token)
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        files = {prefix + path.relative_to(folder).as_posix(): path for path in _files(folder)}

        def commit(api: HfApi, name: str) -> CommitInfo:
            if inherited_license(model) is None:
                _compare_with_origin(api, _origin(model, runs_of_weights(runs, model)), facts.license)
            if not create_pr:
                name = api.create_repo(name, private=private, exist_ok=True).repo_id
                if revision and not revision.startswith("refs/"):
                    api.create_branch(name, branch=revision, exist_ok=True)
            left_over = _left_over(api, name, revision, prefix) - set(files)
            return api.create_commit(  # not `upload_folder`, which may make several commits
                name,
                [
                    *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()),
                    *(CommitOperationDelete(path_in_repo=path) for path in sorted(left_over)),
                ],
                commit_message=commit_message or f"Upload {type(model).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

        return _ask(repo_id, token, commit)


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
    picture: Path | None = None,
) -> None:
    """
    Write the repository to a new or empty folder, to look at it before publishing. Arguments and errors are those of
    [`push_to_hub`].
    """
    _check_name(repo_id)
    runs = runs_of_weights(runs, model)
    check_license(model, facts, license_text, runs)
    inherited = inherited_license(model)
    if inherited is not None:
        facts = facts or CardFacts()
        if inherited.has_text or license_text is None:
            license_text = inherited.text
        if inherited.is_named or facts.license is None:
            facts = replace(facts, license=inherited.license, license_name=inherited.license_name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected a new or an empty folder, got one with files")
    subfolder = (subfolder or "").strip("/") or None
    if processor is None and isinstance(model, C2FMAEPreTrainedModel):
        whole = {"do_center_crop": False, "size_divisor": model.config.patch_size, "label_stride": 1}
        is_segmenter = isinstance(model, C2FMAEForSemanticSegmentation)
        processor = C2FMAEImageProcessor.from_config(model.config, **(whole if is_segmenter else {}))
    with replace_folder(folder) as temporary:
        has_code = custom_code and not subfolder
        save_repository(model, temporary, processor, custom_code=has_code, license_text=license_text)
        for run in runs:
            for name, content in run.files.items():
                write_json(temporary / name, content)
        if picture is not None:
            shutil.copyfile(picture, temporary / PICTURE)
        try:
            card = build_card(
                repo_id,
                type(model.config).from_pretrained(temporary),  # as written: with the processor's pixel statistics
                type(model).__name__,
                files=[path.relative_to(temporary).as_posix() for path in _files(temporary)],
                runs=runs,
                facts=facts,
                revision=revision,
                subfolder=subfolder,
            )
        except (TypeError, KeyError, AttributeError, UndefinedError) as error:
            files = ", ".join(str(path) for run in runs for path in run.sources.values())
            raise ValueError(
                f"records: expected them as the commands write them, got others in one of {files or 'none'}: "
                f"{type(error).__name__}: {error}"
            ) from error
        card.save(temporary / "README.md")
        _check_secrets(temporary)


def check_license(
    model: PreTrainedModel, facts: CardFacts | None, license_text: str | None, runs: Sequence[Run] = ()
) -> None:
    """
    Check that weights made or trained from others' weights keep the licence of those.

    Raises:
        [`HubError`]: if the licence is missing, differs from that of the weights that the model started from, or is
            not Apache-2.0 and comes without its text.
    """
    name = facts.license if facts is not None else None
    inherited = inherited_license(model)
    if inherited is not None:
        is_its_text = license_text is not None and license_text.split() == inherited.text.split()
        if not inherited.is_named and is_its_text and name is not None:
            return  # the caller names a licence that no card names
        given = (name, facts.license_name if facts is not None else None)
        for got, expected in zip(given, (inherited.license, inherited.license_name)):
            if got is not None and got.lower() != (expected or "").lower():
                naming = "" if inherited.is_named else ", or pass the text of that licence with its name"
                raise HubError(
                    f"license: expected {expected}, the licence of the weights that this model was trained from, got "
                    f"{got}. Leave it out{naming}. {NOTHING}"
                )
        if license_text is not None and not is_its_text and inherited.has_text:
            raise HubError(
                "license_text: expected the licence of the weights that this model was trained from, got another "
                f"text. Leave it out. {NOTHING}"
            )
        return
    noted = next(filter(None, (run.record.get("license") for run in runs if run.is_training)), None)
    if noted is not None:
        raise HubError(
            f"license: expected the text of {noted}, the licence of the weights that this model was trained from, got "
            f"none. Copy the LICENSE file of those weights into the model's folder. {NOTHING}"
        )
    origin = _origin(model, runs)
    if origin and name is None:
        raise HubError(
            f"license: expected the licence of {origin}, which this model was made from, got none. See its card or "
            f"its authors' repository; pass it with --license or --hub_license, and its text. {NOTHING}"
        )
    if name not in (None, DEFAULT_LICENSE) and license_text is None:
        raise HubError(f"license_text: expected the text of {name}, got None. {NOTHING}")
    if name in (None, DEFAULT_LICENSE) and license_text is not None and not is_apache(license_text):
        raise HubError(f"license: expected the name of the licence whose text is given, got {name}. {NOTHING}")


def _origin(model: PreTrainedModel, runs: Sequence[Run]) -> str | None:
    """Name of the weights that a model started from; `None` if it was trained from scratch."""
    own = own_config(model.config)
    others = [own.converted_from if own is not None else model.name_or_path or "another library's model"]
    others += [hub_name(model.name_or_path), *(run.record.get("base_model") for run in runs if run.role == "made")]
    return next(filter(None, others), None)


def _compare_with_origin(api: HfApi, origin: str | None, license: str | None) -> None:
    """
    Compare a licence with the one on the card of the original weights.

    Raises:
        [`HubError`]: if the card of the weights that a model started from names another licence.
    """
    if hub_name(origin) is None:
        return
    said = None
    try:
        said = ModelCard.load(api.hf_hub_download(str(origin), "README.md")).data.license
    except (HTTP_ERROR, OSError, ValueError, yaml.YAMLError) as error:  # no readable card
        logger.warning("Cannot read the card of %s, which may name a licence: %s", origin, type(error).__name__)
    if said not in (None, license):
        raise HubError(
            f"license: expected {said}, the licence of {origin}, which this model was made from, got {license}. "
            f"{NOTHING}"
        )


def prepare_repository(
    model: PreTrainedModel,
    repo_id: str,
    *,
    facts: CardFacts | None = None,
    license_text: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """
    Create the repository before the training, so that what would fail afterwards fails now.

    Returns:
        `str`: `owner/name`.

    Raises:
        [`HubError`]: as [`push_to_hub`] would.
    """
    check_license(model, facts, license_text)
    _check_name(repo_id)

    def create(api: HfApi, name: str) -> str:
        if inherited_license(model) is None:
            _compare_with_origin(api, _origin(model, ()), facts.license if facts is not None else None)
        return api.create_repo(name, private=private, exist_ok=True).repo_id

    return _ask(repo_id, token, create)


def _left_over(api: HfApi, repo_id: str, revision: str | None, prefix: str) -> set[str]:
    """Files of an earlier publication of a C2FMAE model in the repository; none if it holds another model."""
    paths = api.list_repo_files(repo_id, revision=revision)
    if f"{prefix}config.json" not in paths:
        return set()
    config = Path(api.hf_hub_download(repo_id, f"{prefix}config.json", revision=revision)).read_text(encoding="utf-8")
    if '"c2fmae"' not in config:
        return set()
    code = {path.name for path in Path(__file__).parents[1].glob("*.py")} if '"auto_map"' in config else set()
    ours = {path: path.removeprefix(prefix) for path in paths if path.startswith(prefix)}
    return {path for path, name in ours.items() if name in code or OWN_FILES.fullmatch(name)}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise HubError(
            f"repo_id: expected 'name' or 'owner/name' of letters, digits, '-', '_' and '.', got {repo_id!r}"
        ) from None


def _check_secrets(folder: Path, token: str | bool | None = None) -> None:
    """
    Search all text files for access tokens.

    Raises:
        [`HubError`]: naming the file that holds what looks like an access token.
    """
    secret = token if isinstance(token, str) else get_token()
    for path in _files(folder):
        if path.suffix in (".safetensors", ".png"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if TOKEN_PATTERN.search(text) or (secret and secret in text):
            name = path.relative_to(folder).as_posix()
            raise HubError(f"{name} holds what looks like an access token; remove it. {NOTHING}")


# Answers of the Hub


def _ask(repo_id: str, token: str | bool | None, action: Callable[[HfApi, str], T]) -> T:
    """
    Run an action on a repository and explain the Hub's errors.

    Args:
        action: Called with the client and `owner/name`.

    Raises:
        [`HubError`]: if the Hub refuses or does not answer.
    """
    api = HfApi(token=token)
    settings = f"{api.endpoint}/settings/tokens"
    account: dict[str, Any] = {}
    if token is False or not (token if isinstance(token, str) else get_token()):
        raise HubError(
            f"no access token: run `hf auth login`, or set HF_TOKEN, with a token that may write. {NOTHING}"
        )
    try:
        account = api.whoami()
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":  # OAuth tokens have no role
            raise HubError(
                f"the access token of {account['name']} may only read; make one that may write at {settings}. "
                f"{NOTHING}"
            )
        return action(api, repo_id if "/" in repo_id else f"{account['name']}/{repo_id}")
    except (HTTP_ERROR, OSError, RuntimeError) as error:
        line = _explain(error, api.endpoint, repo_id, account)
        if line is None:
            raise
    raise HubError(line)  # outside the block: the request that hangs on the error holds the token


def _explain(error: BaseException, endpoint: str, repo_id: str, account: dict[str, Any]) -> str | None:
    """One line on a common error; `None` if the error does not come from the Hub."""
    settings = f"{endpoint}/settings/tokens"
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so the Hub cannot be reached; unset it. {NOTHING}"
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # raised by the client's upload
        error = error.__cause__
    if not isinstance(error, (HTTP_ERROR, ConnectionError, TimeoutError)):
        return None
    response = getattr(error, "response", None)
    if response is None:
        return f"no connection to {endpoint} ({type(error).__name__}: {error}); publish again"
    if response.status_code == 401:
        return (
            "the Hub does not accept the access token: it may be mistyped, expired or revoked. Make one that may "
            f"write at {settings} and run `hf auth login`. {NOTHING}"
        )
    if account and response.status_code in (403, 404):
        owners = ", ".join([account["name"], *(one["name"] for one in account.get("orgs", []))])
        return (
            f"{repo_id} is not yours to write to, or not visible: you are {account['name']}, and may write as "
            f"{owners}, unless a fine-grained token lacks the permission (see {settings}); choose another name, or "
            f"open a pull request (create_pr). {NOTHING}"
        )
    said = getattr(error, "server_message", None) or response.reason_phrase
    return f"the Hub answered {response.status_code} {said}; publish again"

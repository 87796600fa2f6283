"""
What a Hub holds and by which rules: accounts, repositories with immutable commits, branches and pull requests, large
objects by their SHA-256. In memory, and without HTTP, which `hub_server` adds.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType


LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class Refusal(Exception):
    """An answer other than 200: its status, the Hub's code for it, if it has one, and its words."""

    def __init__(self, status: int, message: str, code: str | None = None, **details: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.details = status, message, code, details


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to, and what it may do."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()
    expired: bool = False

    def may_write_as(self, owner: str) -> bool:
        return self.role == "write" and owner in (self.name, *self.orgs)


@dataclass(frozen=True)
class File:
    """A file of a commit: in git, or as a pointer to a large object."""

    content: bytes
    is_large: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """Git's SHA-1, of the pointer if the file is large."""
        content = self.content
        if self.is_large:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.blob_id


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    parent: str | None
    files: Mapping[str, File]


@dataclass
class Repository:
    """Commits are never changed; branches and pull requests point to them."""

    name: str
    kind: str = "models"
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add_commit("main", {".gitattributes": File(GIT_ATTRIBUTES)}, "initial commit")

    @property
    def owner(self) -> str:
        """Empty for names without one, which belong to nobody here."""
        return self.name.rpartition("/")[0]

    @property
    def files(self) -> dict[str, bytes]:
        """Contents by path on `main`."""
        return {path: file.content for path, file in self.at("main").files.items()}

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision.removeprefix("refs/heads/"), revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def add_commit(self, branch: str, files: Mapping[str, File], title: str) -> Commit:
        """A commit with exactly these files, and the branch on it."""
        parent = self.branches.get(branch)
        listing = "".join(f"{path} {file.etag}\n" for path, file in sorted(files.items()))
        oid = hashlib.sha1(
            f"{self.kind} {self.name} {parent} {len(self.commits)} {title}\n{listing}".encode()
        ).hexdigest()
        self.commits[oid] = Commit(oid, title, parent, MappingProxyType(dict(files)))
        self.branches[branch] = oid
        return self.commits[oid]

    def pull_requests(self) -> Iterator[tuple[int, Commit]]:
        for branch, oid in self.branches.items():
            if branch.startswith("refs/pr/"):
                yield int(branch.rpartition("/")[2]), self.commits[oid]


class HubState:
    """Everything on the Hub. Requests are answered one at a time where they change it."""

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self.accounts = dict(accounts)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.lock = threading.RLock()

    def account_of(self, token: str | None) -> Account | None:
        """`None` without a token; one that is not accepted is refused wherever it is sent."""
        if token is None:
            return None
        account = self.accounts.get(token)
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if account.expired:
            raise Refusal(401, "User Access Token is expired")
        return account

    def find(self, name: str, kind: str, account: Account | None, *, write: bool = False) -> Repository:
        """
        A repository that the account may read, or write to. One that it may not see is not told apart from one that
        does not exist.
        """
        repository = self.repositories.get(_key(name, kind))
        is_owners = account is not None and repository and repository.owner in (account.name, *account.orgs)
        if repository is None or (repository.private and not is_owners):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write and account is None:
            raise Refusal(401, "Invalid username or password.")
        if write and account is not None and not account.may_write_as(repository.owner):
            raise Refusal(403, "Authorization error.")
        return repository

    def create(self, name: str, kind: str, account: Account | None, private: bool = False) -> Repository:
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        name = name if "/" in name else f"{account.name}/{name}"
        if not account.may_write_as(name.partition("/")[0]):
            raise Refusal(
                403, f'You don\'t have the rights to create a model under the namespace "{name.partition("/")[0]}"'
            )
        if _key(name, kind) in self.repositories:
            raise Refusal(409, "You already created this model repo", url=f"/{_key(name, kind)}")
        return self.add(Repository(name, kind, private))

    def add(self, repository: Repository) -> Repository:
        """Also one that no account could create, such as one without an owner."""
        self.repositories[_key(repository.name, repository.kind)] = repository
        return repository

    def create_branch(self, repository: Repository, branch: str, start: str = "main") -> None:
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[branch] = repository.at(start).oid

    def take_object(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The provided checksum did not match the content")
        self.objects[oid] = content

    def commit(
        self,
        repository: Repository,
        revision: str,
        title: str,
        parent: str | None,
        changes: Mapping[str, bytes | str | None],
        *,
        as_pull_request: bool = False,
    ) -> tuple[Commit, int | None]:
        """
        All changes or none.

        Args:
            changes: By path: content, the SHA-256 of a large object, or `None` to delete the file.

        Returns:
            The commit, and the number of the pull request.
        """
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = repository.at(revision)
        if parent is not None and not as_pull_request and not head.oid.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for path, change in changes.items():
            if change is None and path not in files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            if isinstance(change, str) and change not in self.objects:
                raise Refusal(400, f"Your push was rejected because an LFS object is missing: {path} ({change})")
            if change is None:
                files.pop(path)
            elif isinstance(change, str):
                files[path] = File(self.objects[change], is_large=True)
            else:
                files[path] = File(change)
        number = None
        if as_pull_request:
            number = 1 + max((number for number, _ in repository.pull_requests()), default=0)
            revision = f"refs/pr/{number}"
            repository.branches[revision] = head.oid
        return repository.add_commit(revision, files, title), number


def _key(name: str, kind: str) -> str:
    return name if kind == "models" else f"{kind}/{name}"

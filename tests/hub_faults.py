"""
What goes wrong between a user and a Hub, one case after another: each is made to happen over HTTP, the command is run
as a user runs it, and what the user sees and what is on the Hub afterwards is observed. The table in the documentation
is made of these observations:

    python tests/hub_faults.py > docs/hub_faults.md
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from c2fmae_hf import C2FMAEConfig, C2FMAEForPreTraining, C2FMAEImageProcessor, C2FMAEModel
from c2fmae_hf.publishing.hub import write_repository
from c2fmae_hf.utils.files import file_sha256
from hub_clients import Clients, Finished, command
from hub_server import Fault, HubServer
from hub_state import LFS_SUFFIXES, Account, File, Repository


# They have the form of the Hub's tokens, so that checks for tokens find them, and give no access.
TOKENS = {
    name: f"hf_{name}ForTestsOnly0123456789"
    for name in ("writer", "reader", "fine", "outsider", "expired", "mistyped", "revoked")
}
ACCOUNTS = {
    TOKENS["writer"]: Account("me", orgs=("lab",)),
    TOKENS["reader"]: Account("me", role="read"),
    TOKENS["fine"]: Account("me", role="fineGrained"),
    TOKENS["outsider"]: Account("other"),
    TOKENS["expired"]: Account("me", expired=True),
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
    "num_semantic_classes": 5,
    "segmentation_head_channels": 16,
}
LOAD = """
import sys
from transformers import AutoModel
import c2fmae_hf
AutoModel.from_pretrained(sys.argv[1])
"""
PUSH = command("push")
# The library has read the variable already.
OFFLINE = "import huggingface_hub.constants; huggingface_hub.constants.HF_HUB_OFFLINE = True\n"


@dataclass
class Scene:
    """A Hub, its clients, and a user's models."""

    folder: Path
    hub: HubServer = field(init=False)
    clients: Clients = field(init=False)
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.hub = HubServer(ACCOUNTS)
        self.clients = Clients(self.hub.url, self.home)
        torch.manual_seed(0)
        config = C2FMAEConfig(**TINY)
        models = {"encoder": C2FMAEModel(config), "whole": C2FMAEForPreTraining(config)}
        for name, model in models.items():
            model.save_pretrained(self.folder / name)
            C2FMAEImageProcessor.from_config(model.config).save_pretrained(self.folder / name)
        self.add_published("theirs", C2FMAEModel(config))

    def add_published(self, name: str, model: PreTrainedModel) -> None:
        folder = self.folder / f"{name}-repository"
        write_repository(model, folder, f"me/{name}", processor=C2FMAEImageProcessor.from_config(model.config))
        self.published = {
            path.name: File(path.read_bytes(), path.name.endswith(LFS_SUFFIXES)) for path in sorted(folder.iterdir())
        }
        self.hub.objects.update({file.sha256: file.content for file in self.published.values() if file.is_large})

    def publish(self, repo_id: str, private: bool = False) -> Repository:
        """A repository that has been there before the case."""
        repository = self.hub.add(Repository(repo_id, private=private))
        repository.add_commit("main", {**repository.at("main").files, **self.published}, "published before")
        return repository

    def close(self) -> None:
        self.clients.close()
        self.hub.stop()


@dataclass(frozen=True)
class Case:
    """
    Args:
        kind (`str`): What goes wrong, for the table.
        faults: Of the server.
        loads (`bool`): Whether the user loads, rather than publishes, a model.
        token (*optional*): Which token the user has.
        succeeds (`bool`): Whether the command ends well.
        before: What else is the case, given the scene and the name of the repository.
        repo_id (`str`): By default `me/` and a name of the case.
        times (`int`): How often the user types the command.
        offline (`bool`): Whether `HF_HUB_OFFLINE` is set.
        check: Further assertions.
    """

    kind: str
    faults: Callable[[Scene], list[Fault]] = lambda scene: []
    loads: bool = False
    token: str | None = "writer"
    succeeds: bool = True
    before: Callable[[Scene, str], object] = lambda scene, repo_id: None
    repo_id: str | None = None
    times: int = 1
    offline: bool = False
    check: Callable[[Scene, str], None] = lambda scene, repo_id: None


@dataclass(frozen=True)
class Observation:
    """A row of the table."""

    kind: str
    seen: tuple[str, ...]
    on_the_hub: str

    @property
    def row(self) -> str:
        lines = list(self.seen)
        if len(lines) > 4:
            lines[2:-1] = [f"... ({len(lines) - 3} more of these)"]
        seen = "<br>".join(f"`` {line} ``" if "`" in line else f"`{line}`" for line in lines)
        return f"| {self.kind} | {seen} | {self.on_the_hub} |"


def observe(case: Case, scene: Scene) -> Observation:
    """
    Make it happen.

    Raises:
        `AssertionError`: if something was lost, half published or told to whom it must not be told.
    """
    hub = scene.hub
    repo_id = case.repo_id or "me/" + "-".join(re.findall(r"\w+", case.kind.lower())[:6])
    case.before(scene, repo_id)
    hub.requests.clear()
    faults = case.faults(scene)
    hub.faults[:] = faults
    commits = {name: list(repository.commits) for name, repository in hub.repositories.items()}
    model = scene.folder / "encoder"
    files = {path: file_sha256(path) for path in model.iterdir()}
    results = []
    for _ in range(case.times):
        token = TOKENS[case.token] if case.token else None
        order = (LOAD, repo_id) if case.loads else (PUSH, model, repo_id)
        result = scene.clients.run((OFFLINE if case.offline else "") + order[0], *order[1:], token=token)
        results.append(result)
    hub.faults.clear()
    assert (results[-1].code == 0) == case.succeeds, results[-1].err
    for result in results:
        for token in TOKENS.values():
            assert token not in result.out + result.err
        if not case.loads:
            assert "Traceback" not in result.err, result.err
    assert files == {path: file_sha256(path) for path in model.iterdir()}
    assert hub.unknown == []
    assert not any(request.has_token for request in hub.requests if request.on_storage)
    check_repositories(hub)
    for name, before in commits.items():
        assert list(hub.repositories[name].commits)[: len(before)] == before
        if not (name == repo_id and case.succeeds):
            assert list(hub.repositories[name].commits) == before or any(fault.before for fault in faults)
    case.check(scene, repo_id)
    seen = tuple(line for result in results for line in shown_lines(result, scene))
    return Observation(case.kind, seen, describe_repository(hub, repo_id))


def check_repositories(hub: HubServer) -> None:
    """No commit of any repository has a card without the weights and the configuration, or holds a token."""
    for repository in hub.repositories.values():
        for commit in repository.commits.values():
            for path, file in commit.files.items():
                if path.endswith("README.md"):
                    folder = path.removesuffix("README.md")
                    assert {f"{folder}config.json", f"{folder}model.safetensors"} <= set(commit.files)
                assert not any(token.encode() in file.content for token in TOKENS.values()), path


def describe_repository(hub: HubServer, repo_id: str) -> str:
    repository = hub.repositories.get(repo_id)
    if repository is None:
        return "no repository"
    titles = [commit.title for commit in repository.commits.values()][1:]
    if not titles:
        return "an empty repository"
    if titles == ["published before"]:
        return "what was there before"
    ours = [title for title in titles if title.startswith("Upload ")]
    others = [title for title in titles if title not in ours]
    whole = "everything, in one commit" if len(ours) == 1 else f"{len(ours)} commits"
    if not ours:
        return f"of ours nothing; {', '.join(others)}"
    return f"{whole}, after {', '.join(others)}" if others else whole


def shown_lines(result: Finished, scene: Scene) -> list[str]:
    """What a user reads: output, warnings, and of a traceback the error."""
    errors = re.split(r"^(?:The above exception|During handling of) .*\n", result.err, flags=re.MULTILINE)
    lines = re.split(r"^(?:Traceback |[\w.]+Error\b)", errors[0], flags=re.MULTILINE)[0].splitlines()
    if error := re.search(r"^[\w.]+Error\b", errors[-1], re.MULTILINE):
        lines += errors[-1][error.start() :].splitlines()
    if result.code < 0:
        lines.append("Killed")
    lines += [line.strip() for line in result.out.splitlines() if "/commit/" in line]
    return [shown for line in lines if (shown := _normalized(line, scene)).strip()]


def _normalized(line: str, scene: Scene) -> str:
    line = line.replace(scene.hub.url, "https://hub").replace(scene.hub.storage_url, "https://storage")
    line = line.replace(str(scene.home), "~/.cache/huggingface").replace(str(scene.folder), "models")
    line = line.replace(tempfile.gettempdir(), "/tmp")
    line = re.sub(r"\b[0-9a-f]{40,64}\b", "...", line)
    return re.sub(r"\(id [0-9a-f-]{36}\)", "(id ...)", line)


# The cases


def _always(method: str, path: str, **what) -> Callable[[Scene], list[Fault]]:
    return lambda scene: [Fault(method, path, times=-1, **what)]


def _once(method: str, path: str, **what) -> Callable[[Scene], list[Fault]]:
    return lambda scene: [Fault(method, path, **what)]


COMMIT, UPLOAD = "/commit/", "/objects/"


def _is_sent_once(scene: Scene, repo_id: str) -> None:
    assert scene.hub.count("POST", COMMIT) == 1


def _publish(scene: Scene, repo_id: str) -> None:
    scene.publish(repo_id)


def _publish_privately(scene: Scene, repo_id: str) -> None:
    scene.publish(repo_id, private=True)


def _someone_commits(scene: Scene) -> list[Fault]:
    def commit() -> None:
        repository = scene.hub.repositories["me/the-repository-changes-meanwhile"]
        repository.add_commit("main", {**repository.at("main").files, "notes.txt": File(b"notes")}, "another's commit")

    return [Fault("POST", COMMIT, before=commit)]


def _killed_before_the_commit(scene: Scene) -> list[Fault]:
    return [Fault("POST", COMMIT, before=scene.clients.kill_child, status=503)]


def _forget_objects(scene: Scene, repo_id: str) -> None:
    """So that the same weights are sent again."""
    kept = {file.sha256 for file in scene.published.values()}
    scene.hub.objects = {oid: content for oid, content in scene.hub.objects.items() if oid in kept}


CASES = [
    Case("every connection is reset", _always("GET", "/", reset=True), succeeds=False),
    Case("503, at an upload", _once("PUT", UPLOAD, status=503), before=_forget_objects),
    Case("503, at every upload", _always("PUT", UPLOAD, status=503), succeeds=False, before=_forget_objects),
    Case("503, at every commit", _always("POST", COMMIT, status=503), succeeds=False),
    Case(
        "the answer to the commit is lost; run again",
        _once("POST", COMMIT, lose_answer=True),
        times=2,
        check=_is_sent_once,
    ),
    Case("killed before the commit; run again", _killed_before_the_commit, times=2),
    Case("the repository changes meanwhile", _someone_commits),
    Case("no token", token=None, succeeds=False),
    Case("mistyped or revoked token", token="mistyped", succeeds=False),
    Case("expired token", token="expired", succeeds=False),
    Case("token that may only read", token="reader", succeeds=False),
    Case("fine-grained token without the permission", token="fine", succeeds=False),
    Case("name of another's repository", repo_id="other/theirs", before=_publish, succeeds=False),
    Case("name of another owner", repo_id="other/new", succeeds=False),
    Case("not a name", repo_id="me/not a name", succeeds=False),
    Case("HF_HUB_OFFLINE set", offline=True, succeeds=False),
    Case("load: private repository, no token", loads=True, before=_publish_privately, token=None, succeeds=False),
    Case("load: expired token", loads=True, before=_publish_privately, token="expired", succeeds=False),
    Case("load: HF_HUB_OFFLINE set, never loaded before", loads=True, before=_publish, offline=True, succeeds=False),
]


HEAD = """# When the Hub fails

This table shows what you see when publishing or loading fails, and what is on the Hub afterwards. Each row was run
over HTTP against a local server of the Hub's protocol, with `c2fmae push` or, where it says load, with
`AutoModel.from_pretrained`. Addresses, folders and checksums are shortened, and tracebacks are cut to their last line.
No commit in any repository had a card without weights, or contained a token.

Made by `python tests/hub_faults.py > docs/hub_faults.md`; `tests/test_hub_faults.py` compares it with a new run.

| what goes wrong | what you see | what is on the Hub afterwards |
| --- | --- | --- |"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        try:
            print(HEAD)
            for case in CASES:
                print(observe(case, scene).row, flush=True)
        finally:
            scene.close()


if __name__ == "__main__":
    main()

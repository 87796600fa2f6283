"""
Chains of kills: each run is ended five times, one time in two by a signal to its whole group, resumed each time, and
must end with the weights and the losses of a run that nobody ended, bit for bit. A hundred kills take 15 minutes.

    python tests/kill_chains.py > benchmarks/results/kill_chains.json
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import sys
import tempfile
from collections import Counter
from datetime import date
from importlib import metadata
from pathlib import Path

from c2fmae_hf.training.checkpoints import STAGING_FOLDER
from hub_clients import Clients
from test_kill_and_resume import MAX_STEPS, SCRIPT, draw_moment, last_checkpoint


CHAINS, KILLS = 20, 5
WORKERS = (0, 1, 2, 4)
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


def draw_group_moment(generator: random.Random, last: int) -> str:
    """A signal to the group in a step, a save or an evaluation, soon after the last checkpoint."""
    kind, name = generator.choice(["group", "saving", "evaluating"]), generator.choice(SIGNALS)
    if kind == "group":
        return f"group_{name}-{generator.randint(last, min(last + 4, MAX_STEPS - 2))}"
    every = 3 if kind == "saving" else 4
    step = last - last % every + every
    if step >= MAX_STEPS:
        return f"group_{name}-{min(last, MAX_STEPS - 2)}"
    return f"{kind}_{name}-{step}"


def run_chain(clients: Clients, folder: Path, source: str, workers: int, number: int) -> tuple[dict | None, list]:
    """The last run's output, and how each earlier run was ended."""
    generator, ends = random.Random(number), []
    for kill in range(KILLS):
        last = last_checkpoint(folder)
        is_group = (kill + number) % 2 == 0
        moment = draw_group_moment(generator, last) if is_group else draw_moment(generator, last)
        done = clients.run(SCRIPT, folder, source, workers, 1, MAX_STEPS, moment, environment={"HF_HUB_OFFLINE": "1"})
        name = moment.partition("-")[0].rpartition("_")[2] if is_group else "SIGKILL"
        wanted = 130 if name == "SIGINT" else -signal.Signals[name]
        saved = last_checkpoint(folder)
        is_clean = not is_group or (f"{name}: saved checkpoint-{saved}" in done.err)
        is_clean = is_clean and (not is_group or not (folder / STAGING_FOLDER).exists())
        code = 128 - done.code if done.code < 0 else done.code  # as a shell says it
        ends.append({"moment": moment, "code": code, "as_expected": done.code == wanted and is_clean, "saved": saved})
        print(f"chain {number}, {source}, {workers} workers: {ends[-1]}", file=sys.stderr, flush=True)
        if not ends[-1]["as_expected"]:
            print(done.err[-2000:], file=sys.stderr, flush=True)
    done = clients.run(SCRIPT, folder, source, workers, 1, MAX_STEPS, "never", environment={"HF_HUB_OFFLINE": "1"})
    return json.loads(done.out.strip().splitlines()[-1]) if done.code == 0 else None, ends


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="kill-chains-") as temporary:
        root = Path(temporary)
        clients = Clients("http://127.0.0.1:9", root)
        try:
            whole = {}
            for source in ("map", "stream"):
                done = clients.run(SCRIPT, root / f"whole-{source}", source, 0, 1, MAX_STEPS, "never")
                whole[source] = json.loads(done.out.strip().splitlines()[-1])
            chains: list[dict] = []
            all_ends: list[dict] = []
            for number in range(CHAINS):
                source, workers = ("map", "stream")[number % 2], WORKERS[number // 2 % len(WORKERS)]
                result, ends = run_chain(clients, root / f"chain-{number}", source, workers, number)
                kills = [f"{end['moment']}: {end['code']}, saved {end['saved']}" for end in ends]
                chains.append(
                    {"source": source, "workers": workers, "is_equal": result == whole[source], "kills": kills}
                )
                all_ends += ends
        finally:
            clients.close()
    content = {
        "command": "python tests/kill_chains.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "datasets")},
        "kills": len(all_ends),
        "of_them_by_group": sum("_" in end["moment"] for end in all_ends),
        "ended_as_expected": sum(end["as_expected"] for end in all_ends),
        "codes": dict(sorted(Counter(str(end["code"]) for end in all_ends).items())),
        "chains": len(chains),
        "equal_bit_for_bit": sum(chain["is_equal"] for chain in chains),
        "runs": chains,
    }
    print(json.dumps(content, indent=1))
    return 0 if content["equal_bit_for_bit"] == len(chains) and content["ended_as_expected"] == len(all_ends) else 1


if __name__ == "__main__":
    sys.exit(main())

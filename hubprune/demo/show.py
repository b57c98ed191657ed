"""The whole flow on the demo world, by repository id through the real client, told step by step.

This process serves the embedded Hub and narrates. What talks to it runs in processes of its own, because the client's
libraries read where the Hub and their caches are when they are imported; a user's own token and cache stay out of it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from hubprune import errors
from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.demo.client import COMPARED, PUSHED_ID, RECOVERY, RUNS, SETTINGS, SPARSITY, USER
from hubprune.demo.story import Story, answers, code, perplexity_table
from hubprune.demo.world import examples, write_world
from hubprune.report import REPORT_NAME, PruningReport
from hubprune.resources import resource_folder

FOLDER = Path("demo-hub")
"""Where the Hub and all that belongs to the demo is kept, unless asked otherwise."""
SPACE_ID = "hubprune-demo/prune-my-repo"
COPY = "pushed"
"""Folder for a copy of what was pushed, inside of that."""
LOG = "client.log"
SERVED = "http://127.0.0.1:8080"
"""Where ``hubprune hub serve`` serves unless asked otherwise."""
TOKEN = "hf_demo"
USERS_OWN = ("HF_", "HUGGING", "TRANSFORMERS_")
"""How the names of the variables begin that would bring a user's own settings in."""
CLIENT = ("-P", "-m", "hubprune.demo.client")
PLAIN = ("-P", str(Path(__file__).with_name("plain.py")))
QUESTION = 1
"""Row of the medical test split that the models are asked; the base knows the answer."""


def run_demo(folder: Path | None = None, serve: bool = False, allow_spaces: bool = False) -> None:
    """Serve the demo world, prune its model with two methods, recover and push one, and load it as a stranger would.

    Args:
        folder: Where the Hub and all that belongs to the demo is kept; a later run goes on there. ``demo-hub`` when
            None.
        serve: Whether to keep the Hub running afterwards, until Ctrl-C.
        allow_spaces: Whether it runs the apps and the jobs that its users start.

    Raises:
        UsageError: The packages of the extra ``demo`` are not installed.
        OutputError: The folder cannot be written.
        HubPruneError: The client failed.
    """
    try:
        from hubprune.localhub import EmbeddedHub
    except ModuleNotFoundError as error:
        raise errors.UsageError(
            f'the demo needs {error.name}, which is not installed: pip install "hubprune[demo]"'
        ) from error
    folder = FOLDER if folder is None else folder
    story = Story()
    with ExitStack() as stack:
        with story.step("Serve an embedded Hub with a tiny model and three corpora") as told:
            hub = EmbeddedHub(
                folder,
                users={USER: TOKEN},
                pro={USER},
                seed=[_with_space(write_world(folder / "world"))],
                allow_jobs=allow_spaces,
                allow_spaces=allow_spaces,
            )
            stack.enter_context(hub)
            told.append(", ".join((MODEL_ID, GENERAL_ID, MEDICAL_ID, LEGAL_ID)))
        _walk(story, folder, _environment(hub.env(USER), folder / "cache"))
        story.close(_places(folder, hub.url if serve else None, allow_spaces))
        if serve:
            ended = threading.Event()
            signal.signal(signal.SIGTERM, lambda *_: ended.set())  # so that what the Hub runs ends with it
            with suppress(KeyboardInterrupt):
                ended.wait()


def _with_space(world: Path) -> Path:
    """Add the Space in which models are pruned to the folder of the world."""
    place = world / "spaces" / SPACE_ID
    skip = shutil.ignore_patterns("__pycache__")
    try:
        shutil.copytree(resource_folder("spaces") / place.name, place, dirs_exist_ok=True, ignore=skip)
    except OSError as error:
        raise errors.OutputError(f"cannot write {place} ({error}): make room or give another folder") from error
    return world


def _places(folder: Path, url: str | None, allow_spaces: bool = False) -> dict[str, str]:
    """Return where to look: at a Hub that goes on running at ``url``, or at one to serve again when None."""
    again = {} if url else {"serve the Hub again": f"hubprune hub serve {shlex.quote(str(folder))}"}
    if url and allow_spaces:
        again["prune in the browser"] = f"{url}/spaces/{SPACE_ID}, signed in with {TOKEN}"
    return {
        "model card": str(folder / COPY / "README.md"),
        "record of the run": str(folder / COPY / REPORT_NAME),
        **again,
        "page of the model": f"{url or SERVED}/{PUSHED_ID}",
        "page of its Space": f"{url or SERVED}/spaces/{PUSHED_ID}",
        "point clients at this Hub": f"export HF_ENDPOINT={url or SERVED}",
        "run the Space here": f"hubprune space {PUSHED_ID} --preview",
        **({"stop the Hub": "Ctrl-C"} if url else {}),
    }


def _walk(story: Story, folder: Path, environment: Mapping[str, str]) -> None:
    """Go through what a user does with a Hub: prune by repository id, push, load."""
    with (folder / LOG).open("w", encoding="utf-8") as notes, ExitStack() as stack:
        with story.step("Start a client that knows this Hub only; load torch and transformers") as told:
            answer = stack.enter_context(_client(folder / COPY, environment, notes))
            answer()
            told.append(f"HF_ENDPOINT={environment['HF_ENDPOINT']}")
        reports = {}
        for method, corpora in RUNS.items():
            with story.step(f"Fetch the model, measure it, prune it with {method}, measure it again") as told:
                reports[method] = PruningReport.from_dict(answer()["report"])
                told.append(code(_recipe(method, corpora)))
        with story.step("Recover what that cost: a LoRA, trained and merged under the mask") as told:
            report = reports[method] = PruningReport.from_dict(answer()["report"])
            told.append(code(f"model.recover({', '.join(f'{name}={value}' for name, value in RECOVERY.items())})"))
            told.append(f"all {report.recovery.zeros_kept:,} zeros are zero still" if report.recovery else "")
        with story.step("Let it and its base answer the same prompts, and weigh both, for the card") as told:
            answer()
            told.append(code(f"model.evaluate({', '.join(f'{name}={value}' for name, value in COMPARED.items())})"))
        with story.step(
            "Verify the saved files, push them in one commit, and a Space that shows them in another"
        ) as told:
            pushed = answer()
            told.append(code(f'model.push_to_hub("{PUSHED_ID}", space=True)'))
            told.append(f"{pushed['checks']} checks passed, commit {pushed['commit'][:7]}, Space {pushed['space']}")
        question = examples("medical")["test"][QUESTION]["question"]
        with story.step("Load what was pushed in a fresh process, with plain transformers") as told:
            said = _ask(f"Question: {question}\nAnswer:", environment, notes)
            told.append(code(f'AutoModelForCausalLM.from_pretrained("{PUSHED_ID}")'))
    story.show(perplexity_table(reports))
    story.show(answers(question, {"before": said[MODEL_ID], "after": said[PUSHED_ID]}))


def _recipe(method: str, corpora: Mapping[str, str]) -> str:
    keywords = {"method": method, "sparsity": SPARSITY, **corpora, **SETTINGS}
    given = ", ".join(f"{name}={json.dumps(value)}" for name, value in keywords.items())
    return f'model = AutoPrunedModelForCausalLM.from_pretrained("{MODEL_ID}", {given}, evaluation=...)'


def _environment(hub: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Return what a client finds: this process' environment without the user's own settings, and the embedded Hub.

    Args:
        hub: Variables that point a client at the Hub.
        cache: Folder for the client's caches.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(USERS_OWN)}
    own = {
        "HF_HOME": str(cache.resolve()),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MPLCONFIGDIR": str(cache.resolve() / "matplotlib"),
        # A second thread has nothing to do in so small a model, and on a busy machine the first would wait for it.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(cache.resolve() / "torch"),
    }
    return {**kept, **hub, **own}


@contextmanager
def _client(copy: Path, environment: Mapping[str, str], notes: IO[str]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start the client, and stop it at the end; yields a function that waits for its next answer.

    Args:
        copy: Folder for a copy of what is pushed.
        environment: Its environment.
        notes: Where its libraries' warnings go.
    """
    command = [sys.executable, *CLIENT, str(copy)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=notes, text=True) as process:
        lines = cast(IO[str], process.stdout)

        def answer() -> dict[str, Any]:
            line = lines.readline()
            if not line:
                raise _failure(notes)
            said: dict[str, Any] = json.loads(line)
            if "error" in said:
                raise getattr(errors, said["kind"])(said["error"])
            return said

        try:
            yield answer
        finally:
            process.kill()


def _ask(prompt: str, environment: Mapping[str, str], notes: IO[str]) -> dict[str, str]:
    """Return what the base and the pushed model answer when plain transformers loads them, by repository."""
    command = [sys.executable, *PLAIN, prompt, MODEL_ID, PUSHED_ID]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=notes, text=True, check=False)
    if done.returncode != 0:
        raise _failure(notes)
    said: dict[str, str] = json.loads(done.stdout)
    return said


def _failure(notes: IO[str]) -> errors.HubPruneError:
    lines = Path(notes.name).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")
    return errors.HubPruneError(f"the demo's client stopped before it was done ({last}): {notes.name} says more")

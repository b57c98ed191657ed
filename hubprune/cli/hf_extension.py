"""``hf prune``: the same as ``hubprune prune``, as an extension of the Hub's own command line.

That one runs the executable which a manifest below the user's home names; ``hf extensions install`` writes it for a
repository on GitHub, and ``hf-prune --register`` for the package that is installed here.
"""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from hubprune import __version__
from hubprune.cli import MISTAKE, main

COMMAND = "prune"
EXECUTABLE = f"hf-{COMMAND}"
# No account on GitHub can have a name with "_": an update of extensions never fetches somebody else's code.
OWNER = "_local"


def hf_prune() -> int:
    """Run ``hf-prune``; returns the exit code of ``hubprune prune``."""
    words = sys.argv[1:]
    return register() if words == ["--register"] else main([COMMAND, *words])


def register() -> int:
    """Tell the Hub's command line of this executable; returns the exit code."""
    from huggingface_hub.cli.extensions import EXTENSIONS_ROOT, ExtensionManifest

    found = shutil.which(EXECUTABLE, path=str(Path(sys.executable).parent)) or shutil.which(EXECUTABLE)
    if found is None:
        print(f"error: {EXECUTABLE} is not installed beside {sys.executable}: pip install hubprune", file=sys.stderr)
        return MISTAKE
    manifest = ExtensionManifest(
        owner=OWNER,
        repo=EXECUTABLE,
        repo_id=f"{OWNER}/{EXECUTABLE}",
        short_name=COMMAND,
        executable_path=found,
        type="binary",
        installed_at=datetime.now(UTC),
        description=f"Prune a model for a domain (hubprune {__version__}).",
    )
    manifest.save(EXTENSIONS_ROOT.expanduser() / EXECUTABLE)
    print(f"hf {COMMAND} runs {found}; hf extensions remove {COMMAND} takes it away")
    return 0

"""Releases this checkout: checks, wheel, weights to the Hub, pins; RELEASING.md has the steps.

make release ORG=name
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token

from cgh_models.errors import ERRORS, InputError, printable, say, shell_command
from cgh_models.hub.sources import plain_errors, retry_if_busy
from cgh_models.version import __version__

from .publishing import publish_rows
from .tables import REPO, write

CHECKS = {"all": ".ci/run", "quick": ".ci/quick"}


def ready(org: str, checks: str) -> None:
    """Raises InputError unless checkout, version, token and ORG are what a release needs."""
    if not org or checks not in CHECKS:
        raise InputError("expected `make release ORG=name`, and CHECKS=all or CHECKS=quick")
    changes = _git("status", "--porcelain", "-z", "--no-renames")
    if changes is None:
        raise InputError(f"{printable(REPO)}: no checkout of git; `git clone` makes one")
    for path in [change[3:] for change in changes.split("\0") if change]:
        if not _as_committed(path):
            hint = f"{shell_command('git', 'add', path)} and `git commit`, or take it away"
            raise InputError(f"{printable(path)}: is not as it was committed; {hint}")
    tag = f"v{__version__}"
    if _git("tag", "--list", tag) and tag not in (_git("tag", "--points-at", "HEAD") or "").split():
        hint = f"commit another version in cgh_models/version.py, or `git checkout {tag}`"
        raise InputError(f"{tag}: is a tag of another commit; {hint}")
    if not get_token():
        raise InputError("no token of the Hub is here; `hf auth login`, or set HF_TOKEN")
    with plain_errors(constants.ENDPOINT, REPO, 0):
        who = retry_if_busy(HfApi().whoami)
    names = [who["name"], *(found["name"] for found in who.get("orgs", []))]
    if org not in names:
        reason = f"the token is of {', '.join(names)}; give one of these, or log in as another"
        raise InputError(f"ORG={printable(org)}: {reason}")


def _git(*words: str) -> str | None:
    """What git prints; None if it refuses."""
    done = subprocess.run(["git", *words], cwd=REPO, capture_output=True, encoding="utf-8")
    return None if done.returncode else done.stdout.strip("\n")


def _as_committed(path: str) -> bool:
    """Whether a file differs from its commit in nothing but what a release writes."""
    committed = _git("show", f"HEAD:{path}")
    if committed is None or not path.endswith((".json", ".md")) or not (REPO / path).is_file():
        return False
    written = r'"hub": (?:null|\{[^{}]*\})|<!-- (weights|rows) -->.*<!-- /\1 -->'
    texts = committed, (REPO / path).read_text("utf-8").strip("\n")
    before, now = (re.sub(written, "", text, flags=re.S) for text in texts)
    return before == now


def check(checks: str) -> None:
    """Runs the checks, unless they passed for this commit already. Raises InputError."""
    record, passed = REPO / "dist" / ".checked", f"{_git('rev-parse', 'HEAD')} {checks}"
    if record.is_file() and record.read_text() == passed:
        return print("passed for this commit before")
    _call(CHECKS[checks])
    record.parent.mkdir(exist_ok=True)
    record.write_text(passed)


def _call(*words: str) -> None:
    """Runs a command, which gets no token. Raises InputError if it fails."""
    env = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    if subprocess.run(words, cwd=REPO, env=env).returncode:
        raise InputError(
            f"{shell_command(*words)} failed; mend what it says, then `make release` again"
        )


def main() -> None:
    """Every step, each named before it begins; an error ends it with one line."""
    org, checks = sys.argv[1:]
    try:
        print("== checkout, version, token", flush=True)
        ready(org, checks)
        print("== checks", flush=True)
        check(checks)
        print("== wheel and sdist", flush=True)
        _call(".ci/wheel", "dist")
        print("== weights", flush=True)
        pinned = publish_rows(org)
        print("== tables", flush=True)
        write()
        if pinned:
            print("== wheel and sdist with the pins", flush=True)
            _call(".ci/wheel", "dist")
        print(f"== done, {pinned} rows pinned; what is left by hand: RELEASING.md")
    except ERRORS as error:
        say(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        say("interrupted; `make release` again goes on")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

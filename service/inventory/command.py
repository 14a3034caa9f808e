"""The command: `python -m service artifacts list | verify | diff | prune`. Knows what is asked, and how it is said."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from service.artifact import MANIFEST
from service.engine import open_engine
from service.errors import Unknown
from service.inventory import comparison, holdings, pruning
from service.inventory.holdings import Holding
from service.models import Key
from service.settings import Settings

Say = Callable[[str], None]
SOUND, FOUND, TROUBLE = 0, 1, 2  # exit statuses: as it should be, something was found, it can't be said


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add what it takes to a command line."""
    top = commands.add_parser("artifacts", help="list, verify, compare and prune the artifacts on disk")
    works = top.add_subparsers(dest="work", required=True)
    listed = works.add_parser("list", help="what lies in a folder, and which version is the default")
    verified = works.add_parser("verify", help="all that the service checks before it serves, golden rows included")
    compared = works.add_parser("diff", help="what differs between two versions; 1 where anything does")
    pruned = works.add_parser("prune", help="remove old versions, and never the default")
    for one in (listed, pruned):
        one.add_argument("folder", type=Path, nargs="?", help="of artifacts (default VAE_SERVE_MODELS)")
    verified.add_argument("folder", type=Path, nargs="*", help="artifacts, or folders of them (VAE_SERVE_MODELS)")
    for which in ("before", "after"):
        compared.add_argument(which, help="NAME/VERSION in VAE_SERVE_MODELS, or an artifact's folder")
    pruned.add_argument("--keep", type=_count, default=3, help="newest versions to keep of each name (default 3)")
    pruned.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")


def run(settings: Settings, asked: argparse.Namespace, say: Say) -> int:
    """Do what is asked; the exit status. Unknown where there is nothing to do it to."""
    match asked.work:
        case "list":
            return _list(settings, asked.folder or settings.models, say)
        case "verify":
            return _verify(settings, asked.folder or [settings.models], say)
        case "diff":
            return _diff(_found(settings, asked.before), _found(settings, asked.after), say)
        case _:
            return _prune(settings, asked.folder or settings.models, asked.keep, asked.yes, say)


def _list(settings: Settings, folder: Path, say: Say) -> int:
    held = holdings.holdings(folder)
    for line in holdings.table(held, settings.default_versions, settings.state):
        say(line)
    return FOUND if any(one.refused for one in held) else SOUND


def _verify(settings: Settings, folders: list[Path], say: Say) -> int:
    opener = partial(open_engine, device=settings.device)
    refused = 0
    for folder in [path for given in folders for path in holdings.artifacts(given)]:
        try:
            said = f"sound    {folder}: {holdings.verify(folder, opener, settings.state)}"
        except Exception as error:  # whatever it is, the service would refuse this one and go on
            refused += 1
            said = f"refused  {folder}: {error}"
        say(said)
    return FOUND if refused else SOUND


def _diff(before: Holding, after: Holding, say: Say) -> int:
    if before.manifest is None or after.manifest is None:
        raise Unknown("; ".join(f"{one.folder}: {one.refused}" for one in (before, after) if one.refused))
    say(f"{_named(before.key)} → {_named(after.key)}")
    lines = list(comparison.compare(before.manifest, after.manifest))
    for line in lines or ["no difference but the name and version"]:
        say(line)
    return FOUND if lines else SOUND


def _prune(settings: Settings, folder: Path, keep: int, sure: bool, say: Say) -> int:
    found = pruning.plan(folder, keep, settings.default_versions)
    for key, reason in found.left.items():
        say(f"left     {_named(key)}: {reason}")
    for one in found.removed:
        if sure:
            pruning.remove(one)
        say(f"{'removed' if sure else 'would go'}  {_named(one.key)}, {holdings.measure(one.size)}")
    if found.removed and not sure:
        say("nothing was removed; say --yes to remove these")
    elif not found.removed:
        say(f"nothing to remove: no name has more than {keep} whole version{'s' if keep > 1 else ''} to spare")
    return SOUND


def _found(settings: Settings, asked: str) -> Holding:
    """An artifact by its folder, or by NAME/VERSION."""
    for folder in (Path(asked), settings.models / asked):
        if (folder / MANIFEST).is_file():
            return holdings.glance(folder)
    raise Unknown(f"{asked} is neither an artifact's folder nor NAME/VERSION in {settings.models}")


def _named(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _count(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and 1 <= int(word) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{word} is not a number of versions; keep 1 at the least")
    return int(word)

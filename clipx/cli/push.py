"""`clipx push`: an export goes to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from clipx.cli.output import say
from clipx.errors import some_names


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `clipx export` wrote.", show_default=False)],
    to: Annotated[str, typer.Argument(metavar="hf://ORG/NAME[@BRANCH]", help="Where to.", show_default=False)],
    *,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who may see a new page; one that is there stays as it is.")
    ] = True,
) -> None:
    """Put an export on the Hugging Face hub, in one commit, if its parity.json holds and no file has changed.

    The card (README.md) may be edited before; add `license` to its head. Needs a token (`hf auth login` or HF_TOKEN).
    """
    from clipx.export.push import push as push_export

    pushed = push_export(folder, to, private=private)
    done = pushed.uploaded
    seen = "private" if done.private else "public"
    say(f"{pushed.num_files} files, {done.num_bytes / 1e6:.1f} MB, at {done.url} ({seen})")
    if done.private != private:
        say(f"the page was there before and stays {seen}; its settings at the hub change that")
    if done.removed:
        say(f"removed there, as the export has them no more: {some_names(done.removed)}")
    if pushed.shortened:
        say(f"whole paths of this machine went by their last part alone: {some_names(pushed.shortened)}")
    if pushed.left_out:
        say(f"not of the export, and left here: {some_names(pushed.left_out)}")

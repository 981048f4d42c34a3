"""Hook of mkdocs: the pages that are made when the site is built, from what already says it.

A page per command from its own help; the README as the front page; CONTRIBUTING and CHANGELOG. None of them is kept in
the repository. Links of documents to each other are those of the repository, and become those of the site.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from clipx.cli import app

ROOT = Path(__file__).resolve().parents[1]
_COPIED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_GROUPS = ("data", "launch")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of the commands behind those that the file names."""
    pages = [_address(name) for name, _ in commands()]
    config.nav = [*config.nav, {"Commands": pages}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    for name, target in _COPIED.items():
        files.append(File.generated(config, target, content=(ROOT / name).read_text()))
    for name, command in commands():
        files.append(
            File.generated(config, f"commands/{name.replace(' ', '_')}.md", content=command_page(name, command))
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links within the repository into links within the site; what the site has not becomes plain text."""

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        name = target.removeprefix("../").removeprefix("docs/")
        name = _COPIED.get(name, name)
        if files.get_file_from_path(name) is None:
            return text
        return f"[{text}]({'../' * page.file.src_uri.count('/')}{name})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([\w./]+)\)", link, markdown)


def command_page(name: str, command: Any) -> str:
    """The page of a command: what it does, its arguments and its options."""
    arguments = [parameter for parameter in command.params if not parameter.opts[0].startswith("-")]
    options = [parameter for parameter in command.params if parameter not in arguments and not parameter.hidden]
    usage = " ".join([f"clipx {name}", *map(_usage, arguments), "[OPTIONS]" if options else ""]).strip()
    lines = [f"# clipx {name}", "", command.help, "", "```text", usage, "```", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{_name(parameter)}` | {_cell(parameter.help)} |" for parameter in arguments]
        lines.append("")
    if options:
        lines += ["| option | default | |", "|---|---|---|"]
        lines += [f"| {_flags(option)} | {_default(option)} | {_cell(option.help)} |" for option in options]
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those of groups too."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if name not in _GROUPS:
            yield name, command
        for inner_name, inner in getattr(command, "commands", {}).items():
            yield f"{name} {inner_name}", inner


def _address(name: str) -> str:
    return f"commands/{name.replace(' ', '_')}.md"


def _name(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _usage(parameter: Any) -> str:
    name = _name(parameter) + (" ..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _flags(option: Any) -> str:
    flags = [f"`{flag}`" for flag in (*option.opts, *option.secondary_opts)]
    value = "" if option.is_flag else f" `{option.metavar or _choices(option) or _kind(option)}`"
    return f"{', '.join(flags)}{value}"


def _choices(option: Any) -> str:
    """The values of an option that has few."""
    annotation = option.type_descriptor.annotation
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return "|".join(map(str, get_args(kind)))
    return ""


def _kind(option: Any) -> str:
    return getattr(option.type_descriptor.annotation, "__name__", "value").upper()


def _default(option: Any) -> str:
    if option.required:
        return "needed"
    shown = option.show_default and option.default not in (None, False, "") and not callable(option.default)
    return f"`{option.default}`" if shown else ""


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;")

"""What a run was: its config, and what of it is no default; versions; the machines."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from clipx.config.load import dump_config
from clipx.pages import Html, joined, paragraph, section, table, text
from clipx.report.recorded import Recorded

_NO_DEFAULT = "has none"
_MOST_LETTERS = 400  # of a value


def setup(run: Recorded) -> Html:
    """Config and versions."""
    parts: list[Html] = []
    if run.config is None:
        parts.append(paragraph(f"The config cannot be read: {run.config_problem}"))
    else:
        chosen = [(key, shown(value), default) for key, value, default in chosen_keys(run.config)]
        caption = "Keys that are not at their default"
        parts.append(table(("key", "value", "default"), chosen, caption=caption))
        resolved = text(dump_config(run.config))
        parts.append(Html(f"<details><summary>The whole config</summary><pre>{resolved}</pre></details>"))
    if run.versions:
        parts.append(section("Versions", table(("library", "version"), sorted(run.versions.items())), level=3))
    return joined(parts, "\n")


def chosen_keys(config: Any, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """The keys of a config whose values are not the schema's defaults: dotted key, value, what the default is."""
    for item in fields(config):
        value, key = getattr(config, item.name), f"{prefix}{item.name}"
        default = _default(item)
        if is_dataclass(value):
            kind, default_kind = getattr(value, "type", None), getattr(default, "type", None)
            if default is None:  # a section that is left out by default, and stands here
                yield key, "given", "null"
            elif kind != default_kind and default is not MISSING:
                yield f"{key}.type", kind, shown(default_kind)
            yield from chosen_keys(value, f"{key}.")
        elif isinstance(value, dict) and any(map(is_dataclass, value.values())):
            for name, part in value.items():
                own = list(chosen_keys(part, f"{key}.{name}.")) if is_dataclass(part) else []
                yield from own or [(f"{key}.{name}", "given" if is_dataclass(part) else part, _NO_DEFAULT)]
        elif item.name == "type":
            continue
        elif default is MISSING:
            yield key, value, _NO_DEFAULT
        elif value != default:
            yield key, value, shown(default)


def shown(value: object) -> str:
    """A value of a config in one line, cut if it is long."""
    if isinstance(value, list | tuple):
        line = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, Mapping):
        line = "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    elif value is None:
        line = "null"
    else:
        line = str(value).lower() if isinstance(value, bool) else str(value)
    return line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}..."


def _default(item: "Field[Any]") -> object:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else MISSING

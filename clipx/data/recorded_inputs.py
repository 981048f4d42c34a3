"""Inputs by what was written down of them, so that a later process reads the same items by the same numbers."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipx.config.paths import expand_home
from clipx.data.inputs import InputOptions, Inputs, open_inputs
from clipx.data.rows.dialects import TextFormat
from clipx.data.rows.opening import SourceOptions
from clipx.data.rows.row import TableColumns
from clipx.errors import InputError
from clipx.printable import REDACTED, redacted
from clipx.storage.files import is_local


def record_of(inputs: Inputs) -> dict[str, Any]:
    """What `reopen` needs, as JSON keeps it: addresses as they were given, without secrets, and from which folder."""
    options = asdict(inputs.options)
    folder = options["source"]["image_folder"]
    options["source"]["image_folder"] = None if folder is None else str(folder)
    return {"folder": os.getcwd(), "addresses": redacted(list(inputs.addresses)), "options": redacted(options)}


def reopen(record: Mapping[str, Any]) -> Inputs:
    """The inputs of a record, from any folder.

    Raises:
        InputError: they are not there any more, had secrets in their addresses, or the record is damaged.
    """
    try:
        addresses = [at_folder(record, address) for address in record["addresses"]]
        source = dict(record["options"]["source"])
        folder, index = source["image_folder"], source["index"]
        options = InputOptions(
            image_key=record["options"]["image_key"],
            caption_key=record["options"]["caption_key"],
            source=SourceOptions(
                columns=TableColumns(**source["columns"]),
                text_format=TextFormat(**source["text_format"]),
                image_folder=None if folder is None else Path(at_folder(record, folder)),
                splits=tuple(source["splits"]),
                index=None if index is None else at_folder(record, index),
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the record of the inputs is damaged ({error}); embed again") from error
    if secret := next((address for address in addresses if REDACTED in address), None):
        raise InputError(f"{secret} had a secret that is not stored; its pictures cannot be read again")
    return open_inputs(addresses, options)


def at_folder(record: Mapping[str, Any], name: str) -> str:
    """A path, or what begins with one, as it is called from the root folder; an address as it is."""
    if not is_local(name):
        return name
    parts = [os.path.join(record["folder"], expand_home(part)) for part in name.split("::")]  # lists of shards
    return "::".join(map(os.path.normpath, parts))

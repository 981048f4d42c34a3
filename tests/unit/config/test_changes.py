"""What differs between two configs, in the words of their keys."""

from dataclasses import replace
from pathlib import Path

from tiny import tiny_config

from clipx.config.changes import changes_between, named


def test_mappings_with_free_keys_are_named_by_their_keys_alone(tmp_path: Path) -> None:
    before = tiny_config(tmp_path, "0.tar")
    after = tiny_config(tmp_path, "0.tar", "stages.small={until_step: 3}")
    assert named(changes_between(before, after)) == "stages.small.until_step: None -> 3"
    assert named(changes_between(after, before)) == "stages.small.until_step: 3 -> None"
    evaluated = tiny_config(tmp_path, "0.tar", "evaluate.seen={type: zeroshot, data: sets}")
    assert changes_between(before, evaluated)["evaluate.seen.type"] == (None, "zeroshot")
    bare = replace(before, model=replace(before.model, image=replace(before.model.image, options={})))
    keys = {f"model.image.options.{name}" for name in before.model.image.options}
    assert changes_between(bare, before).keys() == keys == changes_between(before, bare).keys()

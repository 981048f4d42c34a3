"""What the config of chosen batches takes, and the one clear line where it does not."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_config

from clipx.config.load import dump_config, load_config
from clipx.config.schema import RunConfig
from clipx.config.select import SelectConfig
from clipx.errors import InputError

HARD = "select={keep: 0.5, score: hard_learner, chunks: 4}"


def _config(*overrides: str) -> RunConfig:
    return tiny_config(Path("runs/tiny"), "none.tar", *overrides)


def _refused(*overrides: str) -> str:
    with pytest.raises(InputError) as error:
        _config(*overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("keep", "size"), [(1.0, 24), (0.5, 48), (0.3, 80), (0.333333, 72), (0.96, 25), (0.00024, 100_000)]
)
def test_a_share_that_gives_whole_pairs(keep: float, size: int) -> None:
    config = _config(HARD, f"select.keep={keep}")
    assert config.pairs_read == size
    assert config.global_batch_size == 24
    assert _config().pairs_read == 24


def test_a_share_that_does_not_names_the_nearest() -> None:
    message = _refused(HARD, "select.keep=0.7")
    assert message == (
        "select.keep=0.7: global_batch_size=24 / keep = 34.2857143 is no whole number of pairs; nearest keep that "
        "works: 0.705882353 (34 pairs), 0.685714286 (35 pairs)"
    )
    for keep in (0.705882353, 0.685714286):
        _config(HARD, f"select.keep={keep}")
    select = SelectConfig(keep=0.5, score="hard_learner")
    assert select.super_batch_size(24, 4) == 48
    with pytest.raises(InputError, match=r"12 \(24 pairs|select.keep=0.5: .*that 5 processes can share") as error:
        select.super_batch_size(24, 5)
    for suggested in str(error.value).partition("works: ")[2].split(", "):
        keep = float(suggested.partition(" ")[0])
        assert SelectConfig(keep=keep).super_batch_size(24, 5) % 5 == 0


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, "true"])
def test_a_share_is_above_0_and_at_most_1(keep: object) -> None:
    assert _refused(HARD, f"select.keep={keep}").endswith("expected number > 0 and <= 1")


def test_rules_between_keys() -> None:
    assert _refused("select={keep: 0.5, chunks: 4}") == (
        "select.score=learnability compares with a reference: set select.reference to a folder of `clipx data teach`, "
        "or select.score=hard_learner"
    )
    assert _refused(HARD, "select.reference=store").startswith(
        "select.score=hard_learner has no use for select.reference=store; leave it out"
    )
    for key, value in {"teacher": "who", "logit_scale": "3.0", "logit_bias": "-2.5"}.items():
        assert _refused(HARD, f"select.{key}={value}") == (
            f"select.score=hard_learner has no use for select.{key}={value}; leave it out, or set "
            "select.score=learnability"
        )
    assert _refused("select={keep: 0.5, chunks: 4, reference: store, score: easy_reference, image_size: 16}") == (
        "select.score=easy_reference has no use for select.image_size=16; leave it out, or set "
        "select.score=learnability"
    )
    assert _refused("select={keep: 0.5, chunks: 4, reference: store, logit_bias: 3}") == (
        "select.logit_bias=3 is of loss.type=sigmoid, and the loss is info_nce; leave it out"
    )
    sigmoid = ("loss.type=sigmoid", "model.init_logit_bias=-10")
    for score in ("learnability", "easy_reference"):
        reference = f"select={{keep: 0.5, chunks: 4, reference: store, score: {score}}}"
        assert _refused(reference, *sigmoid).startswith(
            f"select.score={score} with loss.type=sigmoid needs the reference's bias; set select.logit_bias"
        )
        _config(reference, *sigmoid, "select.logit_bias=-13")
    _config(HARD, *sigmoid)
    assert _refused("select={keep: 0.5, chunks: 5, reference: store}") == (
        "select.chunks=5 does not divide global_batch_size=24; nearest that do: 4, 6"
    )
    assert "give both the same folder" in _refused(
        "select={keep: 0.5, chunks: 4, reference: store}", "data.teachers=others"
    )
    for teachers in ("./store", "store/", str(Path.cwd() / "store")):
        _config("select={keep: 0.5, chunks: 4, reference: store}", f"data.teachers={teachers}")
    assert "pairs are chosen one by one" in _refused(HARD, "data.captions_per_image=2")
    assert _refused(HARD, "select.image_size=64").startswith("select.image_size=64 is above model.image.image_size=32")
    assert _refused("track.samples=true") == (
        "track.samples=true names what `select` has chosen, and nothing is chosen; leave it out"
    )
    assert _refused(HARD, "data.lanes=36") == (
        "data.lanes=36 does not divide global_batch_size / select.keep=48; choose a divisor"
    )
    _config(HARD, "data.lanes=48")


def test_a_reference_is_the_store_whose_views_are_seen(tmp_path: Path) -> None:
    config = _config("select={keep: 0.5, chunks: 4, reference: store}")
    assert config.teachers == ("select.reference", "store")
    assert config.data.teachers is None
    assert replace(config, select=None).teachers is None
    assert config.select is not None
    assert replace(config, select=replace(config.select, reference="other")).teachers == ("select.reference", "other")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config([tmp_path / "config.yaml"], []) == config

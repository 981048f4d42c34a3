"""The line that a person is shown of a fit run's evaluation."""

from fitted_models import resolved_config

from clipx.train.held_out import headline

SCORES = {
    "loss": 1.25,
    "category/accuracy": 0.5,
    "category/accuracy_without_image": 0.25,
    "category/auroc": 0.75,
    "price/r2": -0.125,
}


def test_a_figure_of_each_target_where_it_is_defined() -> None:
    assert headline(resolved_config(), SCORES) == "loss 1.2500  category/accuracy 0.5000  price/r2 -0.1250"
    assert headline(resolved_config(), {}) == ""

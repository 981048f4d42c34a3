"""What is measured with the help of a set's training part: a linear probe, nearest neighbours."""

from torch.distributed import ProcessGroup

from clipx.data.labelled import ClassificationSet
from clipx.evaluate.features import Features, image_features
from clipx.evaluate.knn import nearest_neighbours
from clipx.evaluate.options import EvaluateOptions, Evaluation
from clipx.evaluate.probe import few_shot_probe, linear_probe
from clipx.pretrained import Pretrained


def from_training_part(
    pretrained: Pretrained,
    test_set: ClassificationSet,
    train_set: ClassificationSet,
    options: EvaluateOptions,
    *,
    group: ProcessGroup | None,
) -> tuple[Evaluation, ...]:
    """The evaluations that `options` ask for, the same on all ranks; every rank of `group` must call it.

    Raises:
        InputError: an image cannot be decoded, or the parts do not suit the evaluations.
    """

    def features(part: ClassificationSet) -> Features:
        return image_features(
            pretrained, part, batch_size=options.batch_size, group=group, cache=options.cache, decode=options.decode
        )

    train, test, names = features(train_set), features(test_set), test_set.class_names
    device, resamples = pretrained.device, options.resamples
    found = []
    if (k := options.neighbours) is not None:
        found.append(
            nearest_neighbours(train, test, class_names=names, k=k, resamples=resamples, device=device, group=group)
        )
    if options.shots:
        shots, seeds = options.shots, options.num_seeds
        found.append(
            few_shot_probe(train, test, class_names=names, shots=shots, num_seeds=seeds, device=device, group=group)
        )
    if options.probe:
        found.append(linear_probe(train, test, class_names=names, resamples=resamples, device=device, group=group))
    return tuple(found)

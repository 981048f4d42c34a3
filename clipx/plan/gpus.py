"""Whether a number of GPUs divides a batch; imports no torch, so that it is said at once."""

from clipx.config.schema import RunConfig
from clipx.errors import InputError


def check_gpus(config: RunConfig, world_size: int) -> None:
    """Raises InputError if `world_size` GPUs do not divide the pictures of a batch; the message has the nearest."""
    pictures = config.global_batch_size // config.data.captions_per_image
    if pictures % world_size:
        divisors = [number for number in range(1, pictures + 1) if pictures % number == 0]
        nearest = [number for number in divisors if number < world_size][-1:]
        nearest += [number for number in divisors if number > world_size][:1]
        of = f" of {config.data.captions_per_image} captions a picture" if config.data.captions_per_image > 1 else ""
        raise InputError(
            f"--gpus {world_size} does not divide global_batch_size={config.global_batch_size}{of}; "
            f"nearest that do: {', '.join(map(str, nearest))}"
        )
    if config.select is not None:
        config.select.super_batch_size(config.global_batch_size, world_size)

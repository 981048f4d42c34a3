import torch

from clipx.checkpoint.host_copy import HostCopy


def test_a_copy_does_not_follow_the_training_and_its_memory_is_used_again() -> None:
    betas = [0.9, 0.99]
    live = {"model": {"w": torch.arange(6.0).view(2, 3)}, "optimizer": {"w.lr": 0.1, "betas": betas}}
    host = HostCopy()
    places = []
    for number in range(3):
        live["optimizer"]["w.lr"] = 0.1 * number
        before = live["model"]["w"].clone()
        copy = host.take(live)
        live["model"]["w"].add_(1)
        betas[0] += 1
        assert copy["model"]["w"].equal(before)
        assert copy["optimizer"] == {"w.lr": 0.1 * number, "betas": [0.9 + number, 0.99]}
        places.append(copy["model"]["w"].data_ptr())
    assert len(set(places)) == 1


def test_another_state_gets_other_memory() -> None:
    host = HostCopy()
    host.take({"model": {"w": torch.ones(3)}})
    for other in ({"w": torch.ones(4)}, {"w": torch.ones(4).double()}, {"v": torch.ones(4)}, {"v": 1.5}):
        copy = host.take({"model": other})
        assert copy["model"].keys() == other.keys()
        for name, value in other.items():
            assert torch.as_tensor(copy["model"][name]).equal(torch.as_tensor(value))
            assert torch.as_tensor(copy["model"][name]).dtype == torch.as_tensor(value).dtype

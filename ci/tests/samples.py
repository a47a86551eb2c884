"""What a network sees of a data set: items after the part of the work that is done on the device."""

from torch import Tensor, device
from torch.utils.data import Dataset, default_collate

from common.data.loading import to_device
from common.device.world import World


class Finished(Dataset):
    """The items of a data set as images [3, H, W] float32 and targets [H, W], on the CPU."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key) -> tuple[Tensor, Tensor]:
        images, target = to_device(default_collate([self.dataset[key]]), self.dataset, World(device("cpu")))
        return images[0], target[0]

"""PyTorch's side of benchmarks/input.py, apart from it since its workers import this alone."""

import io
import os

import torch
from PIL import Image
from torchvision import io as torch_io
from torchvision.transforms import InterpolationMode, RandomResizedCrop, functional

WAYS = [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.NEAREST]


class Patches(torch.utils.data.Dataset):
    """torchvision's RandomResizedCrop to 224 x 224, uint8, with the way to resize drawn as well."""

    def __init__(self, encoded: list[bytes], count: int, pillow: bool):
        self.encoded, self.count, self.pillow = encoded, count, pillow
        self.ways = [*WAYS, InterpolationMode.BOX] if pillow else WAYS  # which tensors lack

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        encoded = self.encoded[index % len(self.encoded)]
        if self.pillow:
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
        else:
            data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
            image = torch_io.decode_jpeg(data, torch_io.ImageReadMode.RGB)
        box = RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        way = self.ways[torch.randint(len(self.ways), ()).item()]
        patch = functional.resized_crop(image, *box, [224, 224], way)
        return functional.pil_to_tensor(patch) if self.pillow else patch


def loader(encoded: list[bytes], count: int, pillow: bool, batch_size: int, workers: int):
    """A DataLoader whose workers stay for all rounds."""
    os.environ["PYTHONWARNINGS"] = "ignore"  # of its workers
    return torch.utils.data.DataLoader(
        Patches(encoded, count, pillow),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="forkserver",  # TensorFlow's threads do not survive a fork
    )

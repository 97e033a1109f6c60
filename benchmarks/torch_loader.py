"""PyTorch's side of benchmarks/input.py: apart, as TensorFlow brings another libjpeg."""

import io
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torchvision import io as torch_io
from torchvision import transforms
from torchvision.transforms import InterpolationMode, RandomResizedCrop, functional

WAYS = [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.NEAREST]


COLOURS = transforms.Compose(  # what this pipeline leaves to the device
    [
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.5, 0.5, 0.5),
        transforms.ToTensor(),
        transforms.Normalize((0.48, 0.46, 0.41), (0.23, 0.22, 0.23)),
    ]
)


class Patches(torch.utils.data.Dataset):
    """torchvision's RandomResizedCrop to 224 x 224, uint8, with the way to resize drawn as well."""

    def __init__(self, encoded: list[bytes], count: int, pillow: bool, colours: bool):
        self.encoded, self.count, self.pillow = encoded, count, pillow
        self.colours = COLOURS if colours else None
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
        # Pillow always filters where it shrinks; tensors need not, as here
        patch = functional.resized_crop(image, *box, [224, 224], way, antialias=False)
        if self.colours:
            return self.colours(patch)
        return functional.pil_to_tensor(patch) if self.pillow else patch


def main(folder: str, decoder: str, batch_size: int, workers: int) -> None:
    """Prints images/s of one round for every line of standard input."""
    encoded = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    loader = torch.utils.data.DataLoader(
        Patches(encoded, 4 * len(encoded), decoder.startswith("Pillow"), "colours" in decoder),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )
    for _ in sys.stdin:
        batches = iter(loader)
        next(batches)  # by then its workers have started
        before = time.perf_counter()
        count = sum(1 for _ in batches)
        print(count * batch_size / (time.perf_counter() - before), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

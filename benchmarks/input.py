"""How fast training images come: this pipeline, decoding alone, and PyTorch's loaders.

python -m benchmarks.input                      # on 400 made photographs of 500 x 375 pixels
python -m benchmarks.input --files=DIR          # on the JPEGs in a folder
python -m benchmarks.input --memory=20          # resident memory after each of 20 epochs
python -m benchmarks.input --training           # the share of a training step that waits for data

All use as many workers as there are cores, cut the paper's patches (8 to 100 % of the area, aspect
3/4 to 4/3) and resize them to 224 x 224 by one of four ways at random, to uint8. "Colours"
adds what is the device's work here: mirror, brightness, contrast, saturation, normalisation. The
limit decodes every JPEG in full with the same library and settings, and does nothing else. Rounds
alternate, so that other work on the machine meets all alike. PyTorch's need torch and torchvision.
"""

import argparse
import contextlib
import functools
import gc
import importlib.util
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inception_jax import process

process.quiet()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402

from configs import imagenet  # noqa: E402
from inception_jax.data import augment, order, pipeline  # noqa: E402
from inception_jax.data.repair import Mended  # noqa: E402

BATCH, ROUNDS = 32, 15
CORES = len(os.sched_getaffinity(0))


class Files:
    """Encoded images in memory, each four times."""

    def __init__(self, encoded):
        self.encoded = encoded

    def __len__(self):
        return 4 * len(self.encoded)

    def read(self, index):
        return self.encoded[index % len(self.encoded)], 0

    def name(self, index):
        return f"file {index}"


def photographs(count: int) -> list[bytes]:
    """Makes JPEGs of 500 x 375 pixels and some 95 kB out of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    encoded = []
    for number in range(count):
        image = originals[number % len(originals)]
        scale = rng.uniform(0.5, 1)
        size = [int(side * scale) for side in image.size]
        left, top = (rng.integers(0, a - b + 1) for a, b in zip(image.size, size, strict=True))
        part = image.crop((left, top, left + size[0], top + size[1])).resize((500, 375))
        grain = rng.normal(0, 6, (375, 500, 1))  # as much detail as that of a larger original
        pixels = np.clip(np.asarray(part) + grain, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=94)
        encoded.append(buffer.getvalue())
    return encoded


def limit(files):
    """Decodes in full and drops the pixels."""

    def first_pixel(encoded):
        return tf.io.decode_jpeg(encoded, **augment.JPEG)[0, 0]

    dataset = tf.data.Dataset.from_tensor_slices(files.encoded).repeat(4)
    dataset = dataset.map(first_pixel, num_parallel_calls=CORES).batch(BATCH, drop_remainder=True)
    return dataset.prefetch(2).as_numpy_iterator()


def ours(files, steps=None):
    config = imagenet.get_config().data
    steps = steps or len(files) // BATCH
    rows = order.training(len(files), BATCH, seed=0)
    return pipeline.training(Mended(files), rows, slice(0, BATCH), range(steps), config, seed=0)


def images_per_second(way, files):
    batches = iter(way(files))
    next(batches)  # by then its threads have started
    before = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * BATCH / (time.perf_counter() - before)


def pytorch(folder, decoder, children):
    """Starts a process with a DataLoader; returns a function that measures a round of it."""
    arguments = ["benchmarks.torch_loader", folder, decoder, str(BATCH), str(CORES)]
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    children.callback(child.communicate)  # its input ends, and so does it

    def measure():
        print("go", file=child.stdin, flush=True)
        return float(child.stdout.readline())

    return measure


def speed(files):
    ways = {"limit: decode all of every JPEG": limit, "this pipeline": ours}
    ways = {name: functools.partial(images_per_second, way, files) for name, way in ways.items()}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as children:
        if all(map(importlib.util.find_spec, ("torch", "torchvision"))):
            for number, encoded in enumerate(files.encoded):
                Path(folder, f"{number:06}.jpg").write_bytes(encoded)
            for decoder in ("libjpeg-turbo", "Pillow", "Pillow and colours"):
                ways[f"PyTorch, {CORES} workers, {decoder}"] = pytorch(folder, decoder, children)
        else:
            print("PyTorch's loaders left out: pip install torch torchvision", file=sys.stderr)
        speeds = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, measure in ways.items():
                speeds[name].append(measure())
    sizes = [len(encoded) / 1e3 for encoded in files.encoded]
    print(
        f"{len(files)} JPEGs of {min(sizes):.0f} to {max(sizes):.0f} kB (mean"
        f" {statistics.mean(sizes):.0f}), {CORES} cores, medians of {ROUNDS} rounds"
    )
    print(f"{'images/s':43}{'a core':>7}{'in all':>8}{'ratio':>7}")
    for name, found in speeds.items():
        ours_in_turn = zip(speeds["this pipeline"], found, strict=True)
        ratio = statistics.median(our / other for our, other in ours_in_turn)
        speed = statistics.median(found)
        print(f"{name:42}{speed / CORES:8.0f}{speed:8.0f}{ratio:7.2f}")


def memory(files, epochs):
    """Prints what the process has of memory after each epoch of one long run."""
    each = len(files) // BATCH
    for step, _ in enumerate(ours(files, each * epochs), 1):
        if step % each == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            print(f"epoch {step // each:3}: {megabytes:6.0f} MB resident", flush=True)


def training(files):
    """Trains GoogLeNet on the files as an image folder; its metrics say how long it waited."""
    import json

    from inception_jax import main

    with tempfile.TemporaryDirectory() as folder:
        for split, part in (("train", files.encoded), ("val", files.encoded[:BATCH])):
            for number, encoded in enumerate(part):
                path = Path(folder, "images", split, str(number % 2), f"{number}.jpg")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)
        main.main(
            [
                *("main", "--config=configs/imagenet.py", f"--workdir={folder}/run"),
                *("--config.data.name=image_folder", f"--config.data.dir={folder}/images"),
                *("--config.data.eval_split=val", "--config.log_every_steps=2"),
                *("--config.epochs=1", "--config.schedule.every_epochs=0.5"),
            ]
        )
        rows = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
        waits = [row["data_wait"] for row in rows if row["kind"] == "train"][1:]
    print(f"share of a step without a batch: median {statistics.median(waits):.2%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--training", action="store_true")
    arguments = parser.parse_args()
    if arguments.files:
        paths = sorted(Path(arguments.files).rglob("*.[jJ][pP]*[gG]"))
        files = Files([path.read_bytes() for path in paths])
    else:
        files = Files(photographs(400))
    if arguments.memory:
        memory(files, arguments.memory)
    elif arguments.training:
        training(files)
    else:
        speed(files)


if __name__ == "__main__":
    main()

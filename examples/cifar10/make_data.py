"""Small files in CIFAR-10's format: images that a network can learn to tell apart, without a download.

    python make_data.py build/cifar10/data --images 320

Each class has a colour and a stripe of its own, under noise. `accept` makes torchvision take the files for CIFAR-10.
"""

import argparse
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FOLDER = "cifar-10-batches-py"
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


def images(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """[count, 3072] bytes, red, green and blue planes one after the other; and their classes, equally often."""
    dice = np.random.default_rng(seed)
    labels = [int(label) for label in dice.permutation(np.arange(count) % 10)]
    picture = dice.normal(110, 25, (count, 3, 32, 32))
    for index, label in enumerate(labels):
        picture[index, label % 3] += 70
        picture[index, :, 3 * label : 3 * label + 3] += 60
    return picture.clip(0, 255).astype(np.uint8).reshape(count, -1), labels


def write(root: Path, train: int, test: int) -> None:
    """Every file under a name of its own first: several ranks may do this at once, with the same result."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: (train // len(TRAIN), number) for number, name in enumerate(TRAIN)} | {"test_batch": (test, 99)}
    files = {"batches.meta": {"label_names": CLASSES}}
    for name, (count, seed) in parts.items():
        data, labels = images(count, seed)
        files[name] = {"data": data, "labels": labels}
    for name, content in files.items():
        draft = folder / f".{name}.{os.getpid()}"
        draft.write_bytes(pickle.dumps(content, protocol=2))
        draft.replace(folder / name)


def accept(root: Path) -> None:
    """Let torchvision's CIFAR10 take these files: it compares their MD5 sums with those that it knows."""
    from torchvision.datasets import CIFAR10

    def sum_of(name: str) -> str:
        return hashlib.md5((root / FOLDER / name).read_bytes()).hexdigest()

    CIFAR10.train_list = [[name, sum_of(name)] for name in TRAIN]
    CIFAR10.test_list = [["test_batch", sum_of("test_batch")]]
    CIFAR10.meta = {"filename": "batches.meta", "key": "label_names", "md5": sum_of("batches.meta")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=320, help="for training; a quarter as many for the test")
    args = parser.parse_args()
    write(args.folder, args.images, args.images // 4)
    print(args.folder / FOLDER)

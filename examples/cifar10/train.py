"""founding.py as it is, on files from make_data.py: as a TrainingRun, or alone.

    everstep run -f examples/cifar10/trainingrun.yaml
    python examples/cifar10/train.py --folder build/cifar10 --epochs 3

It is shortened from outside, by a Trainer of its own: 50 epochs would prove no more than a few.
"""

import argparse
import os
import runpy
from pathlib import Path
from typing import Any

import make_data

import everstep

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for data, logs and exports")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=320)
    args = parser.parse_args()

    class Short(everstep.Trainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**{**arguments, "max_epochs": args.epochs})

    args.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(args.folder)
    os.environ.setdefault("MPLBACKEND", "Agg")  # plt.show() opens no window
    make_data.write(Path("data"), args.images, args.images // 4)
    make_data.accept(Path("data"))
    everstep.Trainer = Short  # type: ignore[misc]
    runpy.run_path(str(HERE / "founding.py"), run_name="__main__")


if __name__ == "__main__":
    main()

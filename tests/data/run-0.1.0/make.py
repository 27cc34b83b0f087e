"""Makes the files in this folder; meant for ckptavg 0.1.0 only. Arguments: the folder to fill."""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import keras

import ckptavg
from ckptavg import cli

sys.path.insert(0, str(Path(__file__).parent))
from train import build_model, x, y

HERE = Path(__file__).parent
COMMANDS = json.loads((HERE / "commands.json").read_text())


def run(command: str) -> str:
    printed = io.StringIO()
    sys.argv = ["ckptavg", *command.split()]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main()
    return printed.getvalue()


def main(folder: Path) -> None:
    keras.utils.set_random_seed(1)
    with contextlib.chdir(folder):
        saver = ckptavg.CheckpointSaver(
            "run",
            start_epoch=2,
            lr_schedule="constant",
            swa_lr=0.005,
            tracked_sigmas=(0.05, 0.1),
            track_freq=5,
        )
        build_model().fit(x, y, epochs=5, validation_split=0.25, callbacks=[saver], verbose=0)
        run("merge run -o swa.weights.h5")
        run("merge run --last 3 --recipe ema --decay 0.7 -o ema.weights.h5")
        run("merge run --recipe posthoc-ema --sigma-rel 0.08 -o posthoc.weights.h5")
        run("merge run --data train.py:bn_data -o fresh.keras")
        ckptavg.sweep(
            "run",
            model=build_model(),
            data=x,
            eval_data=(x[:48], y[:48]),
            recipes=["uniform", "ema:0.9"],
            monitor="val_loss",
        )
        Path("json").mkdir(exist_ok=True)
        for name, command in COMMANDS.items():
            Path(f"json/{name}.json").write_text(run(command))
            for left in Path().glob("out.*"):
                left.unlink()
        shutil.rmtree("__pycache__", ignore_errors=True)
        Path("run/.lock").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

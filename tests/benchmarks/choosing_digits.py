"""What each way of choosing finds on the digits demo, over five seeds, beside plain SWA.

    .venv/bin/python tests/benchmarks/choosing_digits.py

The model, images, rates and epochs are the demo's. Of its 597 held-out images 297 choose (they are
also the validation data in the records) and 300 report: nothing is chosen on the latter. Greedy
soups take the checkpoints of the run as their ingredients. Post-hoc EMAs come from the averages
over all steps that the saver tracks; one of four lengths is chosen.
"""

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
from _tables import table

from ckptavg import demo, doctor, soup, sweep
from ckptavg.batch_norm.refresh import merge_into_model
from ckptavg.commands.merge import plan_merge
from ckptavg.errors import RunError
from ckptavg.models.evaluation import evaluate
from ckptavg.recipes import Recipe
from ckptavg.recipes.swad import Swad
from ckptavg.runs.describe import list_epochs
from ckptavg.runs.run import Run, open_run
from ckptavg.saving.checkpoint_saver import CheckpointSaver

CHOOSING = 297
RECIPES = ("uniform", "ema:0.8", "cosine-decay", "sqrt-decay")
MONITOR = "val_loss"
SIGMAS = (0.05, 0.10, 0.15, 0.20)


def train(directory: Path, seed: int, choose: Any, epochs: int, start: int) -> Run:
    keras.utils.set_random_seed(seed)
    x, y = demo.train_data()
    saver = CheckpointSaver(
        directory,
        start_epoch=start,
        lr_schedule="constant",
        swa_lr=demo.SWA_LR,
        tracked_sigmas=(0.05, 0.10),
    )
    demo.build_model().fit(
        x, y, batch_size=32, epochs=epochs, validation_data=choose, callbacks=[saver], verbose=0
    )
    return open_run(directory)


def compare(
    run: Run, choose: Any, report: Any, folder: Path
) -> dict[str, tuple[str, float, float]]:
    """By method: what it chose, loss and accuracy on data that chose nothing."""
    model, data = demo.build_model(), demo.bn_data()
    given = {"model": model, "data": data, "eval_data": choose, "monitor": MONITOR}
    found = {}

    def note(name: str, chose: str, path: Path) -> None:
        scores = evaluate(path, model=model, data=report)
        found[name] = chose, scores["loss"], scores["accuracy"]
        print(f"  {name}: {chose}: {scores['loss']:.4f} {scores['accuracy']:.4f}", flush=True)

    def average(name: str, checkpoints: Any, **options: Any) -> None:
        path = folder / f"{name.replace(' ', '-')}.weights.h5"
        merge_into_model(plan_merge(checkpoints, path, **options), model=model, data=data)
        note(name, epochs(checkpoints), path)

    average("plain SWA", run.checkpoints)
    note("last epoch", epochs(run.checkpoints[-1:]), run.checkpoints[-1].path)
    best = run.select(best=1)
    note("best checkpoint", epochs(best), best[0].path)
    average("best 5", run.select(best=5))
    average("doctor", doctor(run).keep)
    for rule in (Swad(), Swad(n_converge=2, n_tolerance=3)):
        name = f"SWAD {rule.n_converge}, {rule.n_tolerance}"
        try:
            average(name, run.select(window=rule))
        except RunError:
            print(f"  {name}: has not converged", flush=True)
    for name, options in (
        ("sweep last", {}),
        ("sweep last, recipes", {"recipes": RECIPES}),
        ("sweep all", {"windows": "all", "stride": 2}),
    ):
        path = folder / f"{name.replace(' ', '-').replace(',', '')}.weights.h5"
        swept = sweep(run, path, **given, **options)
        chose = f"{epochs(swept.best.checkpoints)} {swept.best.recipe}, of {swept.tried}"
        note(name, chose, path)
    path = folder / "soup.weights.h5"
    made = soup(run, path, **given)
    kept = [ingredient.checkpoint for ingredient in made.ingredients if ingredient.kept]
    note("greedy soup", f"{epochs(kept)}, of {made.tried}", path)
    lengths = {}
    for sigma in SIGMAS:
        path = folder / f"posthoc-{sigma}.weights.h5"
        plan = plan_merge(run, path, recipe=Recipe("posthoc-ema", sigma_rel=sigma))
        merge_into_model(plan, model=model, data=data)
        lengths[evaluate(path, model=model, data=choose)["loss"]] = sigma, path
    sigma, path = lengths[min(lengths)]
    note("post-hoc EMA", f"sigma_rel {sigma}, of {len(SIGMAS)}", path)
    return found


def epochs(checkpoints: Any) -> str:
    return list_epochs(checkpoint.epoch for checkpoint in checkpoints)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=demo.EPOCHS)
    parser.add_argument("--start", type=int, default=demo.START_EPOCH, help="first epoch saved")
    arguments = parser.parse_args()
    x, y = demo.test_data()
    choose, report = (x[:CHOOSING], y[:CHOOSING]), (x[CHOOSING:], y[CHOOSING:])
    losses, accuracies = defaultdict(dict), defaultdict(dict)
    for seed in range(arguments.seeds):
        print(f"seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run = train(Path(folder) / "run", seed, choose, arguments.epochs, arguments.start)
            for name, (_, loss, accuracy) in compare(run, choose, report, Path(folder)).items():
                losses[name][seed], accuracies[name][seed] = loss, accuracy
    rows = []
    for name, found in losses.items():
        plain = losses["plain SWA"]
        better = sum(loss < plain[seed] for seed, loss in found.items())
        rows.append(
            (
                name,
                f"{statistics.mean(found.values()):.4f}",
                f"{statistics.mean(accuracies[name].values()):.4f}",
                f"{better} of {len(found)}",
            )
        )
    print("\n" + table(("method", "loss", "accuracy", "beat plain SWA's loss"), rows))


if __name__ == "__main__":
    main()

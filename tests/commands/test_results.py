"""Results show themselves in a few lines, also where they were unpickled or have no record."""

import pickle

import pytest

import ckptavg
from ckptavg.errors import RecipeError
from tests.helpers.models import evaluator, tiny_data, tiny_model

X, Y = tiny_data()


def test_results_of_a_merge(folder):
    plan = ckptavg.plan_merge("run", "swa.weights.h5", last=3)
    shown = repr(plan).splitlines()
    assert shown[0] == "MergePlan of swa.weights.h5: uniform of 3 checkpoints of epochs 4-6"
    assert shown[1].startswith("  14 tensors, reads 1.3 kB, writes 440 B")
    assert repr(pickle.loads(pickle.dumps(plan))) == repr(plan)
    last = ckptavg.plan_merge("run", "last.weights.h5", last=1)
    assert repr(last).startswith("MergePlan of last.weights.h5: uniform of 1 checkpoint of epoch 6")
    report = ckptavg.run_plan(plan)
    assert repr(report).startswith(
        "MergeReport: wrote swa.weights.h5, uniform of 3 checkpoints of epochs 4-6\n"
    )
    assert repr(report).endswith(" s, every byte proven")
    result = ckptavg.merge("run", "a.keras", model=evaluator(), data=X, eval_data=(X, Y))
    shown = repr(result).splitlines()
    assert shown[0] == "MergeResult: wrote a.keras, uniform of 4 checkpoints of epochs 3-6"
    assert shown[2] == "  2 BatchNorm layers from 96 samples (batch)"
    assert shown[3].startswith("  loss ") or shown[3].startswith("  accuracy ")
    assert f"accuracy {result.metrics['accuracy']:.4g}" in shown[3]
    refreshed = ckptavg.update_bn("swa.weights.h5", "b.weights.h5", data=X)
    assert repr(refreshed) == (
        "RefreshReport: wrote b.weights.h5, 2 BatchNorm layers from 96 samples (batch)"
    )
    (found,) = ckptavg.verify("swa.weights.h5")
    assert repr(found).startswith("Verification of swa.weights.h5: intact, average reproduced: the")
    assert repr(ckptavg.verify("run")[0]).endswith("epoch-0003.weights.h5: intact")
    tiny_model().save_weights("bare.weights.h5")
    bare = ckptavg.merge(["bare.weights.h5", "swa.weights.h5"], "c.weights.h5", non_float="last")
    assert repr(bare).endswith("1 of 2 checkpoints unverified")


def test_runs_checkpoints_and_records(folder):
    run = ckptavg.open_run("run")
    assert repr(run).startswith("Run run: 4 checkpoints of epochs 3-6, ")
    checkpoint = run.checkpoints[0]
    assert repr(checkpoint).startswith(f"RecordedCheckpoint {checkpoint.path}: epoch 3, step 9, ")
    assert f"val_loss {checkpoint.record.metrics['val_loss']:.4g}" in repr(checkpoint)
    assert repr(checkpoint.record).startswith("Record of epoch-0003.weights.h5: epoch 3, step 9, ")
    assert repr(checkpoint.record).endswith("BatchNorm statistics running")
    merged = ckptavg.merge("run", "swa.weights.h5", recipe="ema", decay=0.5)
    assert repr(merged.record) == (
        "Record of swa.weights.h5: ema:0.5 of 4 checkpoints, BatchNorm statistics stale"
    )
    tiny_model().save_weights("ckpt-7.weights.h5")
    (bare,) = ckptavg.inspect("ckpt-7.weights.h5").checkpoints
    assert repr(bare) == "Checkpoint ckpt-7.weights.h5: no record"
    assert repr(ckptavg.inspect("run")) == f"Inspection: {run!r}"
    shown = repr(ckptavg.inspect("swa.weights.h5")).splitlines()
    assert shown[0] == "Inspection: 1 checkpoint of unknown epochs"
    assert shown[1].startswith("  CheckpointContent of swa.weights.h5: 14 tensors, ")


def test_recipes_compared(folder):
    found = ckptavg.compare_recipes("run", decay=0.5)
    shown = repr(found).splitlines()
    assert shown[0] == "RecipeComparison: 4 checkpoints"
    assert shown[2].split() == ["ema:0.5", "effective", "sample", "size", "2.65"]
    assert found.unit == "step"
    assert found.recipes[0].coefficients == (0.25,) * 4
    assert found.recipes[-1].coefficients is None
    assert len(ckptavg.compare_recipes(count=3).positions) == 3


def test_numbers_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="count"):
        ckptavg.compare_recipes(count=0)
    with pytest.raises(RecipeError, match="decay"):
        ckptavg.compare_recipes(decay=0.0)

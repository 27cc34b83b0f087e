"""Scores on disk: shared by processes, and not believed where they are damaged."""

import subprocess
import sys

from ckptavg.search.score_cache import ScoreCache


def test_a_damaged_score_is_evaluated_again(tmp_path):
    cache = ScoreCache(tmp_path, ["a", "b"], ["model"])
    cache.add((1, 2), {"loss": 0.25})
    whole = cache.path.read_bytes()
    for position in range(len(whole) - 1):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            cache.path.write_bytes(damaged)
            found = ScoreCache(tmp_path, ["a", "b"], ["model"]).get((1, 2))
            assert found in (None, {"loss": 0.25})


_SCORES = """
import sys
from pathlib import Path
from ckptavg.search.score_cache import ScoreCache
cache = ScoreCache(Path(sys.argv[1]), ["a", "b"], ["model"])
for n in range(300):
    cache.add((int(sys.argv[2]), n), {"loss": n / 7, "a metric with a long name" * 20: n / 3})
"""


def test_processes_share_a_score_cache(tmp_path):
    """Sweeps of one run may take place at once: each line is added whole."""
    writers = [
        subprocess.Popen([sys.executable, "-c", _SCORES, tmp_path, str(number)])
        for number in (1, 2, 3)
    ]
    killed = subprocess.Popen([sys.executable, "-c", _SCORES, tmp_path, "4"])
    while not (tmp_path / "scores.jsonl").exists():
        assert killed.poll() is None
    for _ in range(20):  # caches that are opened meanwhile end a line only if nobody is writing it
        ScoreCache(tmp_path, ["a", "b"], ["model"])
    killed.kill()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    killed.wait()
    cache = ScoreCache(tmp_path, ["a", "b"], ["model"])
    for number in (1, 2, 3):
        for n in range(300):
            assert cache.get((number, n))["loss"] == n / 7

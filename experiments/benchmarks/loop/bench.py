"""Times the training loop and a bare forward, backward and optimizer step of the same model.

python experiments/benchmarks/loop/bench.py [override ...]

Both run in one process, step by step in turn: the loader that the loop waits for makes a bare step of a twin
model while it is waited for, and that wait is not counted. Prints the medians and their ratio.
"""

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

from vidtrain.build import parts as build
from vidtrain.config.targets import CONF, register_schemas
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.logger_process import Loggers
from vidtrain.tracking.run_log import RunLog
from vidtrain.training.distributed import Ranks
from vidtrain.training.loop import fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from one_batch import CLASSES, batch_of, run_of

STEPS, WARMUP = 80, 20


def main(overrides: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        changes = ["trainer.epochs=1", f"trainer.steps_per_epoch={STEPS}", "logger=none", *overrides]
        cfg = compose("train", changes)
    ranks = Ranks(torch.device("cpu"))
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    model, batch = build.model(cfg, CLASSES, ranks), batch_of(cfg)
    twin = copy.deepcopy(model)
    twin_optimizer = build.instantiate_component(cfg.optimizer)(list(twin.parameters()))
    inputs = build.device_transform(cfg, ranks.device)(batch.clips)
    bare: list[float] = []

    def batches(start: int, stop: int):
        for _ in range(start, stop):
            started = time.perf_counter()
            F.cross_entropy(twin(inputs).mean(dim=1), batch.labels).backward()
            twin_optimizer.step()
            twin_optimizer.zero_grad(set_to_none=True)
            bare.append(time.perf_counter() - started)
            yield batch

    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), Loggers({}), NullConsole(), is_main=True, rank=0)
        rows = []
        log.step = rows.append
        fit(run_of(cfg, model, ranks, log, Path(folder), batches, STEPS))
    loop = [row["seconds"] * (1 - row["train/data_share"]) for row in rows]
    pairs = list(zip(loop, bare, strict=True))[WARMUP:]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, batch {list(inputs.shape)}, {torch.get_num_threads()} thread(s)")
    print(f"loop {statistics.median(each for each, _ in pairs) * 1e3:.2f} ms a step")
    print(f"bare {statistics.median(each for _, each in pairs) * 1e3:.2f} ms a step")
    ratios = sorted(one / other for one, other in pairs)
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    print(f"ratio {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}) over {len(pairs)} steps")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run by torchrun in test_training.py: the gradients of two updates, as `fit` computes them.

python -m torch.distributed.run --nproc-per-node 2 tests/invariants/two_ranks.py OUT_DIR
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fixtures import make_student, make_table, make_teacher

from ad.batches import SamplingConfig, TripleSource
from ad.losses import LossConfig
from ad.objectives import ActionObjective
from training.loop import fit
from training.optim import OptimConfig

CONFIG = OptimConfig(updates=2, batch_size=8, accumulation_steps=2, log_every=1, max_grad_norm=1e9)


def gradients(out_dir, accelerator, config=CONFIG):
    """Fit a small student; return the gradients (name, update) of what is optimised.

    The first update's rate is zero, so that the second one starts from equal weights everywhere.
    """
    objective = ActionObjective(make_student(), LossConfig(beta=0.5), make_teacher().eval())
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    found, updates = {}, []

    def keep(optimizer, *_):
        updates.append(None)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    found[f"{names[id(parameter)]}/{len(updates)}"] = parameter.grad.clone()

    handle = register_optimizer_step_pre_hook(keep)
    source = TripleSource(
        make_table(),
        SamplingConfig(),
        batch_size=config.batch_size,
        seed=5,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        accumulation_steps=config.accumulation_steps,
    )
    fit(objective, source, config, Path(out_dir), accelerator, seed=5, targets_per_update=1)
    handle.remove()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = Accelerator(
        cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
    assert ranks.num_processes == 2, ranks.state
    folder = Path(sys.argv[1])
    save_file(gradients(folder / "fit", ranks), folder / f"rank_{ranks.process_index}.safetensors")

"""Each test says what broke if torch changes what we lean on."""

import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_warmscale.compat.torch import set_scheduler_step


def test_a_scheduler_is_put_before_any_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    set_scheduler_step(scheduler, 4)
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0] == 2.0 * 0.5**4
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 2.0 * 0.5**5

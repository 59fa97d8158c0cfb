"""Context of a fit: the all-reduce over workers, the device and the state of an interrupted fit.

Reads and writes nothing itself: `ray_train.py` supplies torch.distributed's all-reduce and the checkpoint file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ReduceSum = Callable[[torch.Tensor], torch.Tensor]
"""All-reduce: returns the sum of a float64 tensor over all workers."""


@dataclass(frozen=True)
class FitState:
    """State of an interrupted fit, and the callbacks that checkpoint it.

    Attributes:
        state: tensors of the last checkpoint; empty on a first start.
        save: called after each pass or epoch with a function that returns the current state; a checkpoint is
            written only where the callback calls that function.
        save_final: called with the last state of a finished fit; later checkpoints of the other fits include it.
    """

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    save: Callable[[Callable[[], dict[str, torch.Tensor]]], None] = lambda get_state: None
    save_final: Callable[[dict[str, torch.Tensor]], None] = lambda state: None

    def part(self, name: str) -> "FitState":
        """Return the state of one of several fits in a shared checkpoint, where its keys start with ``name//``."""
        prefix = f"{name}//"
        own_state = {
            key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)
        }

        def save_final(state: dict[str, torch.Tensor]) -> None:
            for key in [key for key in self.state if key.startswith(prefix)]:
                del self.state[key]
            self.state.update({prefix + key: value for key, value in state.items()})

        def save(get_state: Callable[[], dict[str, torch.Tensor]]) -> None:
            def shared_state() -> dict[str, torch.Tensor]:
                save_final(get_state())
                return self.state

            self.save(shared_state)

        return FitState(own_state, save, save_final)


@dataclass(frozen=True)
class FitContext:
    """All-reduce, device and checkpoint of a fit that one or several workers share.

    Attributes:
        reduce_sum: all-reduce of a float64 tensor; the identity for one worker.
        is_distributed: whether there is more than one worker.
        device: torch device of features and heads during the fit.
        resume: state of an interrupted fit, and where to save new state.
    """

    reduce_sum: ReduceSum = lambda tensor: tensor
    is_distributed: bool = False
    device: str = "cpu"
    resume: FitState = field(default_factory=FitState)

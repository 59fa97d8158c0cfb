"""What a fit knows of the processes that share it: how sums are added up, and where an interrupted fit goes on."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ReduceSum = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FitState:
    """How a fit goes on after an interruption.

    Attributes:
        state: what was kept last; empty at the first start.
        keep: is offered the state from time to time, as a function that gives it.
        settle: is told the last state of a fit that has ended; it goes with what others keep later.
    """

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    keep: Callable[[Callable[[], dict[str, torch.Tensor]]], None] = lambda give: None
    settle: Callable[[dict[str, torch.Tensor]], None] = lambda state: None

    def part(self, name: str) -> "FitState":
        """Return the same for one of several fits, whose states then lie side by side."""
        mark = f"{name}//"
        own = {key.removeprefix(mark): value for key, value in self.state.items() if key.startswith(mark)}

        def settle(state: dict[str, torch.Tensor]) -> None:
            for key in [key for key in self.state if key.startswith(mark)]:
                del self.state[key]
            self.state.update({mark + key: value for key, value in state.items()})

        def keep(give: Callable[[], dict[str, torch.Tensor]]) -> None:
            def everything() -> dict[str, torch.Tensor]:
                settle(give())
                return self.state

            self.keep(everything)

        return FitState(own, keep, settle)


@dataclass(frozen=True)
class FitContext:
    """What a fit knows of the processes that share it.

    Attributes:
        reduce_sum: adds a float64 tensor over them.
        are_several: whether there is more than one.
        device: torch device of features and heads while they are fitted.
        resume: where an interrupted fit goes on.
    """

    reduce_sum: ReduceSum = lambda tensor: tensor
    are_several: bool = False
    device: str = "cpu"
    resume: FitState = field(default_factory=FitState)

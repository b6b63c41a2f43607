"""The run of a plan as a graph of tensor operations, for compilers and CUDA graphs."""

from collections import deque
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from .plans.plan import Plan
from .sampling import ModelLike, trajectory

__all__ = ["as_graph"]


@torch.no_grad()
def as_graph(eps: ModelLike, plan: Plan, x: Tensor) -> fx.GraphModule:
    """The run of a plan as one graph of tensor operations, a function of the state at `plan.t[0]`.

    Times, weights of rows and all else that the plan determines are constants of the graph, so that
    `torch.compile(as_graph(eps, plan, x), mode="reduce-overhead")` is one CUDA graph. The weights of the network are
    those of the module itself. A sampler that draws noise draws it by `torch.randn_like`.

    Args:
        eps, plan: a model, or a function `eps(x, t, tau)`, and the plan, as for `trajectory`.
        x: a state (B, ...), for whose shape, dtype and device the graph is made.

    Raises:
        ValueError: the run reads a number of the state back to the host; and see `trajectory`.
    """
    recorder = _Recorder(x)
    with recorder:
        end = deque(trajectory(eps, plan, x), maxlen=1).pop()
    return recorder.finish(end)


class _Recorder(TorchDispatchMode):
    """Records the operations on a tensor and on what follows from it; every other tensor is a constant."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = fx.Graph(), dict[str, Tensor]()
        self.nodes: Any = WeakTensorKeyDictionary({x: self.graph.placeholder("x")})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, given = func(*args, **(kwargs or {})), tree_leaves((args, kwargs))
        if not any(isinstance(one, Tensor) and one in self.nodes for one in given):
            return made
        if not all(isinstance(one, Tensor) for one in tree_leaves(made)):
            raise ValueError(f"the run of a graph must not read the state back to the host, as {func} does")
        node = self.graph.call_function(func, *tree_map(self._argument, (args, kwargs or {})))
        if isinstance(made, Tensor):
            self.nodes[made] = node
        else:
            for i, one in enumerate(made):
                self.nodes[one] = self.graph.call_function(getitem, (node, i))
        return made

    def finish(self, end: Tensor) -> fx.GraphModule:
        """The graph whose result is this tensor."""
        self.graph.output(self._argument(end))
        return fx.GraphModule(self.constants, self.graph)

    def _argument(self, value: Any) -> Any:
        """The node of a tensor that follows from x, a constant for another one."""
        if not isinstance(value, Tensor):
            return value
        if value in self.nodes:
            return self.nodes[value]
        if not value.dim() and value.device.type == "cpu" and type(value) is Tensor:
            return value.item()  # a number of the plan, beside states that may be elsewhere
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        self.nodes[value] = node = self.graph.get_attr(name)
        return node

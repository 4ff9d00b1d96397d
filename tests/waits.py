"""Finds where a host would wait for a GPU, on a machine without one.

On the `meta` device, which has shapes and no values, whatever asks a tensor for a value fails. What
copies from the host, and on CUDA would wait for the work before it, is found as it is called.
"""

import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# In inference mode `to` is seen as it is called.
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.to)
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)


def devices(*values):
    return {x.device.type for x in tree_leaves(values) if isinstance(x, torch.Tensor)}


class Waits:
    """`with Waits() as found:` names in `found` the lines, of those not in `upload`, which wait."""

    def __enter__(self):
        found = self.found = []

        def note():
            stack = traceback.extract_stack()
            line = [f for f in stack if "/torch/" not in f.filename and f.filename != __file__][-1]
            if all(f.name != "upload" for f in stack):
                found.append(f"{line.filename}:{line.lineno} {line.line}")

        class Copies(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                copies = function.overloadpacket in COPIES
                if copies and devices(args, kwargs, result) == {"cpu", "meta"}:
                    note()
                return result

        class Makers(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if function in MAKERS and result.device.type == "meta":
                    note()
                return result

        self.modes = Copies(), Makers()
        for mode in self.modes:
            mode.__enter__()
        return found

    def __exit__(self, *failure):
        for mode in reversed(self.modes):
            mode.__exit__(*failure)

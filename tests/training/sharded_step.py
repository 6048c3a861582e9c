"""The training step with accelerate's FSDP2 on CPUs, which accelerate itself keeps for GPUs. Only that choice is made
here; everything after it is what runs on GPUs."""

from accelerate.state import AcceleratorState, DistributedType, PartialState

from lpc.steps.train import cli, main, parser

__all__ = ["cli", "main", "parser"]

_original = AcceleratorState.__init__


def _with_fsdp(self, *args, fsdp_plugin=None, **options):
    _original(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
        # As AcceleratorState does for several GPUs.
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin


AcceleratorState.__init__ = _with_fsdp

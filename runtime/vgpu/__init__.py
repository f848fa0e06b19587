"""The virtual GPU: runs PTX text of any origin on the CPU, and checks what a GPU would not tell."""

from tcomp.runtime.vgpu.device import Device, Loaded
from tcomp.runtime.vgpu.errors import PtxError, UnknownInstruction
from tcomp.runtime.vgpu.machine import Options
from tcomp.runtime.vgpu.report import Finding, KernelFault, Report

__all__ = ["Device", "Finding", "KernelFault", "Loaded", "Options", "PtxError", "Report", "UnknownInstruction"]

"""Which GPU a virtual device is: tcomp's GPU descriptions, and the driver's list of device attributes for them.

The numbers are those of CUdevice_attribute in cuda.h. Values come from the GPU's description; the rest are the
same on all GPUs from compute capability 8.0 on, or say that a feature is not there.
"""

from __future__ import annotations

from tcomp.machine.gpu import GpuMachine as Model, machine_named

__all__ = ["Model", "attributes", "machine_named"]

_TEXTURES = {
    21: 131072, 22: 131072, 23: 65536, 24: 16384, 25: 16384, 26: 16384, 27: 32768, 28: 32768, 29: 2048, 42: 32768,
    43: 2048, 44: 1, 45: 32768, 46: 32768, 47: 8192, 48: 8192, 49: 32768, 52: 32768, 53: 32768, 54: 2046, 55: 32768,
    56: 131072, 57: 65536, 58: 16384, 59: 16384, 60: 16384, 61: 32768, 62: 2048, 63: 32768, 64: 32768, 65: 2048,
    66: 32768, 67: 32768, 68: 2046, 69: 268435456, 70: 131072, 71: 65000, 72: 2097120, 73: 32768, 74: 32768, 77: 32768,
}  # fmt: skip
_SAME = {
    2: 1024, 3: 1024, 4: 64, 5: 2147483647, 6: 65535, 7: 65535, 9: 65536, 10: 32, 11: 2147483647, 14: 512, 15: 1,
    17: 0, 18: 0, 19: 1, 20: 0, 30: 512, 31: 1, 34: 0, 35: 0, 41: 1, 50: 0, 51: 32, 78: 1, 79: 1, 80: 1, 83: 1, 84: 0,
    86: 0, 88: 0, 89: 0, 90: 1, 91: 1, 92: 0, 93: 0, 94: 0, 95: 1, 96: 0, 98: 0, 99: 1, 100: 0, 101: 0, 102: 0, 103: 0,
    104: 0, 105: 0, 107: 0, 110: 0, 112: 0, 113: 0, 114: 0, 115: 1, 116: 0, 117: 0, 118: 0, 119: 0, 121: 0, 122: 0,
    123: 0, 124: 0, 125: 0, 126: 1, 128: 0, 129: 0, 130: 0, 131: -1, 132: 0, 133: 0, 134: -1, 135: 0, 136: 0, 137: 0,
    138: 0, 139: 0, 140: 0, 141: 0, 142: 0, 143: 0, 144: 0, 145: 0,
}  # fmt: skip
_BUS = {"h100": 5120, "h200": 6144, "a100": 5120, "rtx4090": 384, "l40s": 384, "rtx5090": 512, "b200": 8192}


def attributes(m: Model, number: int) -> dict[int, int]:
    """Every known attribute of the device of that number."""
    major, minor = m.capability
    server = m.shared_per_block > 100 << 10
    bus = _BUS.get(m.name, 384)
    return {
        **_TEXTURES,
        **_SAME,
        1: m.threads_per_block, 8: m.static_shared, 12: m.registers_per_block, 13: round(m.clock_hz / 1000),
        16: m.sms, 32: int(server), 33: number + 1, 36: round(m.memory_bandwidth * 8 / bus / 2 / 1000), 37: bus,
        38: m.l2_bytes, 39: m.threads_per_sm, 40: 3 if server else 2, 75: major, 76: minor,
        81: m.shared_per_sm, 82: m.registers_per_sm, 85: number, 87: 2 if server else 64, 97: m.shared_per_block,
        106: m.blocks_per_sm, 108: m.l2_bytes * 5 // 8, 109: 134213632, 111: m.shared_reserved,
        120: int(major >= 9), 127: int(major >= 9),
    }  # fmt: skip

"""Products by matrix instructions: mma.sync, wgmma, tcgen05."""

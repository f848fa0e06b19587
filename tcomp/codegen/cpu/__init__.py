"""CPUs: tile IR to LLVM IR and object code, cached by content."""

"""Inner loops: arrays of floats in, arrays of floats out; no checks of input, no threads of their own."""

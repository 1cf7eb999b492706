"""Inner loops: arrays in, arrays out, nothing about files or annotations."""

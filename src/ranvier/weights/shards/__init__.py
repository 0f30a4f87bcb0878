"""The parts of tensors that ranks take, as the files' readers see them."""

"""What LoRA adapters add to a build: the form of its slots, and the program that fills them."""

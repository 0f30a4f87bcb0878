"""The configuration of Neuron's serving stacks: every field, what becomes of it, every rule."""

"""Programs for Neuron, made on any machine."""

"""AWS Neuron: instances, memory, roofline, versions, errors and checks. Host only."""

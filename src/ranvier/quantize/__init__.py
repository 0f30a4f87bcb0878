"""Making quantised models: calibrate, quantise layer by layer, measure, write a folder."""

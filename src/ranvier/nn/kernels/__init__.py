"""nn/kernels"""

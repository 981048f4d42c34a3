"""Attention on CUDA: the kernels that may compute it, one of our own for short sequences, and the choice by a trial."""

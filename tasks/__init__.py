"""Gymnasium environments, families of tasks, splits of them and exact reference returns."""

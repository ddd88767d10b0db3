"""Processes on several hosts: initialisation, agreement, signals and crash logs."""

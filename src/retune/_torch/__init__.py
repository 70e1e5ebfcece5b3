"""Helpers around torch: functions, graphs, memory."""

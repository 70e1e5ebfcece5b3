"""Questions to torch: functions, graphs, memory."""

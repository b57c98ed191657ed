"""Quality and speed, measured side by side with baselines. Each script prints a table, then a line per target."""

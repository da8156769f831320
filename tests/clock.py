"""What the clock and the machine decide, of what a run writes: nothing that two runs must share."""

TIMED = (
    "seconds",
    "minutes",
    "train/clips_per_s",
    "train/data_share",
    "time/epoch_s",
    "time/total_s",
    "memory/process_gb",
    "memory/workers_gb",
)
